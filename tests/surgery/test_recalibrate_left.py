"""What `recalibrate` leaves as it was: all but statistics, and all of it where it raises."""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest
import torch
from recalibrate_cases import assert_statistics, everything, held, images, moments, net, pairs
from torch import nn

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.nn import FrozenBatchNorm


def told(model, action="left"):
    return [(e.paths, e.why) for e in model.spiritlevel_log if e.action == action]


# ---- what must not move --------------------------------------------------------------------------


class Listens(nn.Module):
    """Draws from every generator, and keeps notes, in each pass."""

    def __init__(self):
        super().__init__()
        self.notes: list[float] = []
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.notes.append(random.random() + np.random.rand())
        self.seen.add_(1)
        return x + 0 * torch.randn(1)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_moves_but_the_statistics(training, sequential):
    model = net().train(training)
    model.insert(4, Listens())
    model[3].train(not training)
    model(images()).sum().backward()
    model[1].register_forward_hook(lambda *_: None)
    model[0].weight.requires_grad_(False)
    before = everything(model, but_statistics=True)
    ids = {name: id(t) for name, t in model.named_buffers()}
    sl.recalibrate(model, pairs(), sequential=sequential)
    assert everything(model, but_statistics=True) == before
    assert {name: id(t) for name, t in model.named_buffers()} == ids
    assert_statistics(model[1], moments(model[0](images())))


def test_the_random_states_go_on_as_if_nothing_had_been_drawn():
    def stream():
        for x, y in pairs():
            yield x + random.random() + np.random.rand() + torch.rand(1), y

    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    sl.recalibrate(net(), stream())
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_the_models_own_chances_do_not_move_the_loaders():
    drawn = []

    def stream():
        for x, y in pairs():
            drawn.append((random.random(), np.random.rand(), float(torch.rand(1))))
            yield x, y

    for model in (net(), net().insert(4, Listens())):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        sl.recalibrate(model, stream())
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


# ---- what keeps its statistics -------------------------------------------------------------------


def test_frozen_layers_keep_theirs_and_are_named():
    model = net().train()
    model[1].eval()
    was = [t.clone() for t in held(model[1])]
    sl.recalibrate(model, pairs())
    assert all(map(torch.equal, held(model[1]), was))
    assert (model[1].training, model[5].training) == (False, True)
    assert told(model) == [(("1",), "frozen: kept in eval(), or not trained where others are")]
    x = nn.functional.batch_norm(
        model[0](images()), *was, model[1].weight, model[1].bias, eps=model[1].eps
    )
    assert_statistics(model[5], moments(model[4](x.relu())))


def test_frozen_by_what_is_trained():
    model = net()
    model[1].requires_grad_(False)
    was = model[1].running_mean.clone()
    sl.recalibrate(model, pairs())
    assert torch.equal(model[1].running_mean, was)
    whole = net().requires_grad_(False)  # for inference only: nothing is frozen
    sl.recalibrate(whole, pairs())
    assert told(whole) == []


