"""How much of a model's loss in eval mode is batch normalization's, on nets where it is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_probe_evidence import assert_untouched, everything
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.score import Scored
from spiritlevel.probe.evidence import measure
from spiritlevel.probe.gap import Gap, gap


def sorter(shift: float = 0.0, norms: int = 1) -> nn.Sequential:
    """Tells by the sign of (a - mean of a) which class it is; `shift` is what its mean is off."""
    layers: list[nn.Module] = [nn.BatchNorm1d(1) for _ in range(norms)]
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        head.bias.zero_()
    model = nn.Sequential(*layers, head)
    model[0].running_mean.fill_(5 + shift)
    for layer in layers:
        layer.num_batches_tracked.fill_(100)
    return model.eval()


def data(batches: int = 8):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(batches * 16, 1, generator=generator) * 2 - 1
    return list(zip((a + 5).split(16), (a[:, 0] > 0).long().split(16), strict=True))


def found(model, batches, **options):
    return gap(model, batches, measure(model, batches, **options), **options)


def test_running_statistics_that_are_off_are_the_gap():
    got = found(sorter(shift=3), data())
    assert got.metric == "accuracy"
    assert got.samples == 128
    share = torch.cat([y for _, y in data()]).double().mean()
    assert got.eval.value == pytest.approx(1 - float(share))  # all are told to be of class 0
    assert got.batch.value > 0.9
    assert got.recalibrated.value > 0.95
    assert got.blames
    assert [layer.module for layer in got.layers] == ["0"]
    assert got.layers[0].closed == pytest.approx(1)
    assert got.lines()[0].endswith("after recalibrating a copy: batch normalization is the gap")
    assert got.lines()[1].startswith("0 alone on batch statistics: 0.9")


def test_statistics_as_built_are_no_gap():
    model = sorter(shift=3)
    model[0].reset_running_stats()
    got = found(model, data())
    assert got.batch.value - got.eval.value > 0.3
    assert (got.blames, got.layers) == (False, ())
    assert got.lines()[0].endswith("as built; train the model, then ask again")
    assert got.to_dict()["untrained"]


def test_statistics_that_a_trained_model_has_lost_are_one():
    model = sorter(norms=2)
    with torch.no_grad():
        for norm in model[:2]:
            norm.weight.fill_(1.5)
            norm.bias[:] = 0.0
    model[1] = nn.BatchNorm1d(1).eval()
    model[0].reset_running_stats()
    model[0].running_mean.fill_(8.0)  # not as built, though none was counted, as in old files
    assert found(model, data()).blames


def test_each_score_beside_one_by_hand():
    model, batches = sorter(shift=0.3), data()
    got = found(model, batches)
    x, y = (torch.cat(each) for each in zip(*batches, strict=True))
    by_batch = torch.cat([b - b.mean(0) for b, _ in batches])
    assert got.eval.value == pytest.approx(float(((x[:, 0] > 5.3) == y).double().mean()))
    assert got.batch.value == pytest.approx(float(((by_batch[:, 0] > 0) == y).double().mean()))
    again = x.double()[:, 0] > x.double().mean()
    assert got.recalibrated.value == pytest.approx(float((again == y).double().mean()))


def test_where_eval_mode_is_as_good_nothing_is_blamed():
    got = found(sorter(), data())
    assert not got.blames
    assert got.layers == ()
    assert got.eval.value == 1
    assert "batch normalization is not to blame" in got.lines()[0]


def test_the_layer_at_fault_comes_first():
    model = sorter(norms=3)
    model[1].running_mean.fill_(4.0)
    got = found(model, data())
    assert got.layers[0].module == "1"
    assert got.layers[0].closed > 0.9
    # What comes behind it takes the shift out as well; what comes before it cannot.
    assert {layer.module: layer.closed for layer in got.layers}["0"] < 0.1


def test_a_few_samples_that_change_alike_prove_nothing():
    assert not found(sorter(shift=3), [(data()[0][0][:2], torch.ones(2, dtype=torch.long))]).blames


def test_floats_give_the_squared_error():
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False)).eval()
    model[0].running_mean.fill_(2.0)
    model[0].num_batches_tracked.fill_(100)
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    batches = list(zip(x.split(16), x.split(16), strict=True))
    got = found(model, batches)
    assert got.metric == "mean squared error"
    expected = ((x.double() - 2) / math.sqrt(1 + 1e-5) - x.double()).square().mean()
    assert got.eval.value == pytest.approx(float(expected), rel=1e-5)
    assert got.blames
    assert got.cured == pytest.approx(1, abs=0.1)


def test_a_model_without_batch_norm_is_told_so():
    model = nn.Sequential(nn.Linear(1, 2))
    got = found(model, data())
    assert (got.batch, got.blames) == (None, False)
    assert "no batch normalization takes part" in got.lines()[0]


def test_frozen_layers_keep_to_their_statistics():
    model = sorter(shift=3).train()
    model[0].eval()
    assert found(model, data()).batch is None


@pytest.mark.parametrize(
    "batches", [[x for x, _ in data()], [(x, x.repeat(1, 7)) for x, _ in data()]]
)
def test_none_without_targets_that_fit(batches):
    assert found(sorter(), batches) is None


def test_the_model_is_left_as_it_was():
    model, batches = sorter(shift=3).train(), data()
    evidence = measure(model, batches)
    before = everything(model)
    gap(model, batches, evidence)
    assert_untouched(everything(model), before)


def test_the_model_is_left_as_it_was_also_where_a_pass_raises():
    model, batches = sorter(shift=3), data()
    evidence = measure(model, batches)
    before = everything(model)
    passes = []

    def forward(model, batch):
        passes.append(0)
        if len(passes) == 12:  # with batch statistics
            raise ArithmeticError("in the middle")
        return model(batch[0])

    with pytest.raises(UsageError, match="in the middle"):
        gap(model, batches, evidence, forward=forward)
    assert_untouched(everything(model), before)


def test_the_ranking_of_many_layers_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr("spiritlevel.probe.gap.MOST_LAYERS", 3)
    monkeypatch.setattr("spiritlevel.probe.gap.MOST_PASSES", 7)
    told = []
    model, batches = sorter(shift=3, norms=5), data()
    evidence = measure(model, batches)
    got = gap(model, batches, evidence, progress=lambda *each: told.append(each))
    assert got.notes == ("ranked 3 of 5 layers on 2 of 8 batches",)
    assert len(got.layers) == 3
    assert got.layers[0].module == "0"  # the furthest off
    assert len([what for what, _, _ in told if what.endswith("alone")]) == 6


def test_a_gap_as_plain_values():
    got = found(sorter(shift=3), data()).to_dict()
    assert json.loads(json.dumps(got)) == got
    assert set(got["eval"]) == {"value", "low", "high"}
    assert got["layers"][0]["module"] == "0"


def test_the_same_twice():
    assert found(sorter(shift=3), data()) == found(sorter(shift=3), data())


def test_progress_counts_passes():
    told = []
    gap(sorter(), data(), measure(sorter(), data()), progress=lambda *each: told.append(each))
    assert told[0] == ("scoring in eval mode", 0, 8)
    assert len(told) == 24


# ---- scores --------------------------------------------------------------------------------------


def test_the_verdict_where_recalibrating_does_not_help():
    same = Scored(0.5, 0.4, 0.6)
    got = Gap("accuracy", 100, same, Scored(0.9, 0.8, 0.95), same, Scored(0.4, 0.3, 0.5), (), ())
    assert got.cured == 0
    assert got.lines()[0].endswith("the gap, which recalibrating does not close")


@pytest.mark.parametrize(("gain", "blames"), [(0.019, False), (0.02, True)])
def test_a_gap_that_is_sure_but_of_no_matter_is_not_blamed(gain, blames):
    off, batch = Scored(0.5, 0.4, 0.6), Scored(0.5 + gain, 0.4, 0.6)
    got = Gap("accuracy", 10**6, off, batch, batch, Scored(gain, gain - 0.001, 1.0), (), ())
    assert got.blames == blames
    assert ("is not to blame" in got.lines()[0]) != blames


def test_an_empty_batch_is_passed_over():
    batches = [(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)), *data()]
    assert found(sorter(), batches).samples == 128
