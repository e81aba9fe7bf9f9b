"""Beside torch's `update_bn` and fvcore's precise BN: the same where they are right."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from recalibrate_cases import assert_statistics, images, moments, net
from torch import nn
from torch.optim.swa_utils import update_bn

import spiritlevel as sl
from spiritlevel.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a loss as it is imported
    from fvcore.nn import update_bn_stats


def by_torch(model: nn.Module, batches) -> nn.Module:
    update_bn(batches, model)
    return model


def by_fvcore(model: nn.Module, batches) -> nn.Module:
    """As it asks for: with those layers in training that are to be measured."""
    modes = [(module, module.training) for module in model.modules()]
    if not model.training:
        for module in model.modules():
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
    try:
        update_bn_stats(model, batches, len(batches), progress=None)
    finally:
        for module, training in modes:
            module.training = training
    return model


def by_ours(model: nn.Module, batches) -> nn.Module:
    return sl.recalibrate(model, batches)


ALL = [by_torch, by_fvcore, by_ours]
GUIDE = Path(__file__).parents[2] / "docs/recalibrate.md"


def single(x: torch.Tensor, by, sizes, **options):
    """The statistics of one layer: of all data, and what was made of the batches."""
    model = by(nn.Sequential(nn.BatchNorm1d(x.shape[1], **options)).to(x.dtype), x.split(sizes))
    return moments(x), (model[0].running_mean, model[0].running_var)


@pytest.mark.parametrize("by", ALL)
def test_where_all_are_right(by):
    """One batch: the first layer; the second too, which divides by the batch in all three.

    But for fvcore's variance, which is the biased one.
    """
    model = net()
    model[3] = nn.Identity()
    ours = by_ours(copy.deepcopy(model), [images()])
    by(model, [images()])
    for place in (1, 5):
        values = 17 * (49 if place == 1 else 25)
        biased = (values - 1) / values if by is by_fvcore else 1
        expected = ours[place].running_mean, ours[place].running_var * biased
        assert_statistics(model[place], expected, 1e-6)


@pytest.mark.parametrize("by", ALL)
def test_even_batches_give_the_mean_to_all(by):
    x = torch.randn(64, 3, dtype=torch.float64)
    (mean, _), (got, _) = single(x, by, 16)
    torch.testing.assert_close(got, mean, rtol=1e-6, atol=1e-6)


def off(expected, got) -> tuple[float, float]:
    """Of the mean, in deviations; of the variance, as a factor."""
    shift = (got[0].double() - expected[0]).abs() / expected[1].sqrt()
    return float(shift.max()), float((got[1].double() / expected[1]).min())


def sorted_classes() -> torch.Tensor:
    """Two classes at -10 and 10, one after the other, as a loader without shuffling has them."""
    return torch.cat([torch.randn(64, 3) - 10, torch.randn(64, 3) + 10]).double()


def test_a_loader_sorted_by_class():
    x = sorted_classes()
    assert off(*single(x, by_torch, 32))[1] < 0.02  # averages variances within batches
    assert off(*single(x, by_fvcore, 32))[1] == pytest.approx(1, rel=0.02)
    assert off(*single(x, by_ours, 32)) == pytest.approx((0, 1), abs=1e-12)


def test_an_uneven_last_batch():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(32, 3), torch.randn(2, 3) + 9]).double()
    assert off(*single(x, by_torch, 32))[0] > 1  # the last two samples count half
    assert off(*single(x, by_fvcore, 32))[0] < 1e-6
    assert off(*single(x, by_ours, 32)) == pytest.approx((0, 1), abs=1e-12)


def test_a_mean_far_above_its_deviation():
    torch.manual_seed(0)
    x = torch.randn(256, 8) * 0.01 + 100
    assert off(*single(x, by_ours, 32)) == pytest.approx((0, 1), abs=2e-3)
    expected, (_, var) = single(x, by_fvcore, 32)
    assert float((var.double() / expected[1] - 1).abs().max()) > 1  # E[x^2] - E[x]^2 in float32
    expected, (_, var) = single(x, by_ours, 32)
    torch.testing.assert_close(var.double(), expected[1], rtol=1e-6, atol=0)


def test_dropout():
    torch.manual_seed(0)
    x = torch.randn(512, 8).double() + 1
    expected = moments(x)

    def found(by):
        model = by(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8)).double().eval(), x.split(64))
        return off(expected, (model[1].running_mean, model[1].running_var))[1]

    assert found(by_torch) > 1.5  # dropout was on
    assert found(by_fvcore) == pytest.approx(1, rel=0.1)
    assert found(by_ours) == pytest.approx(1)


def test_frozen_layers():
    def found(by):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
        model[0].eval().requires_grad_(False)
        by(model, (torch.randn(64, 3) + 5).split(16))
        return float(model[0].running_mean.max()), model[0].training

    assert found(by_torch)[0] > 4
    assert found(by_fvcore) == (0.0, False)
    assert found(by_ours) == (0.0, False)


def test_an_empty_loader():
    model = nn.BatchNorm1d(3)
    model.running_mean.fill_(7.0)
    update_bn([], model)
    assert model.running_mean.eq(0).all()  # what training had learned is gone
    model.running_mean.fill_(7.0)
    with pytest.raises(UsageError, match="got no batches"):
        sl.recalibrate(model, [])
    assert model.running_mean.eq(7).all()


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x):
        return self.norm(x) + self.norm(5 * x)


def test_a_layer_that_is_used_twice():
    x = torch.randn(64, 3, dtype=torch.float64)
    expected = moments(torch.cat([x, 5 * x]))
    with pytest.raises(AssertionError):
        by_fvcore(Reused(), x.split(16))
    model = by_torch(Reused(), x.split(16))
    assert off(expected, (model.norm.running_mean, model.norm.running_var))[1] < 1.1
    assert_statistics(by_ours(Reused(), x.split(16)).norm, expected)


def test_a_last_batch_of_one():
    x = torch.randn(33, 3, dtype=torch.float64)
    for by in (by_torch, by_fvcore):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            single(x, by, 32)
    assert off(*single(x, by_ours, 32)) == pytest.approx((0, 1), abs=1e-12)


def test_a_loader_that_raises():
    def stream():
        yield torch.randn(4, 3)
        raise OSError("gone")

    for by in (by_torch, by_ours):
        model = nn.BatchNorm1d(3).eval()
        model.running_mean.fill_(7.0)
        with pytest.raises((OSError, UsageError)):
            by(model, stream())
        assert (model.running_mean.eq(7).all(), model.training) == (by is by_ours, by is by_torch)


# ---- the table of docs/recalibrate.md ------------------------------------------------------------

TABLE: dict[str, object] = {}
"""Situation -> what says, of a peer, whether it is right; it may raise."""


def situation(name):
    def add(function):
        TABLE[name] = function
        return function

    return add


def near(x, by, sizes) -> bool:
    expected, got = single(x, by, sizes)
    return close(expected, got)


def close(expected, got) -> bool:
    shift = ((got[0].double() - expected[0]).abs() / expected[1].sqrt()).max()
    return bool(shift < 0.05) and bool(((got[1].double() / expected[1]).log().abs() < 0.05).all())


def normal(count: int, channels: int = 3) -> torch.Tensor:
    made = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, generator=made)


@situation("even, shuffled batches")
def _even(by):
    return near(normal(4096).double(), by, 512)


@situation("an uneven last batch")
def _uneven(by):
    return near(torch.cat([normal(32), normal(2) + 9]).double(), by, 32)


@situation("a last batch of one value a channel")
def _single(by):
    return near(normal(4097).double(), by, 512)


@situation("a loader sorted by class")
def _sorted(by):
    return near(sorted_classes(), by, 32)


@situation("mean 100, deviation 0.01, float32")
def _cancels(by):
    return near(normal(256) * 0.01 + 100, by, 32)


@situation("dropout before the layer")
def _dropout(by):
    x = normal(4096).double() + 1
    model = by(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).double().eval(), x.split(512))
    return close(moments(x), (model[1].running_mean, model[1].running_var))


@situation("a frozen layer")
def _frozen(by):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    model[0].eval().requires_grad_(False)
    by(model, (normal(64) + 5).split(16))
    return bool(model[0].running_mean.eq(0).all()) and not model[0].training


@situation("a layer that is called twice")
def _twice(by):
    x = normal(4096).double()
    model = by(Reused(), x.split(512))
    expected = moments(torch.cat([x, 5 * x]))
    return close(expected, (model.norm.running_mean, model.norm.running_var))


def unchanged(by, batches) -> bool:
    model = nn.BatchNorm1d(3).eval()
    model.running_mean.fill_(7.0)
    try:
        by(model, batches)
    except Exception:
        return bool(model.running_mean.eq(7).all()) and (model.training, model.momentum) == (
            False,
            0.1,
        )
    return False


@situation("an empty loader")
def _empty(by):
    return unchanged(by, [])


@situation("a loader that raises in the middle")
def _breaks(by):
    class Loader(list):
        def __iter__(self):
            yield self[0]
            raise OSError("gone")

    return unchanged(by, Loader(normal(8).split(4)))


@situation("NaN in a batch")
def _nan(by):
    return unchanged(by, (normal(8) / 0 * 0).split(4))


def cell(judge, by) -> str:
    try:
        return "right" if judge(by) else "wrong"
    except Exception as error:
        return f"raises {type(error).__name__}"


def test_the_table_of_the_guide():
    rows = ["| | `update_bn` | precise BN | `sl.recalibrate` |", "|---|---|---|---|"]
    for name, judge in TABLE.items():
        torch.manual_seed(0)
        rows.append(f"| {name} | {' | '.join(cell(judge, by) for by in ALL)} |")
    assert all(row.endswith("| right |") for row in rows[2:]), rows
    table = "\n".join(rows)
    assert table in GUIDE.read_text(encoding="utf-8"), table
