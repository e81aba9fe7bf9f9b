"""Whole steps of GhostNets that start alike: compared, timed, and told apart by kind."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from torch import nn

from spiritlevel.bench import CASES, QUICK, Mismatch, ghost, theirs
from spiritlevel.bench.ghost import _case, _Checked, _compiled, _peak_ratios, _ratios, _steps
from spiritlevel.bench.kinds import KINDS, kind, shares
from spiritlevel.bench.nets import MobileNetV3, ResNet18
from spiritlevel.bench.report import tables
from spiritlevel.bench.roofline import COPIED, PRODUCT, Work, rates, told, work
from spiritlevel.bench.step import Step
from spiritlevel.cli import main
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.nn.batch import BatchNormAct2d

OURS = ["plain", "plain channels-last", "ours"]


@pytest.fixture
def no_timm(monkeypatch):
    """As where it is not installed."""
    monkeypatch.setitem(sys.modules, "timm", None)
    theirs.timm.cache_clear()
    yield
    theirs.timm.cache_clear()


@pytest.fixture(scope="module")
def found():
    options = {**QUICK, "scale": True, "half": True}
    return json.loads(json.dumps(ghost(**options, threads=1)))


@pytest.mark.slow
def test_a_whole_run_has_all_that_is_asked_of_it(found):
    (row,) = found["cases"]
    names = [name for name in row["seconds"] if not name.startswith("timm")]
    beside = [f"{net}{layout}" for net in ("resnet18", "mobilenet_v3") for layout in LAYOUTS]
    assert sorted(names) == sorted([*OURS, "ours bfloat16", *beside, PRODUCT, COPIED])
    steps = set(row["seconds"]) - {PRODUCT, COPIED}
    for of_each in ("peak_bytes", "shares", "first_loss"):
        assert set(row[of_each]) == steps
    losses = [row["first_loss"][name] for name in OURS]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert max(row["largest_difference"][name] for name in OURS[1:]) <= 1e-3
    seconds = {name: one["median"] for name, one in row["seconds"].items()}
    for name in ("plain", "resnet18", "mobilenet_v3"):
        fastest = min(seconds[f"{name}{layout}"] for layout in LAYOUTS)
        assert row["ratios"][name]["value"] == pytest.approx(fastest / seconds["ours"])
        assert seconds[row["best"][name]] == fastest
    half = row["ratios"]["bfloat16"]["value"]
    assert half == pytest.approx(seconds["ours"] / seconds["ours bfloat16"])
    floor = max(row["floor"][f"seconds_of_{part}"] for part in ("flops", "bytes"))
    assert row["ratios"]["floor"]["value"] == pytest.approx(seconds["ours"] / floor)
    assert set(found["meaning"]) == set(row["ratios"])


LAYOUTS = ("", " channels-last")


@pytest.mark.slow
def test_timm_takes_part_where_it_imports_and_else_a_line_says_so(found):
    (row,) = found["cases"]
    there = theirs.timm() is not None
    assert ("timm" in row["seconds"]) == ("timm" in row["ratios"]) == there
    assert any("timm is left out" in note for note in found["notes"]) != there
    if there:
        assert row["first_loss"]["timm"] == pytest.approx(row["first_loss"]["ours"], rel=1e-5)


@pytest.mark.slow
def test_the_tables_tell_every_subject(found):
    *_, table, ratios, floor, how = tables(found)
    (row,) = found["cases"]
    assert table.row_count == len(row["shares"])
    assert ratios.row_count == len(row["ratios"])
    assert f"{row['floor']['gflop_per_second']:.4g} Gflop/s" in floor
    assert "SGD, momentum 0.9" in how


@pytest.mark.slow
def test_the_command_saves_a_quick_run(tmp_path, capsys, no_timm):
    out = tmp_path / "ghost.json"
    assert main(["bench", "ghost", "--quick", "--threads", "1", "--out", str(out)]) == 0
    told, _ = capsys.readouterr()
    assert "timm is left out: it does not import here" in told
    assert "{" not in told
    assert list(json.loads(out.read_text())["cases"][0]["shares"]) == OURS


def test_the_cases_of_the_two_sizes():
    assert _case(224, None) == CASES[224]
    assert _case(32, 16).batch == 16
    assert (_case(64, None).model, _case(64, None).stem) == ("ghostnet_050", "cifar")
    assert _case(192, None).model == "ghostnet_100"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"sizes": ()}, "got no size"),
        ({"sizes": (16,)}, "got size=16"),
        ({"sizes": (32,), "batch": 0}, "got size=32, batch=0"),
        ({"sizes": (32,), "batch": 3}, "ghostnet_050 has 12"),
        ({"rounds": 0}, "got 0 rounds"),
    ],
)
def test_what_cannot_be_measured(given, wanted):
    with pytest.raises(UsageError, match=wanted):
        ghost(**given)


def test_all_start_from_the_same_weights_and_without_dropout(no_timm):
    notes: list[str] = ["timm is left out: it does not import here"]
    families = _steps(_case(32, 4), compiled=True, half=True, scale=True, notes=notes)
    assert notes == ["timm is left out: it does not import here"]
    assert list(families) == ["ghostnet_050", "resnet18", "mobilenet_v3"]
    for steps in families.values():
        first, *others = (step.net.state_dict() for step in steps.values())
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)
        for name, step in steps.items():
            assert all(m.p == 0 for m in step.net.modules() if isinstance(m, nn.Dropout))
            laid = step.images.is_contiguous(memory_format=torch.channels_last)
            assert laid == name.endswith("channels-last")
    ghosts = families["ghostnet_050"]
    assert {name: (step.kernels, step.half) for name, step in ghosts.items()} == {
        "plain": ("aten", False),
        "plain channels-last": ("aten", False),
        "ours": (None, False),
        "ours bfloat16": (None, True),
    }


def test_timms_network_has_the_stem_and_takes_our_weights():
    if theirs.timm() is None:
        pytest.skip("timm does not import here")
    steps = _steps(_case(32, 4), compiled=False, half=False, scale=False, notes=[])["ghostnet_050"]
    assert list(steps) == ["plain", "plain channels-last", "timm", "timm channels-last", "ours"]
    assert steps["timm"].net.conv_stem.stride == (1, 1)
    wanted = steps["plain"]()["the loss"]
    torch.testing.assert_close(steps["timm"]()["the loss"], wanted, rtol=1e-5, atol=0)


class Small(nn.Module):
    """Images -> logits, through 65,536 numbers, which our kernels take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), BatchNormAct2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).mean((2, 3)))


