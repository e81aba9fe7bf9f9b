"""What is left alone stays as it was, is named, and the rest is fused all the same."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from surgery_models import (
    CLOSE,
    BasicBlock,
    assert_same,
    images,
    log_of,
    made,
    sequence,
    twin_of,
    why_of,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.nn import batch


class Pair(nn.Module):
    """Batch norm and activation; what a test gives, it gives to `step`."""

    def __init__(self, act=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.act = act or nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


def two(first=None):
    """The first is for the test, the second to be fused."""
    return nn.Sequential(first or Pair(), Pair()).double()


def assert_left(model, path, why, kind=nn.BatchNorm2d):
    before = copy.deepcopy(model)
    sl.fuse(model)
    assert why_of(model, path) == why
    assert type(model.get_submodule(path)) is kind
    assert type(model[1].bn) is batch.BatchNormAct2d
    assert_same(model, before)


def hook(module, kind):
    getattr(module, f"register_{kind}")(lambda *_: None)
    return module


HOOKS = (
    "forward_hook",
    "forward_pre_hook",
    "full_backward_hook",
    "full_backward_pre_hook",
)


@pytest.mark.parametrize("kind", HOOKS)
def test_hooked_batch_norms(kind):
    model = two()
    hook(model[0].bn, kind)
    assert_left(model, "0.bn", "is hooked")


@pytest.mark.parametrize("kind", HOOKS)
def test_hooked_activations(kind):
    model = two()
    hook(model[0].act, kind)
    sl.fuse(model)
    assert type(model[0].act) is nn.ReLU
    assert type(model[0].bn) is batch.BatchNorm2d
    assert type(model[1].bn) is batch.BatchNormAct2d
    assert why_of(model, "0.bn", "replaced") == "alone: 0.act, which follows, is hooked"


def test_one_registered_under_two_names():
    model = two()
    model[0].alias = model[0].bn
    assert_left(model, "0.bn", "is shared: it has 2 names")


class Twice(Pair):
    def forward(self, x):
        return self.act(self.bn(self.act(self.bn(x))))


def test_one_called_twice():
    assert_left(two(Twice()), "0.bn", "is called 2 times in a pass")


def test_one_inside_a_part_that_is_closed_and_called_twice():
    part = hook(Pair(), "forward_hook")

    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(self.part(x))

    assert_left(two(Repeats()), "0.part.bn", "is called 2 times in a pass")


def test_shared_parameters():
    model = two()
    model[0].act = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3).double(), nn.ReLU())
    model[0].act[1].weight = model[0].bn.weight
    assert_left(model, "0.bn", "shares its parameters with another module")
    assert why_of(model, "0.act.1") == "shares its parameters with another module"


def test_frozen_by_its_mode():
    model = two()
    model[0].bn.eval()
    sl.fuse(model)
    assert why_of(model, "0.bn") == "is frozen: in eval() while the model trains"
    assert type(model[0].bn) is nn.BatchNorm2d
    assert not model[0].bn.training


def test_frozen_by_its_parameters():
    model = two()
    for p in model[0].bn.parameters():
        p.requires_grad = False
    assert_left(model, "0.bn", "is frozen: its parameters take no gradient while others do")
    assert not model[0].bn.weight.requires_grad


def test_a_model_that_learns_nothing_at_all_is_not_taken_for_frozen():
    model = two().requires_grad_(False)
    sl.fuse(model.eval())
    assert type(model[0].bn) is batch.BatchNormAct2d
    assert not model[0].bn.weight.requires_grad


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def test_parametrized():
    model = two()
    parametrize.register_parametrization(model[0].bn, "weight", Doubled())
    kind = type(model[0].bn)
    assert_left(model, "0.bn", "is parametrized", kind)


class Mine(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("kind", [Mine, nn.SyncBatchNorm, sl.nn.SyncBatchNorm])
def test_subclasses(kind):
    model = two()
    model[0].bn = kind(3).double()
    sl.fuse(model)
    assert type(model[0].bn) is kind
    assert why_of(model, "0.bn") == (
        f"is a {kind.__name__}, not one of torch's own BatchNorm1d, 2d and 3d"
    )


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_ones_and_what_to_do():
    model = two()
    model[0].bn = nn.LazyBatchNorm2d(dtype=torch.float64)
    sl.fuse(model)
    assert why_of(model, "0.bn") == "is lazy; run the model once, then fuse"
    model(images())
    sl.fuse(model)
    assert type(model[0].bn) is batch.BatchNormAct2d


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_an_example_with_lazy_layers_is_refused():
    with pytest.raises(UsageError, match="got a model with lazy layers and an example; run"):
        sl.fuse(nn.Sequential(nn.LazyConv2d(3, 1)), images())


def test_a_forward_that_is_replaced_on_the_instance():
    model = two()
    bn = model[0].bn
    bn.forward = lambda x: nn.BatchNorm2d.forward(bn, x) * 2
    sl.fuse(model)
    assert why_of(model, "0.bn") == "has its forward replaced on the instance"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripts():
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).double())
    model = nn.Sequential(scripted, Pair()).double()
    sl.fuse(model)
    assert why_of(model, "0") == "it is compiled by TorchScript"
    assert type(model[1].bn) is batch.BatchNormAct2d


class Both(Pair):
    """The batch norm's output goes to two places."""

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.act(y) + y.sigmoid()


