"""What the models hold and cost, as they are counted, beside what papers say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.catalogue import say
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, deploy, list_models
from spiritlevel.models.attention import SqueezeExcite
from spiritlevel.models.counts import count
from spiritlevel.models.published import PUBLISHED
from spiritlevel.models.table import model_table

ROOT = Path(__file__).parents[2]

# Model, options; parameters and millions of multiply-adds of convolutions and linear layers, which
# others have counted or follow from the reference's code.
COUNTED = [
    ("ghostnet_050", {}, 2_587_292, 42.33),
    ("ghostnet_100", {}, 5_182_508, 141.15),
    ("ghostnet_130", {}, 7_358_820, 227.00),
    ("ghostnetv2_100", {}, 6_156_908, 167.05),
    ("ghostnetv2_130", {}, 8_960_404, 269.32),
    ("ghostnetv2_160", {}, 12_392_698, 398.61),
    ("ghostnetv3_050", {}, 3_395_384, 117.53),
    ("ghostnetv3_100", {}, 8_129_028, 404.13),
    ("ghostnetv3_130", {}, 12_217_720, 654.84),
    ("ghostnetv3_160", {}, 17_275_700, 971.57),
    ("ghostnetv3_050", "deployed", 2_853_176, 49.64),
    ("ghostnetv3_100", "deployed", 6_147_588, 167.05),
    ("ghostnetv3_130", "deployed", 8_948_296, 269.32),
    ("ghostnetv3_160", "deployed", 12_377_778, 398.61),
    ("vgg16", {}, 14_724_042, 313.20),
    ("ghost_vgg16", {"s": 2, "d": 1}, 7_371_754, 157.59),
    ("ghost_vgg16", {"s": 2, "d": 3}, 7_388_394, 158.44),
    ("ghost_vgg16", {"s": 2, "d": 5}, 7_421_674, 160.12),
    ("ghost_vgg16", {"s": 2, "d": 7}, 7_471_594, 162.66),
    ("ghost_vgg16", {"s": 3, "d": 3}, 4_956_554, 107.73),
    ("ghost_vgg16", {"s": 4, "d": 3}, 3_720_570, 81.06),
    ("ghost_vgg16", {"s": 5, "d": 3}, 3_007_948, 66.33),
    ("resnet56", {}, 853_018, 125.49),
    ("ghost_resnet56", {"s": 2, "d": 3}, 438_154, 65.29),
    ("ghost_resnet56", {"s": 2, "d": 1}, 430_090, 63.22),
    ("resnet50", {}, 25_557_032, 4089.2),
    ("ghost_resnet50", {"s": 2}, 13_953_512, 2151.0),
    ("ghost_resnet50", {"s": 4}, 8_151_752, 1181.9),
]
# BN layers, the values that they put out for an image, and their parameters.
NORMS = {
    "ghostnet_050": (80, 1_769_096, 10_984),
    "ghostnet_100": (80, 3_538_192, 21_968),
    "ghostnet_130": (80, 4_587_576, 28_536),
}


@pytest.fixture(scope="module")
def rows():
    return model_table()


@pytest.mark.slow
def test_parameters_and_multiply_adds(rows, capsys):
    """All that is published is in the table, and all that was counted elsewhere is as there."""
    wanted = {(name, str(options)): rest for name, options, *rest in COUNTED}
    lines, wrong = [], []
    for row in rows:
        told, counts = row.published, row.counts
        options = "deployed" if told.deployed else str(dict(told.options))
        cost, paper = counts.multiply_adds / 1e6, (told.parameters, told.multiply_adds)
        figures = ", ".join(f"{n} M" for n in paper if n is not None) or "-"
        why = say(f"models.apart.{told.apart}") if told.apart else ""
        shape = (
            f"{row.name:15} {options:18} {counts.parameters:11,} {cost:8.2f} M   {figures:15} {why}"
        )
        lines.append(shape)
        if (row.name, options) in wanted:
            parameters, millions = wanted.pop((row.name, options))
            if counts.parameters != parameters or cost != pytest.approx(millions, rel=0.005):
                wrong.append(shape)
        # What is left where nothing sets them apart is that the paper's are rounded, at times down.
        if not told.apart and told.parameters is not None:
            assert counts.parameters / 1e6 == pytest.approx(told.parameters, rel=0.02), shape
        if not told.apart and told.multiply_adds is not None:
            assert cost == pytest.approx(told.multiply_adds, rel=0.01), shape
    with capsys.disabled():
        print("", f"{'model':34} {'parameters':>11} {'mult-adds':>10}   paper", *lines, sep="\n")
    assert wrong == []
    assert wanted == {}


@pytest.mark.slow
def test_what_is_said_to_set_ours_apart_does(rows):
    """A reason stands only where the paper's figure is another."""
    for row in rows:
        told, counts = row.published, row.counts
        if told.apart:
            pairs = (
                (counts.parameters / 1e6, told.parameters),
                (counts.multiply_adds / 1e6, told.multiply_adds),
            )
            assert any(p is not None and abs(own - p) > 0.015 * p for own, p in pairs), row.code


