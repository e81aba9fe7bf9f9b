"""What is merged inside a part is seen by nobody outside it."""

from __future__ import annotations

import copy
import functools
from types import MethodType, SimpleNamespace

import pytest
import torch
from surgery_models import CLOSE, assert_same, twin_of, why_of
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spiritlevel as sl
from spiritlevel.nn import batch


def stage(*more):
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), *more)


class Base(nn.Module):
    """`forward` branches on a value, so that no graph shows what it calls."""

    def __init__(self):
        super().__init__()
        self.f = stage()
        self.many = nn.ModuleList([stage(), stage()])
        self.by_name = nn.ModuleDict({"a": stage()})
        self.absent = None

    def forward(self, x):
        return self.body(-x if x.sum() > 1e9 else x)


class Calls(Base):
    def body(self, x):
        return self.f(x)


class CallsEach(Base):
    def body(self, x):
        x = self.f(x) if self.f is not None else x
        if self.absent:
            x = self.absent(x)
        for index, each in enumerate(self.many):
            x = each(x) * (index + 1)
        for each in self.by_name.values():
            x = each(x)
        return x


class CallsByIndex(Base):
    def body(self, x):
        first = self.many[0]
        return self.many[1](first(self.by_name["a"](x)))


class CallsByName(Base):
    def body(self, x):
        for name in ("f",):
            x = getattr(self, name)(x)
        return x


class Zips(Base):
    def body(self, x):
        for factor, each in zip((1, 2), self.many, strict=True):
            x = each(x) * factor
        return x


class CallsInACheckpoint(Base):
    def body(self, x):
        return checkpoint(self.f, x, use_reentrant=False)


class Stage(nn.Sequential):
    """It has what others may read and call, without seeing its parts."""

    stride = 1

    @property
    def factor(self):
        return 0.5

    def called(self, x, **_):
        return self(x)

    def halves(self, x):
        pre = self[:2](x)
        return self[2](pre) + pre


class ReadsWhatItIs(Base):
    def __init__(self):
        super().__init__()
        self.f = Stage(*self.f)
        self.deep = nn.ModuleList([nn.ModuleDict({"b": stage()})])

    def body(self, x):
        kind = getattr(self, "kind", None)
        for level in self.deep:
            x = level["b"](x)
        return self.f.called(x, kind=kind) * self.f.stride * self.f.factor


WHOLE = (Calls, CallsEach, CallsByIndex, CallsByName, Zips, CallsInACheckpoint, ReadsWhatItIs)


class Slices(Base):
    def body(self, x):
        pre = self.f[:2](x)
        return pre, self.f[2:](pre)


class Taps(Base):
    def body(self, x):
        found = []
        for index, each in enumerate(self.f):
            x = each(x)
            if index == 1:
                found.append(x)
        return found


class TapsEach(Base):
    def body(self, x):
        found = []
        for each in self.many:
            for inner in each:
                x = inner(x)
                found.append(x * 1)
        return found


class TapsByName(Base):
    def body(self, x):
        found = []
        for inner in getattr(self, "f"):  # noqa: B009
            x = inner(x)
            found.append(x * 1)
        return found


class TapsChildren(Base):
    def body(self, x):
        found = []
        for name, child in self.named_children():
            if name == "f":
                for inner in child.children():
                    x = inner(x)
                    found.append(x * 1)
        return found


class TapsAnAlias(Base):
    def body(self, x):
        chosen = self.many[0]
        pre = chosen[:2](x)
        return pre, chosen[2](pre)


class AsksForClasses(Base):
    def body(self, x):
        for inner in self.f:
            x = inner(x * 0.5 if type(inner) is nn.ReLU else x)
        return x


class CallsAMethodThatSees(ReadsWhatItIs):
    def body(self, x):
        return self.f.halves(x)


class CallsAPart(Base):
    def body(self, x):
        return self.f.get_submodule("1")(self.f._modules["0"](x))


