import math

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.train import Recipe, learning_rate, scheduler

PER_EPOCH = 5


def recipe(**options):
    return Recipe(**({"lr": 0.4, "epochs": 10, "batch_size": 8} | options))


def rates(made, steps=None):
    return [
        learning_rate(made, step, PER_EPOCH)
        for step in range(made.epochs * PER_EPOCH if steps is None else steps)
    ]


def test_cosine_at_its_corners():
    made = recipe(warmup_epochs=2, warmup_lr=0.1)
    found = rates(made, 52)
    assert found[:3] == [0.1, pytest.approx(0.13), pytest.approx(0.16)]
    assert max(found) == found[10] == 0.4  # the warm-up's end
    assert found[30] == pytest.approx(0.2)  # half-way from there
    assert found[50] == found[51] == 0.0  # the run's end, and beyond
    assert found[49] == pytest.approx(0.4 * (1 + math.cos(math.pi * 39 / 40)) / 2)
    assert found[10:51] == sorted(found[10:51], reverse=True)


def test_no_warm_up_begins_at_the_top():
    assert rates(recipe())[0] == 0.4


def test_a_warm_up_of_part_of_an_epoch():
    found = rates(recipe(warmup_epochs=0.5))
    assert found[:3] == [0, pytest.approx(0.16), pytest.approx(0.32)]
    assert found[3] == pytest.approx(0.4 * (1 + math.cos(math.pi * 0.1 / 9.5)) / 2)


def test_steps_fall_at_their_milestones():
    found = rates(recipe(schedule="steps", milestones=[4, 8], gamma=0.1, warmup_epochs=1))
    assert found[:5] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])
    assert found[5:20] == [0.4] * 15
    assert found[20:40] == pytest.approx([0.04] * 20)
    assert found[40:] == pytest.approx([0.004] * 10)


def test_steps_without_milestones_stay():
    assert set(rates(recipe(schedule="steps"))) == {0.4}


def test_periods_are_counted_from_the_start():
    made = recipe(schedule="periodic", period=2.4, gamma=0.5, warmup_epochs=3)
    found = rates(made)
    # The first fall, at step 12, is within the warm-up of 15.
    assert found[15:24] == pytest.approx([0.2] * 9)
    assert found[24:36] == pytest.approx([0.1] * 12)
    assert found[36] == pytest.approx(0.05)  # 3 * 2.4 in floats is above 36 / 5


def test_bad_steps():
    with pytest.raises(UsageError, match="step=-1"):
        learning_rate(recipe(), -1, PER_EPOCH)
    with pytest.raises(UsageError, match="steps_per_epoch=0"):
        learning_rate(recipe(), 0, 0)


def sgd():
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias]}]
    return torch.optim.SGD(groups, lr=123.0)


def stepped(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_torchs_scheduler_sets_that_rate_and_can_begin_anywhere():
    made = recipe(warmup_epochs=2, warmup_lr=0.1)
    whole, late = sgd(), sgd()
    found = stepped(whole, scheduler(whole, made, PER_EPOCH), 50)
    expected = [[rate, rate] for rate in rates(made)]
    assert found == [pytest.approx(pair) for pair in expected]
    rest = stepped(late, scheduler(late, made, PER_EPOCH, done=17), 33)
    assert rest == found[17:]
