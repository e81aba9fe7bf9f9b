import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.lent.guard import undisturbed


class Fault(nn.Module):
    """Raises in the middle of a forward pass, when told to."""

    armed = False

    def forward(self, x):
        if self.armed:
            raise ArithmeticError("in the middle")
        return x


def make():
    """Modes mixed, one gradient not there, buffers of several dtypes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), Fault(), nn.Linear(6, 6), nn.Linear(6, 3)
    )
    model[4].weight.requires_grad_(False)
    model(torch.randn(5, 4)).sum().backward()
    model[1].eval()
    model[5].weight.grad = None
    return model


def disturb(model):
    """All that a measurement might do."""
    model.train()
    model[2].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        F.cross_entropy(model(torch.randn(5, 4)), torch.arange(5) % 3).backward()
        optimizer.step()
    model[1].running_mean.fill_(float("nan"))
    model[0].weight.grad.fill_(7)
    torch.manual_seed(99)


def state(model):
    """Every tensor object with a copy of its values, every mode, the random state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "tensors": [(id(t), t.data_ptr(), t.detach().clone()) for t in tensors],
        "gradients": [None if p.grad is None else id(p.grad) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(after, before):
    assert after["gradients"] == before["gradients"]
    assert after["modes"] == before["modes"]
    assert torch.equal(after["random"], before["random"])
    for new, old in zip(after["tensors"], before["tensors"], strict=True):
        assert new[:2] == old[:2]
        assert torch.equal(new[2], old[2])


def test_everything_is_put_back():
    model = make()
    before = state(model)
    assert None in before["gradients"]
    assert set(before["modes"]) == {True, False}
    with undisturbed(model):
        disturb(model)
        with pytest.raises(AssertionError):
            assert_same(state(model), before)
    assert_same(state(model), before)


def test_also_when_a_module_raises_in_its_forward():
    model = make()
    before = state(model)
    model[3].armed = True
    with pytest.raises(ArithmeticError, match="in the middle"):
        measure_half(model)
    model[3].armed = False
    assert_same(state(model), before)


def measure_half(model):
    with undisturbed(model):
        model.train()
        torch.randn(3)
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        model(torch.randn(5, 4) + 3)  # the norm has counted the batch when the fault comes


@pytest.mark.parametrize("fault", [KeyboardInterrupt, StopIteration, SystemExit])
def test_whatever_is_raised(fault):
    model = make()
    before = state(model)
    with pytest.raises(fault):
        disturb_and_raise(model, fault)
    assert_same(state(model), before)


def disturb_and_raise(model, fault):
    with undisturbed(model):
        disturb(model)
        raise fault


def test_one_within_the_other():
    model = make()
    before = state(model)
    with undisturbed(model):
        disturb(model)
        between = state(model)
        with undisturbed(model):
            disturb(model)
        # The inner one has put back values that are NaN, which equal nothing.
        assert [t[:2] for t in state(model)["tensors"]] == [t[:2] for t in between["tensors"]]
        assert torch.equal(model[0].weight, between["tensors"][0][2])
    assert_same(state(model), before)


def test_gradients_within_begin_at_none_and_do_not_add_up():
    model = make()
    alone = copy.deepcopy(model)
    alone.zero_grad(set_to_none=True)
    x = torch.randn(5, 4)
    model[2].eval(), alone[2].eval()
    alone(x).sum().backward()
    with undisturbed(model):
        assert all(p.grad is None for p in model.parameters())
        model(x).sum().backward()
        assert torch.equal(model[0].weight.grad, alone[0].weight.grad)


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_outside_goes_on_as_if_nothing_had_been(make_optimizer):
    def run(disturbed):
        model = make()
        optimizer = make_optimizer(model.parameters(), lr=0.1)
        losses = []
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.randn(5, 4)), torch.arange(5) % 3)
            loss.backward()
            if disturbed:  # between backward and step: the gradients must survive
                with undisturbed(model):
                    disturb(model)
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    losses, weights = run(disturbed=True)
    expected_losses, expected_weights = run(disturbed=False)
    assert losses == expected_losses
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


def test_channels_last_weights_keep_their_layout():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strides, values = model.weight.stride(), model.weight.detach().clone()
    with undisturbed(model), torch.no_grad():
        model.weight.zero_()
    assert model.weight.stride() == strides
    assert torch.equal(model.weight, values)


class Counter(nn.Module):
    """Assigns its buffer anew instead of writing to it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x


def test_a_buffer_that_is_assigned_anew():
    model = Counter()
    buffer = model.calls
    with undisturbed(model):
        model(torch.zeros(1))
    assert model.calls is buffer
    assert model.calls == 0