class AddsItself(Pair):
    def forward(self, x):
        y = self.bn(x)
        return y + y


class AddsNumber(Pair):
    def forward(self, x):
        return self.act(self.bn(x) + 1)


class AddsSize(Pair):
    def forward(self, x):
        return self.act(self.bn(x) + x.shape[1])


class AddsWeight(Pair):
    def forward(self, x):
        return self.act(self.bn(x) + self.conv.weight[0].mean())


class AddsDouble(Pair):
    def forward(self, x):
        return self.act(torch.add(self.bn(x), x, alpha=2))


class WritesInput(Pair):
    """What the norm reads is written before the sum."""

    def forward(self, x):
        x = x * 1
        y = self.bn(x)
        z = x.view(-1).mul_(0.5)
        return self.act(y + self.conv(x) + z.sum())


class WritesSummand(Pair):
    """`z += y` changes a tensor that is read again."""

    def forward(self, x):
        z = self.conv(x)
        y = self.bn(x)
        out = z
        out += y
        return out + z * 2


class ReadsWritten(Pair):
    """relu_ whose outcome is read by the old name."""

    def forward(self, x):
        y = self.bn(x)
        y.relu_()
        return y * 2


STAY = (Both, AddsItself, AddsNumber, AddsSize, AddsDouble, WritesSummand, ReadsWritten)


@pytest.mark.parametrize("kind", STAY)
def test_patterns_that_only_look_like_one(kind):
    model = two(kind())
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model[0].bn) is batch.BatchNorm2d
    assert type(model[1].bn) is batch.BatchNormAct2d
    assert_same(model, twin)


def test_what_the_norm_reads_is_not_read_after_it_was_written():
    model = two(WritesInput())
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model[0].bn) is batch.BatchNorm2d
    assert why_of(model, "0.bn", "replaced") == "alone: its input may be written before the sum"
    for each in (model, twin):
        each.eval()
    torch.testing.assert_close(model(images()), twin(images()), **CLOSE)


@pytest.mark.parametrize("with_example", [False, True])
def test_a_summand_of_another_shape_keeps_the_numbers(with_example):
    model = two(AddsWeight())
    twin = twin_of(model)
    sl.fuse(model, images() if with_example else None)
    assert type(model[1].bn) is batch.BatchNormAct2d
    if with_example:
        why = "alone: what is added to it has another shape"
        assert why_of(model, "0.bn", "replaced") == why
    assert_same(model, twin)


class Branches(Pair):
    """A pass that no graph shows."""

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return super().forward(x)


class Stores(Pair):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Counts(Pair):
    def __init__(self):
        super().__init__()
        self.calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        self.calls.append(object())
        return super().forward(x)


class Draws(Pair):
    def forward(self, x):
        return super().forward(x) if random.random() < 2 else x


class NoGrad(Pair):
    def forward(self, x):
        with torch.no_grad():
            return F.relu(self.bn(x))


class Constant(Pair):
    def forward(self, x):
        return F.relu(self.bn(x)) * torch.tensor(2.0)


class TwoWays(Pair):
    def forward(self, x):
        x = self.bn(self.conv(x))
        return F.relu(x) if self.training else F.relu(x * 2)