def small(**options):
    torch.manual_seed(0)
    return Step(Small(), torch.randn(8, 3, 32, 32), torch.arange(8) % 3, **options)


def test_a_step_trains_on_the_kernels_and_in_the_precision_it_was_given():
    right = small()
    before = copy.deepcopy(right.net.state_dict())
    ran = backend.ran.copy()
    wanted = small(kernels="aten")()
    assert backend.ran["aten"] == ran["aten"] + 1
    assert backend.asked() == "auto"
    if backend.missing() is None:
        ran = backend.ran.copy()
        assert torch.allclose(right()["the logits"], wanted["the logits"], atol=1e-5)
        assert backend.ran["cpu"] == ran["cpu"] + 1
    assert not torch.equal(right.net.conv.weight, before["conv.weight"])
    half = small(half=True)()
    assert half["the logits"].dtype == torch.bfloat16
    assert half["the loss"] == pytest.approx(float(wanted["the loss"]), rel=2e-2)


def test_a_subject_with_another_loss_is_refused():
    wrong = small()
    wrong.net.bn.eps = 0.1
    with pytest.raises(Mismatch, match="got the logits from timm at here"):
        _Checked("here", []).family({"plain": small(), "timm": wrong})


def test_a_subject_that_learns_otherwise_is_refused_after_a_step():
    wrong = small()
    wrong.optimizer.param_groups[0]["lr"] = 0.1
    checked = _Checked("here", [])
    with pytest.raises(Mismatch, match="from timm at here after a step"):
        checked.family({"plain": small(), "timm": wrong})
    assert checked.far["timm"] <= 1e-5, "the first step was the same"


def test_a_half_that_computes_something_else_is_refused():
    wrong = small(half=True)
    checked = _Checked("here", [])
    checked.family({"plain": small(), "ours bfloat16": small(half=True)})
    assert 1e-4 < checked.far["ours bfloat16"] < 0.05
    with torch.no_grad():
        wrong.net.head.bias[0] += 1
    with pytest.raises(Mismatch, match="got the logits from ours bfloat16 at here"):
        checked.family({"plain": small(), "ours bfloat16": wrong})


def test_only_compile_may_fail_and_a_line_says_why():
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("\nno compiler\nand more")

    broken = Step(Broken(1, 1), torch.zeros(1), torch.zeros(1))
    notes: list[str] = []
    checked = _Checked("here", notes)
    checked.family({"plain": small(), "timm compile": broken, "ours": small()})
    assert notes == ["timm compile is left out: RuntimeError: no compiler"]
    assert list(checked.steps) == ["plain", "ours"]
    with pytest.raises(RuntimeError, match="no compiler"):
        checked.family({"plain": small(), "timm": broken})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_compiled_is_a_copy_in_the_same_layout():
    step = small()
    made = _compiled(step)
    assert made.images is step.images
    assert made.net._orig_mod is not step.net
    torch.testing.assert_close(made.net._orig_mod.state_dict(), step.net.state_dict())


