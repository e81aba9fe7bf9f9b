"""Chances of the model, kept apart; the rest is in the tests of what measures with it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from spiritlevel.lent.as_used import seeded_within


def draw():
    return random.random(), np.random.rand(), float(torch.rand(1))


@pytest.mark.parametrize("error", [None, ArithmeticError])
def test_a_models_chances_do_not_move_a_loaders(error):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = [draw(), draw()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    found, inside = [draw()], []
    try:
        with seeded_within(nn.Identity()):
            inside.append(draw())
            if error:
                raise error
    except ArithmeticError:
        pass
    assert [*found, draw()] == expected
    with seeded_within(nn.Identity()):
        assert float(torch.rand(1)) == inside[0][2]  # the same each time