class Looks(Pair):
    """Its code depends on what it is made of."""

    def forward(self, x):
        y = super().forward(x)
        return y if isinstance(self.act, nn.ReLU) else y * 2


OBSTACLES = {
    Branches: "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs "
    "to control flow",
    Stores: "it sets last in each pass",
    Counts: "it changes its calls in each pass",
    Draws: "it draws random numbers to choose what it runs",
    NoGrad: "it changes grad mode, autocast or what is saved as it runs",
    Constant: "it computes with a tensor that is no input, parameter or buffer",
    TwoWays: "it does other things in train() than in eval()",
    Looks: "its code depends on what it is made of",
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_code_that_is_no_graph(kind):
    model = two(kind())
    attributes = dict(vars(model[0]))
    twin = twin_of(model)
    choices = random.getstate()
    sl.fuse(model)
    assert random.getstate() == choices
    assert vars(model[0]) == attributes
    assert why_of(model, "0") == OBSTACLES[kind]
    assert type(model[0]) is kind
    assert type(model[0].bn) is batch.BatchNorm2d
    assert why_of(model, "0.bn", "replaced") == "alone: no graph shows what follows it"
    assert type(model[1].bn) is batch.BatchNormAct2d
    for each in (model, twin):
        each.eval()
    torch.testing.assert_close(model(images()), twin(images()), **CLOSE)


def test_parts_of_what_does_not_trace_are_fused():
    model = Branches(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.act[1]) is batch.BatchNormAct2d
    assert_same(model, twin)


@pytest.mark.parametrize("kind", [Branches, Stores, Draws, TwoWays])
def test_an_example_shows_the_order_that_no_graph_shows(kind):
    model = two(kind())
    twin = twin_of(model)
    sl.fuse(model, images())
    if kind is TwoWays:  # its relu is a function, which no hook sees
        assert type(model[0].bn) is batch.BatchNorm2d
    else:
        assert type(model[0].bn) is batch.BatchNormAct2d
        assert type(model[0].act) is nn.Identity
        assert why_of(model, "0.bn", "fused").endswith("seen by running the example")
    assert_same(model, twin)


class BranchesBoth(Both):
    def forward(self, x):
        return x if x.sum() > 1e9 else super().forward(x)


class BranchesKeeps(Pair):
    def forward(self, x):
        self.kept = [self.bn(x)]
        return x if x.sum() > 1e9 else self.act(self.kept[0])


class BranchesAgain(Pair):
    def forward(self, x):
        return x if x.sum() > 1e9 else self.act(self.conv(self.act(self.bn(x))))


@pytest.mark.parametrize("kind", [BranchesBoth, BranchesKeeps, BranchesAgain])
def test_an_example_shows_what_must_stay(kind):
    model = two(kind(nn.SiLU()))
    twin = twin_of(model)
    sl.fuse(model, images())
    assert type(model[0].bn) is batch.BatchNorm2d
    model[0].kept = twin[0].kept = None
    for each in (model, twin):
        each.eval()
    torch.testing.assert_close(model(images()), twin(images()), **CLOSE)


def test_an_in_place_activation_is_seen_too():
    model = two(Branches(nn.ReLU(inplace=True)))
    twin = twin_of(model)
    sl.fuse(model, images())
    assert type(model[0].bn) is batch.BatchNormAct2d
    assert_same(model, twin)


class Looks2(Branches):
    """Only running it tells, and then it has changed."""

    def forward(self, x):
        y = super().forward(x)
        return y if isinstance(self.act, nn.SiLU) else y * 2


def state_of(model):
    return (
        [(name, type(m), dict(vars(m))) for name, m in model.named_modules()],
        {name: t.clone() for name, t in model.state_dict().items()},
        torch.get_rng_state(),
    )


def assert_untouched(model, before):
    modules, tensors, state = before
    assert [(name, type(m), dict(vars(m))) for name, m in model.named_modules()] == modules
    torch.testing.assert_close(model.state_dict(), tensors, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(model, "spiritlevel_log")


@pytest.mark.parametrize("mode", [True, False])
def test_other_numbers_undo_everything_and_name_the_module(mode):
    model = nn.Sequential(Looks2(nn.SiLU()), BasicBlock(3, 3), Pair()).double().train(mode)
    before = state_of(model)
    with pytest.raises(UsageError, match=r"once it is fused, first at 0 in train\(\); wanted"):
        sl.fuse(model, images())
    assert_untouched(model, before)


class Stubborn(BasicBlock):
    """Fused as far as its class, which does not change."""

    def __setattr__(self, name, value):
        if name == "__class__":
            raise ZeroDivisionError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (lambda: nn.Sequential(sequence(), BasicBlock(3, 3), Stubborn(3, 5)), "__class__"),
        (lambda: nn.Sequential(sequence(), Stubborn(3, 5), BasicBlock(3, 3)), "__class__"),
        (lambda: Closed(BasicBlock(3, 3)), "spiritlevel_log"),
    ],
)
def test_an_exception_in_the_middle_undoes_everything(model, where):
    model = model()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError, match=where):
        sl.fuse(model)
    assert_untouched(model, before)


