import copy
import pickle

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.train import averaged
from spiritlevel.train.ema import decay_at


def by_hand(states, decay):
    """The textbook, over whole state_dicts."""
    average = {name: value.clone() for name, value in states[0].items()}
    for updates, state in enumerate(states[1:], 1):
        d = min(decay, (1 + updates) / (10 + updates))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = d * average[name] + (1 - d) * value
            else:
                average[name] = value.clone()
    return average


def moved(model, generator):
    """A step of any training: every value moves, running statistics and counters by a batch."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    model.train()(torch.randn(4, 3, 32, 32, generator=generator))
    return {name: value.clone() for name, value in model.state_dict().items()}


def small(norm="batch"):
    torch.manual_seed(0)
    return create_model("small_resnet", 4, norm, widths=(4, 8))


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_it_is_the_textbook_in_weights_and_buffers(decay):
    model, generator = small().double(), torch.Generator().manual_seed(1)
    torch.set_default_dtype(torch.float64)
    try:
        average = averaged(model, decay)
        states = []
        for _ in range(6):
            states.append(moved(model, generator))
            average.update_parameters(model)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = by_hand(states, decay)
    found = average.module.state_dict()
    assert list(found) == list(model.state_dict())
    torch.testing.assert_close(dict(found), expected, rtol=1e-12, atol=1e-12)
    counters = [found[name] for name in found if name.endswith("num_batches_tracked")]
    assert counters
    assert all(counter == 6 for counter in counters)


def test_the_decay_warms_up():
    assert [decay_at(0.9999, n) for n in (0, 1, 8)] == [0, 2 / 11, 0.5]
    assert decay_at(0.9999, 10**6) == 0.9999
    assert decay_at(0.1, 1) == 0.1


def test_the_first_update_copies_and_shares_nothing():
    model = small()
    average = averaged(model, 0.999)
    average.update_parameters(model)
    torch.testing.assert_close(average.module.state_dict(), model.state_dict(), rtol=0, atol=0)
    ours = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    theirs = {p.data_ptr() for p in (*average.module.parameters(), *average.module.buffers())}
    assert not ours & theirs
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    moved(model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(dict(average.module.state_dict()), before, rtol=0, atol=0)


def test_it_is_in_eval_learns_nothing_and_goes_on_from_its_state():
    model, generator = small(), torch.Generator().manual_seed(2)
    average = averaged(model.train(), 0.99)
    assert model.training
    assert not average.module.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in average.module.parameters())
    for _ in range(3):
        moved(model, generator)
        average.update_parameters(model)
    again = averaged(small(), 0.99)
    again.load_state_dict(average.state_dict())
    moved(model, generator)
    for one in (average, again):
        one.update_parameters(model)
    torch.testing.assert_close(again.state_dict(), average.state_dict(), rtol=0, atol=0)


class Odd(nn.Module):
    """A tied weight, a mask of infinities, a flag, a buffer that is not saved, a constant."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.inf]))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_buffer("constant", torch.tensor(0.1))


def test_odd_buffers_stay_what_they_are():
    model = Odd()
    average = averaged(model, 0.9)
    average.update_parameters(model)
    with torch.no_grad():
        model.one.weight += 1
        model.flag.logical_not_()
        model.passing += 1
    average.update_parameters(model)
    found = average.module
    assert found.mask.tolist() == [0.0, -torch.inf, torch.inf]
    assert found.flag.tolist() == [False, True]
    assert found.constant == model.constant
    assert found.two.weight is found.one.weight
    torch.testing.assert_close(found.one.weight, model.one.weight - 2 / 11)
    torch.testing.assert_close(found.passing, torch.full((2,), 9 / 11))


@pytest.mark.parametrize("decay", [0, 1, -0.5])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(UsageError, match="between 0 and 1"):
        averaged(small(), decay)


def test_half_precision_is_refused_and_taken_as_updates():
    model = nn.Linear(2, 2).bfloat16()
    with pytest.raises(UsageError, match="whose weight is in half precision"):
        averaged(model, 0.9)
    average = averaged(copy.deepcopy(model).float(), 0.9)
    for _ in range(3):
        with torch.no_grad():
            model.weight += 1
        average.update_parameters(model)
    assert average.module.weight.dtype is torch.float32
    assert (average.module.weight < model.weight).all()


def test_it_can_be_pickled():
    average = averaged(nn.Linear(2, 2), 0.9)
    again = pickle.loads(pickle.dumps(average))  # noqa: S301
    again.update_parameters(nn.Linear(2, 2))
    assert int(again.n_averaged) == 1