class KeepsParts(Base):
    """A list of its own, that is no child."""

    def __init__(self):
        super().__init__()
        self.parts = {"f": [*self.f]}

    def body(self, x):
        found = []
        for part in self.parts["f"]:
            x = part(x)
            found.append(x * 1)
        return found


class KeepsAMethod(Base):
    def __init__(self):
        super().__init__()
        self.run = self.taps

    def taps(self, x):
        pre = self.f[:2](x)
        return pre, self.f[2](pre)

    def body(self, x):
        return self.run(x)


class KeepsAFunction(Base):
    def __init__(self):
        super().__init__()
        f = self.f
        self.run = lambda x: (f[:2](x), f(x))

    def body(self, x):
        return self.run(x)


def doubling(method):
    @functools.wraps(method)
    def wrapper(self, x):
        return method(self, x), self.f[:2](x)

    return wrapper


def hiding(method):
    def wrapper(self, x):
        return method(self, x), of(self, x)

    return wrapper


class IsWrapped(Base):
    @doubling
    def body(self, x):
        return self.f(x)


class IsHidden(Base):
    @hiding
    def body(self, x):
        return self.f(x)


class HasAProperty(Base):
    @property
    def layers(self):
        return self.f

    def body(self, x):
        found = []
        for part in self.layers:
            x = part(x)
            found.append(x * 1)
        return found


class AsksItsParent(Base):
    def body(self, x):
        f = super().__getattr__("f")
        pre = f[:2](x)
        return pre, f[2](pre)


class HasACheckpointOfItsOwn(Base):
    def body(self, x):
        checkpoint = tapped
        return checkpoint(self.f, x)


class TakesAnothersCheckpoint(Base):
    def body(self, x):
        return of_its_own.checkpoint(self.f, x)


def body_of_another(self, x):
    pre = self.f[:2](x)
    return pre, self.f[2](pre)


class IsPatched(Base):
    def body(self, x):
        return self.f(x)


IsPatched.body = body_of_another


class IsPatchedOnTheInstance(Base):
    def __init__(self):
        super().__init__()
        self.body = MethodType(body_of_another, self)


class HasItsOwnCall(Base):
    def body(self, x):
        return self.f(x)

    def __call__(self, x):
        return super().__call__(x), self.f[:2](x)


class CallsByAnotherName(Base):
    go = body_of_another

    def body(self, x):
        return self.go(x)


class CallsWhatItComputes(Base):
    def op_a(self, x):
        pre = self.f[:2](x)
        return pre, self.f[2](pre)

    def body(self, x):
        return getattr(self, "op_" + "a")(x)


class CallsWhatItNames(CallsWhatItComputes):
    def body(self, x):
        return getattr(self, "op_a")(x)  # noqa: B009


class HasALambda(Base):
    parts = property(lambda self: self.f)

    def body(self, x):
        pre = self.parts[:2](x)
        return pre, self.parts[2](pre)


class FindsAttributes(Base):
    def __getattr__(self, name):
        return list(super().__getattr__("f")) if name == "parts" else super().__getattr__(name)

    def body(self, x):
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x * 1)
        return found


class ReadsItsDict(Base):
    def body(self, x):
        f = self.__dict__["_modules"]["f"]
        pre = f[:2](x)
        return pre, f[2](pre)


class Sibling(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.parts = [part]

    def forward(self, x):
        return tapped(self.parts[0], x)


class HasASibling(Base):
    def __init__(self):
        super().__init__()
        self.g = Sibling(self.f)

    def body(self, x):
        return self.g(x)


class Steps(Stage):
    """Its own methods go through its parts, one of them by way of another."""

    @property
    def parts(self):
        return list(self)

    def first(self, x):
        return self.halves(x)


class CallsAMethodThatCalls(Base):
    def __init__(self):
        super().__init__()
        self.f = Steps(*self.f)

    def body(self, x):
        return self.f.first(x)


class ReadsAPropertyThatSees(CallsAMethodThatCalls):
    def body(self, x):
        found = []
        for part in self.f.parts:
            x = part(x)
            found.append(x * 1)
        return found


class IsWatched(Base):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, inputs, _: tapped(module.f, inputs[0]))

    def body(self, x):
        return self.f(x)