class Closed(nn.Sequential):
    def __setattr__(self, name, value):
        if name == "spiritlevel_log":
            raise ZeroDivisionError(name)
        super().__setattr__(name, value)


def test_an_example_that_raises_changes_nothing():
    model, _ = made("torchvision")
    before = state_of(model)
    with pytest.raises(RuntimeError):
        sl.fuse(model, images(channels=5))
    assert_untouched(model, before)


class Optional(Pair):
    def forward(self, x, skip=None):
        x = self.bn(x)
        if skip is not None:
            x = x + skip
        return F.relu(x)


def test_optional_arguments_of_the_whole_model_may_be_given_or_not():
    model = Optional().double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model) is Optional
    assert why_of(model, "bn", "replaced") == (
        "alone: the model would have to be rewritten: its forward has optional arguments"
    )
    for arguments in ((images(),), (images(), images(seed=2))):
        torch.testing.assert_close(model(*arguments), twin(*arguments), **CLOSE)


class Passes(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Optional()

    def forward(self, x):
        return self.part(x)


def test_a_part_that_is_called_in_fewer_ways_than_it_knows():
    model = Passes().double()
    twin = twin_of(model)
    sl.fuse(model)
    for each in (model, twin):
        each.eval()
    torch.testing.assert_close(model(images()), twin(images()), **CLOSE)


class Listed(nn.Module):
    """A plain list holds the activation, too."""

    def __init__(self):
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(3), nn.SiLU()
        self.order = [self.bn, self.act]

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return x


def test_references_that_are_no_submodules():
    model = nn.Sequential(Listed(), Pair()).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model[1].bn) is batch.BatchNormAct2d
    assert_same(model, twin)


class Silu(nn.Module):
    def forward(self, x):
        return F.silu(x)


def test_a_sequential_is_not_rewritten():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Silu())
    sl.fuse(model)
    assert type(model) is nn.Sequential
    assert why_of(model, "1", "replaced") == (
        "alone: the model would have to be rewritten: a Sequential runs its modules in order"
    )
    assert len(model[:2]) == 2


@torch.fx.wrap
def known(x):
    return x * 2


@torch.fx.wrap
def unknown(x):
    return x * 2


unknown.__qualname__ = "gone"


class Calls(Pair):
    def forward(self, x):
        return F.relu(self.bn(known(x)))


class CallsUnknown(Pair):
    def forward(self, x):
        return F.relu(self.bn(unknown(x)))


def test_functions_that_a_pickle_finds_again():
    model = two(Calls())
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model[0].bn) is batch.BatchNormAct2d
    assert_same(pickle.loads(pickle.dumps(model)), twin)  # noqa: S301


def test_functions_that_a_pickle_could_not_find_again():
    model = two(CallsUnknown())
    twin = twin_of(model)
    sl.fuse(model)
    assert why_of(model, "0.bn", "replaced").endswith("which cannot be imported by its name")
    assert_same(pickle.loads(pickle.dumps(model)), twin)  # noqa: S301


def test_batch_norms_that_no_call_reaches_become_ours():
    model = Pair()
    model.spare = nn.BatchNorm2d(3)
    sl.fuse(model)
    assert ("replaced", "spare", "alone: no graph shows what follows it") in log_of(model)


def test_nothing_to_fuse_is_said():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    sl.fuse(model)
    assert [str(e) for e in model.spiritlevel_log] == [
        "left: there is no batch norm that is not fused already"
    ]
