import subprocess
import sys

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, list_models


def test_names():
    assert list_models("ghostnet_*") == ["ghostnet_050", "ghostnet_100", "ghostnet_130"]
    assert list_models("ghost_*") == ["ghost_resnet50", "ghost_resnet56", "ghost_vgg16"]
    assert list_models("*mlp") == ["mlp", "residual_mlp"]
    assert list_models() == sorted(list_models())
    assert list_models("vgg") == []


@pytest.mark.parametrize("name", list_models())
def test_every_name_makes_a_model(name):
    model = create_model(name, num_classes=7, in_chans=1)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def test_norm_may_be_a_function():
    model = create_model("small_vgg", 10, norm=lambda c: nn.GroupNorm(2, c))
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 6


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "ghostnet_10",
            {},
            "got model 'ghostnet_10'; wanted one of: .*Did you mean .*ghostnet_100",
        ),
        ("xyz", {}, "got model 'xyz'; wanted one of: .*vgg16\\.$"),
        ("mlp", {"stem": "mnist"}, "got stem 'mnist'"),
        (None, {}, "got model None; wanted one of"),
        ("mlp", {"num_classes": 2.5}, "got num_classes=2.5, in_chans=3; wanted whole numbers"),
        ("vgg16", {"drop_rate": float("nan")}, "got drop_rate=nan; wanted a number from 0"),
        ("vgg16", {"drop_rate": "0.2"}, "got drop_rate='0.2'; wanted a number from 0"),
        ("ghost_vgg16", {"s": 2.0}, "got s=2.0; wanted a whole number"),
        ("ghost_vgg16", {"d": "3"}, "got d='3'; wanted a whole number"),
        ("mlp", {"num_classes": 0}, "num_classes=0, in_chans=3; wanted 1 to"),
        ("mlp", {"norm": "bn"}, "got norm 'bn'"),
        (
            "mlp",
            {"heads": 3},
            "'heads' for mlp; its options: image_size, depth, width, activation$",
        ),
        ("linear_net", {"activation": "relu"}, "its options: image_size, depth, width$"),
        ("ghostnet_100", {"width": 2}, "'width' for ghostnet_100; its options: drop_rate, act"),
    ],
)
def test_what_cannot_be_made(name, arguments, text):
    with pytest.raises(UsageError, match=text):
        create_model(name, **arguments)


def test_importing_the_models_imports_nothing_heavier_than_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import spiritlevel.models, spiritlevel.nn; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(run.stdout.split())
    assert new - {"spiritlevel"} <= sys.stdlib_module_names