def test_ratios_are_of_the_fastest_form_of_each():
    samples = {
        "plain": [4.0] * 3,
        "plain channels-last": [3.0] * 3,
        "timm": [5.0] * 3,
        "timm channels-last": [6.0] * 3,
        "timm compile": [2.5] * 3,
        "ours": [2.0] * 3,
        "ours bfloat16": [1.0] * 3,
    }
    values = {name: one.value for name, one in _ratios(samples, [0.5] * 3).items()}
    assert values == pytest.approx({"timm": 1.25, "plain": 1.5, "bfloat16": 2, "floor": 4})


def test_memory_is_beside_the_form_that_needs_least():
    peaks = {"ours": 6, "ours bfloat16": 1, "timm": 20, "timm compile": 10, "resnet18": 12}
    assert _peak_ratios(peaks) == pytest.approx({"timm": 0.6, "resnet18": 0.5})


def test_the_work_of_a_step_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, 1, groups=4),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    macs = 3 * 4 * 9 * 64 + 4 * 9 * 16 + 64 * 5
    numbers = 3 * 64 + 4 * 64 + 4 * 64 + 4 * 16 + 64 + 5
    parameters = 3 * 4 * 9 + 4 + 4 * 9 + 4 + 64 * 5 + 5
    found = work(net, 2, 8)
    assert found.flops == 2 * 3 * 2 * macs
    assert found.bytes == 4 * (3 * 2 * numbers + 8 * parameters)
    assert not net[0]._forward_hooks
    assert net[0].weight.device.type == "cpu"


def test_the_floor_is_work_over_rates():
    samples = {PRODUCT: [2.0], COPIED: [0.5]}
    at = told(samples)
    assert at["gflop_per_second"] == pytest.approx(2 * 1024**3 / 2 / 1e9)
    assert at["copy_gb_per_second"] == pytest.approx(2 * 2**27 / 0.5 / 1e9)
    halves = Work(flops=10**9, bytes=10**9).seconds(samples)
    assert halves["flops"] == pytest.approx([1 / at["gflop_per_second"]])
    assert halves["bytes"] == pytest.approx([1 / at["copy_gb_per_second"]])


def test_the_rates_are_of_what_they_say():
    product, copied = rates()
    assert (product.name, copied.name) == (PRODUCT, COPIED)
    assert product.run().shape == (1024, 1024)
    assert 2 * copied.run().nbytes == 2 * 2**27


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::_slow_conv2d_forward", "convolution"),
        ("aten::_slow_conv2d_backward", "convolution backward"),
        ("aten::convolution_backward", "convolution backward"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolution backward"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::threshold_backward", "activation"),
        ("HardsigmoidBackward0", "activation"),
        ("CatBackward0", "cat"),
        ("aten::add_", "add"),
        ("aten::addmm", "linear"),
        ("aten::t", "linear"),
        ("aten::mul", "multiplication"),
        ("aten::_foreach_add_", "optimizer"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("aten::to", "copies"),
        ("spiritlevel::bn_act", "ours"),
        ("Torch-Compiled Region: 0/0", "compiled"),
        ("CompiledFunctionBackward", "compiled"),
        ("## Call CompiledFxGraph fheoilh3 ##", "compiled"),
        ("torch::autograd::AccumulateGrad", "accumulation of gradients"),
        ("aten::topk", "other"),
    ],
)
def test_kinds_of_operations(operation, wanted):
    assert kind(operation) == wanted


def test_the_shares_of_a_step_are_together_one_and_name_our_kernels():
    by_torch = shares(small(kernels="aten"))
    assert sum(by_torch.values()) == pytest.approx(1)
    assert {"convolution", "convolution backward", "batch norm", "optimizer"} <= set(by_torch)
    assert set(by_torch) <= {*KINDS, "other"}
    assert list(by_torch.values()) == sorted(by_torch.values(), reverse=True)
    if backend.missing() is None:
        by_us = shares(small())
        assert by_us["ours"] > 0
        assert "batch norm" not in by_us, "our kernels took it"


@pytest.mark.parametrize(
    ("build", "parameters", "small_parameters"),
    [(ResNet18, 11_689_512, 11_173_962), (MobileNetV3, 5_483_032, 4_214_842)],
)
def test_the_networks_for_scale(build, parameters, small_parameters):
    assert sum(p.numel() for p in build().parameters()) == parameters
    net = build(10, stem="cifar").eval()
    assert sum(p.numel() for p in net.parameters()) == small_parameters
    last = {"maps": []}
    (net.blocks if build is ResNet18 else net.features).register_forward_hook(
        lambda _m, _x, y: last["maps"].append(tuple(y.shape[2:]))
    )
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert last["maps"] == [(4, 4) if build is ResNet18 else (2, 2)]
    with pytest.raises(UsageError, match="got stem 'tiny'"):
        build(stem="tiny")