@pytest.mark.slow
def test_each_published_network_is_a_row_and_each_model_has_one(rows):
    assert [row.published for row in rows if row.published in PUBLISHED] != []
    assert all(any(row.published is each for row in rows) for each in PUBLISHED)
    assert sorted({row.name for row in rows}) == list_models()


def test_what_the_table_calls_it_makes_it():
    """The code of a row, run, is a model of that many parameters."""
    rows = model_table("ghost_*56", num_classes=7, norm="none") + model_table("*mlp")
    for row in rows:
        model = eval(row.code, {"create_model": create_model, "deploy": deploy})
        assert sum(p.numel() for p in model.parameters()) == row.counts.parameters


@pytest.mark.parametrize(
    ("s", "parameters", "millions"), [(2, 13_927_016, 2151.0), (4, 8_125_256, 1181.9)]
)
def test_a_ghost_resnet_50_as_its_authors_file_runs(s, parameters, millions):
    """Without norms: its count of weights that are used."""
    with torch.device("meta"):
        model = create_model("ghost_resnet50", s=s, placement="none")
    counts = count(model, 224)
    assert (counts.parameters, counts.norm_layers) == (parameters, 1), "the stem's"
    assert counts.multiply_adds / 1e6 == pytest.approx(millions, rel=0.005)


# ---- norms ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_what_batch_normalization_adds(rows, name):
    """Layers, values an image at 224 px and parameters: those that were counted elsewhere."""
    (counts,) = (row.counts for row in rows if row.name == name)
    layers, elements, parameters = NORMS[name]
    assert (counts.norm_layers, counts.norm_elements) == (layers, elements)
    assert counts.norm_parameters == parameters
    assert counts.multiply_adds_with_norms == counts.multiply_adds + elements