@pytest.mark.parametrize("training", [False, True])
def test_frozen_by_a_train_of_its_own(training):
    class Keeps(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Keeps(*net()).train(training)
    was = model[1].running_mean.clone()
    sl.recalibrate(model, pairs())
    assert torch.equal(model[1].running_mean, was)
    assert told(model)[0][0] == ("1",)


def test_others_are_left_by_name():
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        FrozenBatchNorm(2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.GroupNorm(1, 2),
    )
    model[0].spare = nn.BatchNorm1d(7)
    for each in (model[1], model[2], model[0].spare):
        each.running_mean.fill_(3.0)
    sl.recalibrate(model, [images().float()])
    for each in (model[1], model[2], model[0].spare):
        assert each.running_mean.eq(3).all()
    assert told(model) == [
        (("0.spare",), "no batch reached it"),
        (("3",), "it has no running statistics"),
        (("1", "2"), "of a frozen or scripted kind, or one that normalizes single samples"),
    ]
    assert [e.paths for e in model.spiritlevel_log if e.action == "recalibrated"] == [(), ("0",)]


def test_a_model_without_batch_norms():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert sl.recalibrate(model, [torch.randn(3, 2)]) is model
    assert told(model) == [(("",), "it has no batch norm")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_exported_models():
    x = torch.randn(4, 3)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    sl.recalibrate(scripted, [x])
    assert told(scripted)[0] == (
        ("1",),
        "of a frozen or scripted kind, or one that normalizes single samples",
    )
    exported = torch.export.export(nn.Sequential(nn.BatchNorm1d(3)).eval(), (x,)).module()
    sl.recalibrate(exported, [x])
    assert told(exported)


def test_eval_that_leaves_a_norm_in_training():
    class Stuck(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(True)

    model = nn.Sequential(Stuck(2).double()).eval()
    x = torch.randn(9, 2, dtype=torch.float64)
    sl.recalibrate(model, x.split(4))
    assert_statistics(model[0], moments(x))


def test_other_libraries_batch_norms():
    class MyBatchNorm(nn.Module):
        """Channels last, its statistics of another shape."""

        momentum = 0.1

        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(1, 1, 3).double())
            self.register_buffer("running_var", torch.ones(1, 1, 3).double())

        def forward(self, x):
            if self.training:
                var, mean = torch.var_mean(x, (0, 1))
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
                return (x - mean) / var.sqrt()
            return (x - self.running_mean) / self.running_var.sqrt()

    x = torch.randn(8, 5, 3, dtype=torch.float64) * 2 + 1
    model = sl.recalibrate(nn.Sequential(MyBatchNorm()), x.split(3))
    expected = moments(x.movedim(-1, 1))
    torch.testing.assert_close(model[0].running_mean.flatten(), expected[0])
    torch.testing.assert_close(model[0].running_var.flatten(), expected[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model():
    model = torch.compile(net())
    sl.recalibrate(model, pairs())
    assert_statistics(model._orig_mod[1], moments(net()[0](images())))


# ---- where it raises -----------------------------------------------------------------------------


def broken(after: int, error: BaseException):
    def stream():
        yield from pairs()[:after]
        raise error

    return stream()


def spoiled(value: float):
    batches = pairs()
    batches[1][0][2, 1, 3, 3] = value
    return batches


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (list, "got no batches; wanted an iterable of at least one"),
        (lambda: iter(()), "got no batches; wanted an iterable of at least one"),
        (lambda: images(), "got a Tensor as batches; wanted an iterable of batches: put a single"),
        (lambda: 7, "got a int as batches; wanted an iterable of batches"),
        (
            lambda: broken(2, OSError("gone")),
            "got OSError: gone from the batches, after 2 of",
        ),
        (lambda: spoiled(float("nan")), "got NaN or infinity in what '1' is fed by batch 1 (count"),
        (lambda: spoiled(float("inf")), "got NaN or infinity in what '1' is fed by batch 1 (count"),
        (lambda: [*pairs(), (torch.zeros(3, 9, 7, 7), 0)], "'0' (Conv2d) raised RuntimeError, giv"),
        (lambda: [torch.zeros(0, 2, 7, 7)], "got batches that reach none of the batch norms 1, 5;"),
    ],
)
def test_bad_batches_change_nothing(make, text, sequential):
    model = net()
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        sl.recalibrate(model, make(), sequential=sequential)
    assert str(raised.value).startswith(text)
    assert everything(model) == before
    assert not hasattr(model, "spiritlevel_log")


@pytest.mark.parametrize("sequential", [False, True])
def test_a_single_value_has_no_variance(sequential):
    model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.ones(1, 3)
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        sl.recalibrate(model, [x], sequential=sequential)
    assert str(raised.value) == (
        "got a single value a channel for '0' in all batches, hence no variance; wanted two or more"
    )
    assert everything(model) == before
    sl.recalibrate(model, [x] * 2)


class Breaks(nn.Module):
    """Raises in the pass that it is told to."""

    def __init__(self, at: int, error: BaseException):
        super().__init__()
        self.at, self.error, self.passes = at, error, [0]

    def forward(self, x):
        self.passes[0] += 1
        if self.passes[0] == self.at:
            raise self.error
        return x


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_a_pass_that_raises_changes_nothing(kind, at):
    model = net().train()
    model.insert(1, Breaks(at, kind("in the middle")))
    before = everything(model)
    with pytest.raises(KeyboardInterrupt if kind is KeyboardInterrupt else UsageError):
        sl.recalibrate(model, pairs(), sequential=True)
    assert everything(model) == before
    assert not hasattr(model, "spiritlevel_log")


def test_an_interrupt_as_it_writes_changes_nothing(monkeypatch):
    home = importlib.import_module("spiritlevel.surgery.recalibrate")
    write, written = home.set_statistics, []

    def interrupted(norm, pooled, calls):
        write(norm, pooled, calls)
        written.append(norm)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(home, "set_statistics", interrupted)
    model = net()
    before = everything(model, versions=False)
    with pytest.raises(KeyboardInterrupt):
        sl.recalibrate(model, pairs())
    assert len(written) == 2
    assert everything(model, versions=False) == before


def test_statistics_that_the_type_cannot_hold():
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    before = everything(model)
    with pytest.raises(UsageError, match=r"^got statistics for '0' that float16 cannot hold; "):
        sl.recalibrate(model, [torch.tensor([[-6e4, 1.0], [6e4, 2.0]])])
    assert everything(model) == before


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(UsageError, match=r"^got a model with lazy layers; run it once"):
        sl.recalibrate(model, [torch.randn(3, 2)])
    assert isinstance(model[0], nn.LazyBatchNorm1d)


def test_what_is_no_model():
    with pytest.raises(UsageError, match=r"^got a list; wanted a torch.nn.Module$"):
        sl.recalibrate(pairs(), net())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sequential": "yes"}, "got sequential='yes'; wanted True or False"),
        ({"sequential": 1}, "got sequential=1; wanted True or False"),
        ({"accuracy": None}, "got accuracy=None; wanted True or False"),
        ({"forward": "x"}, "got forward='x'; wanted a function of a model and a batch"),
    ],
)
@pytest.mark.parametrize("make", [net, lambda: nn.Linear(2, 2)])
def test_options_of_other_types(options, text, make):
    model = make()
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        sl.recalibrate(model, pairs(), **options)
    assert str(raised.value) == text
    assert everything(model) == before


def test_data_parallel_runs_on_its_first_device():
    model = nn.DataParallel(net()).train()
    model.device_ids = [0, 1]
    sl.recalibrate(model, pairs())
    assert model.device_ids == [0, 1]
    assert_statistics(model.module[1], moments(net()[0](images())))


def test_a_generator_too_large_to_hold(monkeypatch):
    monkeypatch.setattr("spiritlevel.lent.feeding.MOST_BYTES", 1 << 12)
    model = net()
    before = everything(model)
    with pytest.raises(UsageError) as raised:
        sl.recalibrate(model, iter(pairs()), sequential=True)
    assert str(raised.value).startswith(
        "got a list_iterator, which can be read once, and sequential=True, which reads it once a "
        "layer; it cannot be held, since its first 1 batch fill"
    )
    assert everything(model) == before
    sl.recalibrate(model, iter(pairs()))  # all at once it is not held