def tapped(part, x):
    pre = part[:2](x)
    return pre, part[2:](pre)


class GivesAway(Base):
    def body(self, x):
        return tapped(self.f, x)


class GivesItselfAway(Base):
    def body(self, x):
        return of(self, x)


def of(model, x):
    return tapped(model.f, x)


of_its_own = SimpleNamespace(checkpoint=tapped)


INSIDE = (Slices, Taps, TapsEach, TapsByName, TapsChildren, TapsAnAlias, AsksForClasses)
INSIDE = (*INSIDE, CallsAMethodThatSees, CallsAPart, GivesAway, GivesItselfAway, KeepsParts)
INSIDE = (*INSIDE, KeepsAMethod, IsWrapped, IsHidden, HasAProperty, AsksItsParent)
INSIDE = (*INSIDE, HasACheckpointOfItsOwn, TakesAnothersCheckpoint, IsPatched, HasItsOwnCall)
INSIDE = (*INSIDE, CallsByAnotherName, CallsWhatItComputes, CallsWhatItNames, HasALambda)
INSIDE = (*INSIDE, FindsAttributes, ReadsItsDict, HasASibling, CallsAMethodThatCalls)
INSIDE = (*INSIDE, ReadsAPropertyThatSees, IsWatched, IsPatchedOnTheInstance)


@pytest.mark.parametrize("kind", WHOLE)
def test_parts_that_are_only_called_are_fused(kind):
    model = kind().double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.f[1]) is batch.BatchNormAct2d
    assert type(model.many[0][1]) is batch.BatchNormAct2d
    assert type(model.by_name["a"][1]) is batch.BatchNormAct2d
    assert_same(model, twin)


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("with_example", [False, True])
def test_parts_that_are_looked_into_are_not(kind, with_example):
    model = kind().double()
    twin, x = twin_of(model), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    sl.fuse(model, x if with_example else None)
    for training in (True, False):
        found, expected = model.train(training)(x), twin.train(training)(x)
        torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **CLOSE)


def test_what_holds_itself_is_gone_through_once():
    model, x = Calls().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def again(n):
        return again(n - 1) if n else None

    model.again, model.ring = again, [1]
    model.ring.append({"ring": model.ring})
    for example in (None, x):
        fused = copy.deepcopy(model)
        sl.fuse(fused, example)
        assert type(fused.f[1]) is batch.BatchNormAct2d


def test_a_function_that_was_made_of_a_part_may_look_into_it():
    model = KeepsAFunction()
    sl.fuse(model)
    assert type(model.f[1]) is batch.BatchNorm2d


def test_it_says_who_may_look():
    model = Slices()
    sl.fuse(model)
    assert type(model.f[1]) is batch.BatchNorm2d
    assert type(model.many[0][1]) is batch.BatchNormAct2d  # which nothing looks into
    assert why_of(model, "f.1", "replaced") == "alone: Slices may look inside it"


def test_code_that_cannot_be_read_may_look():
    names: dict = {}
    exec(
        "class Unread(Base):\n    def body(self, x):\n        return self.f(x)",
        {"Base": Base, "__name__": __name__},
        names,
    )
    model = names["Unread"]()
    sl.fuse(model)
    assert type(model.f[1]) is batch.BatchNorm2d
    why = "alone: Unread, which calls it, has no source that can be read"
    assert why_of(model, "f.1", "replaced") == why


class Unrolls(nn.Module):
    """A graph shows each layer of the Sequential, and something between two."""

    def __init__(self):
        super().__init__()
        self.f = stage()

    def forward(self, x):
        for each in self.f:
            if type(each) is nn.ReLU:
                x = x * 0.5
            x = each(x)
        return x


