"""A network at inference in every form: compared, timed, and the fastest named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spiritlevel.bench import Mismatch, deploy
from spiritlevel.bench.deploy import FOLLOWS, _compared, _Form, _network
from spiritlevel.bench.report import tables
from spiritlevel.errors import UsageError

PLAIN = ["eager", "channels-last", "ONNX Runtime", "OpenVINO"]


@pytest.fixture(scope="module")
def found():
    measured = deploy(
        model="ghostnet_050", size=32, batches=(1, 2), rounds=3, threads=1, compiled=False
    )
    return json.loads(json.dumps(measured))


@pytest.mark.slow
def test_every_form_is_compared_with_eager_before_it_is_timed(found):
    for row in found["cases"]:
        forms = row["forms"]
        assert [name for name, form in forms.items() if not form["folded"]] == PLAIN
        assert {f"folded {name}" for name in PLAIN} <= set(forms)
        exact = [form for form in forms.values() if form["precision"] == "float32"]
        assert all(form["largest_difference"] <= found["tolerance"] for form in exact)
        assert all(form["same_top1"] == 1 for form in exact)
        lower = [form for form in forms.values() if form["precision"] != "float32"]
        assert all(form["largest_difference"] > found["tolerance"] for form in lower)
        for form in forms.values():
            rate = row["batch"] / form["seconds"]["median"]
            assert form["images_a_second"] == pytest.approx(rate)


@pytest.mark.slow
def test_small_batches_get_more_rounds(found):
    one, two = (row["forms"]["eager"]["seconds"]["n"] for row in found["cases"])
    assert (one, two) == (6, 3)


@pytest.mark.slow
def test_the_fastest_is_named_and_ratios_are_of_its_time(found):
    for row in found["cases"]:
        seconds = {name: form["seconds"]["median"] for name, form in row["forms"].items()}
        right = {n for n, form in row["forms"].items() if form["correlation"] >= FOLLOWS}
        assert seconds[row["fastest"]["of all"]] == min(seconds[name] for name in right)
        exact = [name for name, form in row["forms"].items() if form["precision"] == "float32"]
        assert row["fastest"]["float32"] == min(exact, key=seconds.get)
        ratio = row["ratios"]["eager"]["value"]
        assert ratio == pytest.approx(seconds["eager"] / seconds["folded eager"])
        ours = min(seconds[name] for name in exact if row["forms"][name]["folded"])
        others = min(seconds[name] for name in PLAIN)
        assert row["ratios"]["float32"]["value"] == pytest.approx(others / ours)
        lower = [seconds[name] for name in right if name not in exact]
        assert ("lower precision" in row["ratios"]) == bool(lower)
        if lower:
            ratio = row["ratios"]["lower precision"]["value"]
            assert ratio == pytest.approx(min(others, ours) / min(lower))


@pytest.mark.slow
def test_the_tables_name_the_fastest(found):
    told = list(tables(found))
    assert len(told) == 6
    for row, said in zip(found["cases"], told[2::3], strict=True):
        assert f"Fastest: {row['fastest']['float32']} in float32" in said
        assert f"{row['fastest']['of all']} of all" in said


def test_a_form_that_gives_other_numbers_is_never_timed():
    net, images = nn.Linear(4, 3), torch.randn(5, 4)
    forms = [_Form("eager", net, False), _Form("other", lambda x: net(x) * 1.001, True)]
    with torch.no_grad(), pytest.raises(Mismatch, match="got logits from other at batch 5"):
        _compared(forms, images, 5)


def test_a_form_of_less_precision_is_told_by_its_top1():
    images = torch.eye(3)
    turned = _Form(
        "int8", lambda x: x.roll(1, 1) * (torch.arange(3) > 0)[:, None] + x, True, "int8"
    )
    with torch.no_grad():
        found = _compared([_Form("eager", lambda x: x, False), turned], images, 3)
    assert found["int8"]["largest_difference"] == pytest.approx(1)
    assert found["int8"]["same_top1"] < 1
    assert found["int8"]["correlation"] < FOLLOWS


def test_what_always_gives_the_same_follows_nothing():
    forms = [_Form("eager", lambda x: x, False), _Form("int8", torch.zeros_like, True, "int8")]
    assert _compared(forms, torch.eye(3), 3)["int8"]["correlation"] == 0


def test_the_network_has_statistics_of_what_it_was_fed():
    with torch.no_grad():
        net, _ = _network("ghostnet_050", 32)
    assert not net.training
    assert net.bn1.running_var.lt(0.9).any() or net.bn1.running_mean.abs().gt(0.01).any()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"size": 16}, "got size=16"),
        ({"batches": ()}, "one or more batches"),
        ({"batches": (0,)}, r"batches=\[0\]"),
        ({"rounds": 0}, "got 0 rounds"),
        ({"model": "resnet1"}, "got model 'resnet1'"),
    ],
)
def test_what_cannot_be_measured(given, told):
    with pytest.raises(UsageError, match=told):
        deploy(**given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_forms_too():
    row, *_ = deploy(model="small_resnet", size=32, batches=(1,), rounds=3, threads=1)["cases"]
    assert row["forms"]["compile"]["largest_difference"] <= 1e-4
    assert row["forms"]["folded compile"]["same_top1"] == 1
