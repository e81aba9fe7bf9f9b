"""Models that choose what they run with Python's or NumPy's generator."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import spiritlevel as sl

DRAWS = {"python": random.random, "numpy": lambda: float(np.random.rand())}


class Chooses(nn.Module):
    """One of two branches, in training as in eval."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.norm = nn.BatchNorm1d(3)
        self.block = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())

    def forward(self, x):
        if DRAWS[self.draw]() < 0.5:
            return self.norm(x).relu()
        return self.block(x) * 2


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("with_example", [False, True])
def test_what_a_model_draws_is_not_frozen_and_the_generators_stay_as_they_are(draw, with_example):
    x = torch.randn(6, 3, dtype=torch.float64)
    for seed in range(4):
        model = Chooses(draw).double()
        twin = copy.deepcopy(model)
        random.seed(seed)
        np.random.seed(seed)
        expected = DRAWS[draw]()
        random.seed(seed)
        np.random.seed(seed)
        sl.fuse(model, x if with_example else None)
        assert DRAWS[draw]() == expected
        assert any("draws random numbers" in entry.why for entry in model.spiritlevel_log)
        for _ in range(6):
            random.seed(seed)
            np.random.seed(seed)
            found = model(x)
            random.seed(seed)
            np.random.seed(seed)
            assert torch.allclose(found, twin(x), rtol=0, atol=1e-12)