def test_a_sequential_that_is_never_called_is_not_fused_by_its_order():
    model = Unrolls().double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.f[1]) is batch.BatchNorm2d
    assert_same(model, twin)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.reentrant = reentrant

    def inner(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_stays_one(reentrant):
    """Its forward pass runs again on the way back, which the batch norm counts."""
    model = Checkpointed(reentrant)
    twin = copy.deepcopy(model)
    sl.fuse(model)
    for each in (model, twin):
        each(torch.randn(4, 3, 8, 8, requires_grad=True)).sum().backward()
    assert model.bn.num_batches_tracked == twin.bn.num_batches_tracked == 2


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.count = 0
        self.total = torch.zeros(1)
        self.seen = {"deep": {"count": 0}}


class AddsAShare(Adds):
    def forward(self, x):
        return F.relu(self.bn(x) + x.size(1) * 0.1)


class AddsAQuotient(Adds):
    def forward(self, x):
        return F.relu(self.bn(x) + x.shape[1] / 10)


class AddsACount(Adds):
    def forward(self, x):
        return F.relu(self.bn(x) + x.numel() / 1e5)


class AddsAnItem(Adds):
    def forward(self, x):
        return F.relu(self.bn(x) + x.mean().item())


class AddsWhatItCounted(Adds):
    def forward(self, x):
        y = self.bn(x)
        return F.relu(y + x * (self.bn.num_batches_tracked * 0.1))


class AddsItsMean(Adds):
    def forward(self, x):
        mean = self.bn.running_mean.view(1, -1, 1, 1)
        y = self.bn(x)
        return F.relu(y + x * mean)


class WritesItsMean(Adds):
    def forward(self, x):
        y = self.bn(x)
        self.bn.running_mean.mul_(0.5)
        return F.relu(y + x)


ADDS = (AddsAShare, AddsAQuotient, AddsACount, AddsAnItem)
HELD = (AddsWhatItCounted, AddsItsMean, WritesItsMean)


@pytest.mark.parametrize("kind", [*ADDS, *HELD])
@pytest.mark.parametrize("with_example", [False, True])
def test_sums_that_only_look_like_one(kind, with_example):
    model, x = kind(), torch.randn(4, 8, 48, 48)  # large enough for our kernels
    twin = twin_of(model)
    sl.fuse(model, x if with_example else None)
    assert type(model.bn) is batch.BatchNorm2d
    number = "what is added to it is no tensor of the graph"
    why = number if kind in ADDS else "what it holds is used before the sum"
    assert why_of(model, "bn", "replaced") == f"alone: {why}"
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers", [16, 70_000])
@pytest.mark.filterwarnings("ignore:batch normalization runs on torch's own kernels")
def test_a_layer_adds_a_number_whatever_the_size(numbers):
    layer, x = batch.BatchNormAct1d(4), torch.randn(numbers, 4)
    expected = F.relu(nn.BatchNorm1d(4)(x) + 0.5)
    torch.testing.assert_close(layer(x, 0.5), expected)


class Counts(Adds):
    def forward(self, x):
        self.count += 1
        self.total += 1
        self.seen["deep"]["count"] += 1
        return F.relu(self.bn(x) * self.count * self.total * self.seen["deep"]["count"])


def test_what_an_example_counts_is_put_back():
    model, x = Counts(), torch.randn(4, 8, 5, 5)
    twin = copy.deepcopy(model)
    sl.fuse(model, x)
    assert model.count == model.total == model.seen["deep"]["count"] == 0
    torch.testing.assert_close(model(x), twin(x))


class WritesTheSummandLater(Adds):
    """After the sum x is written, which a backward pass through silu would read."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        x = x * 1
        y = self.act(self.bn(x * 2) + x)
        x.mul_(2)
        return y


@pytest.mark.parametrize("act", [nn.SiLU(), nn.ReLU()])
def test_a_summand_that_is_written_later_is_not_needed_on_the_way_back(act):
    model = WritesTheSummandLater(act)
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.bn) is batch.BatchNormAct2d
    grads = []
    for each in (model, twin):
        x = torch.linspace(-2, 2, 4 * 8 * 48 * 48).view(4, 8, 48, 48).requires_grad_()
        (grad,) = torch.autograd.grad(each(x).square().sum(), x)
        grads.append(grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
