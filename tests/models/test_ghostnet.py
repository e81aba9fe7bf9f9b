from pathlib import Path

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.models.ghostnet import GhostNet

WIDTHS = ["ghostnet_050", "ghostnet_100", "ghostnet_130"]


def multiply_adds(model, x):
    """Those of convolutions and linear layers, counted as they run."""
    counted = []

    def count(layer, _inputs, output):
        if isinstance(layer, nn.Conv2d):
            counted.append(output[0].numel() * layer.weight[0].numel())
        elif isinstance(layer, nn.Linear):
            counted.append(layer.weight.numel())

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(x)
    return sum(counted)


def test_state_dict_is_that_of_the_published_weights():
    """The file lists "key shape" of the authors' model; timm's is the same."""
    lines = Path(__file__).with_name("ghostnet_100_state_dict.txt").read_text().splitlines()
    state = create_model("ghostnet_100").state_dict()
    got = [f"{key} {'x'.join(map(str, value.shape)) or '-'}" for key, value in state.items()]
    assert len(got) == 512
    assert got == lines


@pytest.mark.parametrize(
    ("name", "parameters", "millions_of_macs"),
    [
        ("ghostnet_050", 2_587_292, 42.33),
        ("ghostnet_100", 5_182_508, 141.15),
        ("ghostnet_130", 7_358_820, 227.00),
    ],
)
def test_size_and_cost_are_the_papers(name, parameters, millions_of_macs):
    model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 80
    cost = multiply_adds(model.to("meta"), torch.empty(1, 3, 224, 224, device="meta"))
    assert cost / 1e6 == pytest.approx(millions_of_macs, rel=0.005)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("name", WIDTHS)
def test_runs_from_28_pixels_up(name, stem):
    model = create_model(name, 10, in_chans=1, stem=stem)
    logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    assert model.eval()(torch.randn(1, 1, 33, 47)).shape == (1, 10)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 2), ("cifar", 4)])
def test_the_stem_decides_the_last_map(stem, side):
    model = create_model("ghostnet_050", 10, stem=stem)
    maps = []
    model.blocks.register_forward_hook(lambda _model, _inputs, output: maps.append(output.shape))
    model(torch.randn(2, 3, 64, 64))
    assert maps == [(2, 480, side, side)]


def test_no_bias_before_a_norm_and_one_where_there_is_none():
    without_norm = ("se.conv_reduce", "se.conv_expand", "conv_head")

    def biased(norm):
        convolutions = [
            (name, m)
            for name, m in create_model("ghostnet_050", 10, norm).named_modules()
            if isinstance(m, nn.Conv2d) and not name.endswith(without_norm)
        ]
        assert len(convolutions) == 80
        return {m.bias is not None for _, m in convolutions}

    assert biased("batch") == biased("layer") == biased(nn.BatchNorm2d) == {False}
    assert biased("none") == biased("noisy-none") == {True}


def test_norms_take_the_place_of_batch_normalization():
    state = create_model("ghostnet_050", 10).state_dict()
    for norm in ("frozen", "ghost:4", "noisy-batch"):
        assert list(create_model("ghostnet_050", 10, norm).state_dict()) == list(state)
    with pytest.warns(UserWarning, match="greatest common divisor") as caught:
        grouped = create_model("ghostnet_050", 10, "group:8", stem="cifar")
    assert len(caught) == 1
    assert sum(isinstance(m, nn.GroupNorm) for m in grouped.modules()) == 80
    assert grouped(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_dropout_stands_before_the_classifier():
    x = torch.randn(2, 3, 32, 32)
    still = create_model("ghostnet_050", 10, drop_rate=0.0)
    assert torch.equal(still(x), still(x))
    noisy = create_model("ghostnet_050", 10)
    assert noisy.dropout.p == 0.2
    assert not torch.equal(noisy(x), noisy(x))


def test_unknown_stem():
    with pytest.raises(UsageError, match="got stem 'mnist'; wanted one of: imagenet, cifar"):
        GhostNet(stem="mnist")
