"""`training_after_eval`: it calls the user's `eval()`, and nothing of the model shows it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spiritlevel.probe.modes import training_after_eval


class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))


class Deaf(Net):
    """`train()` ignores what it is asked for."""

    def train(self, mode=True):
        return super().train(True)


class Busy(Net):
    """`train()` does all that such methods do elsewhere, and more."""

    def __init__(self):
        super().__init__()
        self.merged, self.calls, self.extra = False, [], torch.zeros(2)

    def train(self, mode=True):
        super().train(mode)
        self.calls.append(mode)
        self.merged = not mode
        self.new = "attribute"
        self.extra += 1
        self[0].weight.data += 1  # as LoRA merges
        self[3].weight.data = torch.zeros(2, 4)
        self[3].bias.requires_grad_(False)  # as detectors freeze stages
        self[0].weight.grad = None
        self[1].running_mean.add_(torch.rand(4))
        self[1].reset_running_stats()
        self[2] = nn.Identity()
        self[1].train()
        return self


class Raises(Net):
    def eval(self):
        self[0].weight.data.zero_()
        raise NotImplementedError("no eval() here")


class AlwaysOn(nn.BatchNorm1d):
    training = property(lambda self: True, lambda self, mode: None)


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(path, type(module), module.training) for path, module in model.named_modules()]
    grads = [
        (p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()
    ]
    others = {
        name: copy.deepcopy(value)
        for name, value in vars(model).items()
        if not name.startswith("_")
    }
    return tensors, modules, grads, others, torch.get_rng_state()


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (Net, []),
        (Deaf, ["1"]),
        (lambda: nn.Sequential(Deaf(), Net()), ["0.1"]),
        (Busy, ["1"]),
        (Raises, []),
        (lambda: nn.Sequential(AlwaysOn(3)), ["0"]),
        (lambda: nn.Sequential(Deaf(), nn.LazyBatchNorm1d()), []),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), []),
        (lambda: torch.jit.script(Net()), []),
        pytest.param(
            lambda: torch.compile(Net(), backend="eager"), [], marks=pytest.mark.slow
        ),  # the import of torch's compiler alone takes seconds
        (lambda: nn.DataParallel(Net()), []),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("training", [True, False])
def test_who_is_left_in_training(build, left, training):
    model = build()
    for module in model.modules():
        if not isinstance(module, AlwaysOn | torch.jit.ScriptModule):
            module.training = training
    assert training_after_eval(model) == left


def test_it_is_what_eval_leaves():
    """The slow way: on a copy, which may be changed."""
    for build in (Net, Deaf, Busy):
        model = build()
        copied = copy.deepcopy(model).eval()
        expected = [path for path, m in copied.named_modules() if isinstance(m, nn.BatchNorm1d)]
        assert training_after_eval(model) == [
            p for p in expected if copied.get_submodule(p).training
        ]


@pytest.mark.parametrize("build", [Net, Deaf, Busy, Raises])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(build, training):
    model = build()
    for module in model.modules():
        module.training = training
    model[0].weight.grad = torch.ones(4, 3)
    tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    storages = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    before = state(model)
    training_after_eval(model)
    assert same(before, state(model))
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == tensors
    assert [t.data_ptr() for t in (*model.parameters(), *model.buffers())] == storages