def by_hooks(model, size, *kinds):
    """The values that layers of these kinds put out, seen in a pass over a real image."""
    seen = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _m, _x, y: seen.append(y.numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return len(seen), sum(seen)


KINDS = {
    "batch": nn.BatchNorm2d,
    "renorm": sl.nn.BatchRenorm2d,
    "ghost:16": sl.nn.GhostBatchNorm2d,
    "frozen": sl.nn.FrozenBatchNorm,
    "noisy-batch": nn.BatchNorm2d,
    "group:4": nn.GroupNorm,
    "layer": nn.GroupNorm,
    "instance": nn.InstanceNorm2d,
}


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("norm", [*KINDS, nn.BatchNorm2d])
def test_norms_of_any_kind_are_counted(norm, kernels):
    """By torch's counter as by hooks, whichever kernels are asked for."""
    model = create_model("small_resnet", norm=norm)
    kind = KINDS.get(norm, nn.BatchNorm2d)
    with sl.kernels.use(kernels):
        counts = count(model, 32)
    assert (counts.norm_layers, counts.norm_elements) == by_hooks(model, 32, kind)
    without = count(create_model("small_resnet", norm="none"), 32)
    assert (without.norm_layers, without.norm_elements, without.norm_parameters) == (0, 0, 0)
    assert counts.multiply_adds == without.multiply_adds
    learnt = sum(p.numel() for m in model.modules() if isinstance(m, kind) for p in m.parameters())
    assert counts.norm_parameters == learnt == counts.parameters - without.parameters


def test_a_norm_that_cannot_be_merged_leaves_the_deployed_form_out():
    training, deployed = model_table("ghostnetv3_050", norm="layer")
    assert training.counts.norm_layers == 326
    assert deployed.counts is None
    assert "wanted a norm that is a fixed factor and shift in eval" in deployed.refused
    assert deployed.to_json()["parameters"] is None


@pytest.mark.slow
def test_the_question_of_141_and_151_million_is_answered_by_count(rows):
    """The lines of docs/models.md are torch's own layers, summed by hooks."""
    (counts,) = (row.counts for row in rows if row.name == "ghostnet_100")
    readings = [total for _, total in tool().readings(counts)]
    model = create_model("ghostnet_100", norm=nn.BatchNorm2d)
    _, norms = by_hooks(model, 224, nn.BatchNorm2d)
    _, relu = by_hooks(model, 224, nn.ReLU)
    pooled, squeezed = [], []
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            module.register_forward_hook(lambda _m, x, _y: pooled.append(x[0].numel()))
            module.conv_reduce.register_forward_hook(lambda _m, _x, y: squeezed.append(y.numel()))
    model.blocks.register_forward_hook(lambda _m, _x, y: pooled.append(y.numel()))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    own = counts.multiply_adds
    assert readings == [
        own,
        own + norms,
        own + 2 * norms,
        own + 2 * norms + relu + sum(squeezed) + sum(pooled),
        own + 3 * norms,
        own + 4 * norms,
    ]
    assert f"{readings[3] / 1e9:.4f}" == "0.1512", "GMac, as the one who asked had counted"


# ---- the model that is given ---------------------------------------------------------------------


class Doubled(nn.Module):
    """One linear layer, used twice on each of 3 rows, and a batch norm without a layer."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.two = self.one
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        return F.batch_norm(self.two(self.one(x)), self.mean, self.var)


def test_shared_weights_count_once_and_work_each_time():
    counts = count(Doubled(), 8)
    assert counts.parameters == 64
    assert counts.multiply_adds == 2 * (3 * 8) * 64
    assert (counts.norm_layers, counts.norm_parameters) == (0, 0)
    assert counts.norm_elements == 3 * 8 * 8


def test_the_model_stays_as_it_is():
    model = create_model("small_vgg").train()
    seen = []
    model.register_forward_hook(lambda *_: seen.append("hook"))
    model.register_forward_pre_hook(lambda *_: seen.append("pre-hook"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    kept = {name: id(p) for name, p in model.named_parameters()}
    generator = torch.get_rng_state()
    count(model, 32)
    assert seen == []
    assert all(module.training for module in model.modules())
    assert {name: id(p) for name, p in model.named_parameters()} == kept
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), generator)
    model(torch.zeros(2, 3, 32, 32))
    assert seen == ["pre-hook", "hook"]


def test_a_model_of_terabytes_is_counted():
    """Nothing is computed and nothing allocated."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 1000 * 1000, 1_000_000, bias=False))
    assert count(model, 1000).multiply_adds == 3 * 10**12


@pytest.mark.parametrize(
    ("model", "size", "told"),
    [
        (lambda: create_model("vgg16"), 8, "got images of 3 x 8 x 8 for VGG16, which fails"),
        (
            lambda: create_model("small_vgg", in_chans=1),
            32,
            "3 x 32 x 32 for SmallVGG, which fails",
        ),
        (lambda: create_model("small_vgg"), 0, "got image_size=0"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), 8, "got 0, whose weight has no shape yet"),
        (lambda: create_model("mlp"), 32, r"made for \(3, 28, 28\)"),
    ],
)
def test_what_cannot_be_counted_says_why(model, size, told):
    with pytest.raises(UsageError, match=told):
        count(model(), size)


# ---- docs ----------------------------------------------------------------------------------------


def tool():
    spec = importlib.util.spec_from_file_location("models_tool", ROOT / "tools/models.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_the_page_is_what_the_tool_writes(rows):
    assert tool().page(rows) == (ROOT / "docs/models.md").read_text()
