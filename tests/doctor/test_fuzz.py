"""Random small models never crash the check, which leaves them as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from quiet import changed, snapshot
from random_models import Broken, batches, model
from torch import nn

from spiritlevel.doctor.check import check
from spiritlevel.doctor.finding import SEVERITIES
from spiritlevel.errors import UsageError

QUICK, MANY = range(25), range(25, 400)


def well_formed(found, made) -> bool:
    paths = dict(made.named_modules(remove_duplicate=False))
    return all(
        each.severity in SEVERITIES and each.module in paths and each.message and each.fix
        for each in found.findings
    )


def goes_through(seed: int) -> None:
    made, channels, axes = model(seed)
    before = snapshot(made)
    assert well_formed(check(made), made)
    assert changed(before, snapshot(made)) == []
    given = batches(seed, channels, axes)
    before = snapshot(made)
    found = check(made, given)
    assert changed(before, snapshot(made)) == []
    assert well_formed(found, made)
    assert str(found)
    assert found.to_json()


@pytest.mark.parametrize("seed", QUICK)
def test_a_random_model(seed):
    goes_through(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_random_models(seed):
    goes_through(seed)


# ---- forwards that raise
class Half(nn.Module):
    """Draws, counts and switches modes before a part of it raises."""

    def __init__(self, part):
        super().__init__()
        self.norm, self.part = nn.BatchNorm2d(3), part
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        random.random()
        np.random.rand()
        x = self.norm(x) + torch.rand(())
        self.norm.train(not self.norm.training)
        return self.part(x)


class TakesTwo(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("part", "path", "text"),
    [
        (Broken(), "part", "broken on purpose"),
        (nn.Sequential(nn.ReLU(), Broken()), "part.1", "broken on purpose"),
        (nn.Conv2d(5, 2, 1), "part", r"expected .* 5 channels"),
        (nn.Sequential(nn.BatchNorm2d(4)), "part.0", "running_mean should contain 3 elements"),
        (TakesTwo(), "part", "missing 1 required positional argument"),
    ],
)
def test_a_forward_that_raises_is_one_error_that_names_the_layer(part, path, text, training):
    made = Half(part)
    made.train(training)
    given = [torch.randn(4, 3, 5, 5)] * 2
    before = snapshot(made)
    with pytest.raises(UsageError, match=text) as caught:
        check(made, given)
    assert f"'{path}'" in str(caught.value)
    assert changed(before, snapshot(made)) == []


@pytest.mark.parametrize("seed", QUICK[::5])
def test_a_random_model_that_raises_at_its_end(seed):
    made, channels, axes = model(seed)
    made.append(Broken())
    given = [torch.randn(4, channels, *[3] * axes)]
    before = snapshot(made)
    with pytest.raises(UsageError, match="broken on purpose") as caught:
        check(made, given)
    assert f"'{len(made) - 1}' (Broken)" in str(caught.value)
    assert changed(before, snapshot(made)) == []
    assert well_formed(check(made), made)
