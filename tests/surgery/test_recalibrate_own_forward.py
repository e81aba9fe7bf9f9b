"""Norms with a forward of their own: measured where it takes what is read, else left by name."""

from __future__ import annotations

import pytest
import torch
from recalibrate_cases import assert_statistics, everything, held, moments
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import spiritlevel as sl
from spiritlevel.errors import UsageError

OWN = "its own forward does not take the statistics of what it is given"


def data(count=40):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(2)) * 2 + 1


class Masked(nn.BatchNorm1d):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[x[:, 0] < 100] = super().forward(x[x[:, 0] < 100])
        return y


class Doubles(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x * 2)


class Shifts(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x + 2)


class Spreads(nn.BatchNorm1d):
    """The mean of what it is given, but not the variance."""

    def forward(self, x):
        return super().forward(2 * x - x.mean(0))


class Untracked(nn.BatchNorm1d):
    def forward(self, x):
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True)
        return super().forward(x)


class MaskFirst(nn.BatchNorm1d):
    def forward(self, mask, x):
        return super().forward(x) * mask


class Raises(nn.BatchNorm1d):
    def forward(self, x):
        if self.training:
            raise ArithmeticError
        return super().forward(x)


class Around(nn.Module):
    """A norm, and one of torch's behind it."""

    def __init__(self, norm, call=lambda norm, x: norm(x)):
        super().__init__()
        self.norm, self.call, self.last = norm, call, nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(self.call(self.norm, x))


def told(model, action="left"):
    return [(e.paths, e.why) for e in model.spiritlevel_log if e.action == action]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (Masked, lambda norm, x: norm(x)),
        (Doubles, lambda norm, x: norm(x)),
        (Shifts, lambda norm, x: norm(x)),
        (Spreads, lambda norm, x: norm(x)),
        (Untracked, lambda norm, x: norm(x)),
        (MaskFirst, lambda norm, x: norm(torch.rand(len(x), 3), x)),
        (Raises, lambda norm, x: norm(x)),
    ],
)
def test_others_are_left_by_name(kind, call, sequential):
    model, x = Around(kind(3), call), data()
    x[::4] = 1000
    norm = model.norm
    norm.running_mean.fill_(0.5), norm.running_var.fill_(3)
    was = [t.clone() for t in norm.buffers()]
    sl.recalibrate(model, x.split(16), sequential=sequential)
    assert told(model) == [(("norm",), OWN)]
    assert all(map(torch.equal, norm.buffers(), was))
    norm.eval()
    if kind not in (MaskFirst, Spreads):  # those behind it see what it does in eval()
        assert_statistics(model.last, moments(norm(x)), rtol=1e-5)


def test_a_model_of_nothing_else():
    model, x = nn.Sequential(Doubles(3)), data()
    sl.recalibrate(model, [(x, x)])
    assert [str(e) for e in model.spiritlevel_log] == [f"left 0: {OWN}"]


class Plus(nn.BatchNorm1d):
    def forward(self, x, shift=0.0):
        return super().forward(x) + shift


class Writes(nn.BatchNorm1d):
    def forward(self, x):
        y = super().forward(x)
        if self.training:
            x.zero_()
        return y


class Functional(nn.Module):
    """Another library's: the biased variance, of a momentum that it reads in each pass."""

    def __init__(self, channels):
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        return (x - mean) / (var + 1e-5).sqrt()


class FunctionalBatchNorm(Functional):
    pass


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", [Plus, Writes, FunctionalBatchNorm])
def test_those_that_take_what_they_are_given_are_measured(kind, sequential):
    model, x = Around(kind(3)), data()
    before = everything(model, but_statistics=True)
    sl.recalibrate(model, x.split((16, 23, 1)), sequential=sequential)
    assert_statistics(model.norm, moments(x), rtol=1e-5)
    assert told(model) == []
    assert everything(model, but_statistics=True) == before


def test_beside_update_bn():
    x = data()
    ours, theirs = nn.Sequential(Plus(3)), nn.Sequential(Plus(3))
    sl.recalibrate(ours, [x])
    update_bn([x], theirs)
    assert_statistics(ours[0], [t.double() for t in held(theirs[0])], rtol=1e-5)


@pytest.mark.parametrize(
    "call", [lambda norm, x: norm(x), lambda norm, x: norm(x) + norm(x.clamp(max=50))]
)
def test_a_forward_that_is_another_later_is_refused(call):
    model, x = Around(Masked(3), call), data()
    x[20:30] = 1000
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        sl.recalibrate(model, x.split(16))
    assert str(raised.value) == (
        "got 'norm', whose own forward takes other statistics than those of what it is given in "
        "batch 1 (counted from 0), though not before; have it left as it is: put it in eval(), in "
        "a model that is in train()"
    )
    assert everything(model) == before


def test_what_is_not_finite():
    model, x = Around(Plus(3)), data()
    x[3] = float("nan")
    with pytest.raises(UsageError, match=r"^got NaN or infinity in what 'norm' is fed by batch 0 "):
        sl.recalibrate(model, [x])

    class Skips(nn.BatchNorm1d):
        def forward(self, x):
            rows = x.isfinite().all(1)
            return x.nan_to_num().index_put((rows,), super().forward(x[rows]))

    model = Around(Skips(3))
    sl.recalibrate(model, [x])
    assert told(model) == [(("norm",), OWN)]


def test_a_forward_that_was_replaced():
    model = Around(nn.BatchNorm1d(3))
    inner = model.norm.forward
    model.norm.forward = lambda x: inner(x * 2)
    mine = model.norm.forward
    sl.recalibrate(model, [data()])
    assert told(model) == [(("norm",), "its forward was replaced, so it cannot be tried on a copy")]
    assert model.norm.forward is mine


@pytest.mark.parametrize("sequential", [False, True])
def test_calls_of_forward_count(sequential):
    model = Around(nn.BatchNorm1d(3), lambda norm, x: norm(x) + norm.forward(x * 10))
    x = data()
    sl.recalibrate(model, x.split(16), sequential=sequential)
    assert_statistics(model.norm, moments(torch.cat([x, x * 10])), rtol=1e-5)
    assert model.norm.num_batches_tracked == 6
    assert "forward" not in vars(model.norm)


def test_keywords_in_any_order():
    norm = sl.nn.BatchNormAct2d(3, act="relu")
    x = torch.randn(5, 3, 4, 4)

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(residual=x * 9, input=x)

    sl.recalibrate(Adds(), [x])
    assert_statistics(norm, moments(x), rtol=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("names", [("running_mean", "running_var"), ("running_var",)])
def test_shared_statistics_are_left_by_name(names, sequential):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    for name in names:
        setattr(model[2], name, getattr(model[0], name))
    sl.recalibrate(model, [data()], sequential=sequential)
    assert told(model) == [(("0", "2"), "it shares its running statistics with another layer")]
    assert [e.paths for e in model.spiritlevel_log if e.action == "recalibrated"] == [(), ("3",)]
    for norm in (model[0], model[2]):
        assert norm.running_mean.eq(0).all()
        assert norm.running_var.eq(1).all()


def test_one_layer_at_two_places_shares_with_none():
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.Identity(), norm)
    sl.recalibrate(model, [data()])
    assert told(model) == []


def test_a_frozen_layer_that_shares_is_told_once():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean = model[0].running_mean
    model[1].eval()
    sl.recalibrate(model, [data()])
    assert told(model) == [
        (("1",), "frozen: kept in eval(), or not trained where others are"),
        (("0",), "it shares its running statistics with another layer"),
    ]
