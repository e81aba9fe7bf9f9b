"""A small GhostNet learns with our batch norms what it learns with torch's: the same loss curve.

Training is chaotic: two runs that differ by one rounding part ways, a little more at each step. So
the claim has two halves. In float64 the roundings of 2**-53 have not grown by step 200 to what
could be seen, and the curves are the same to nine digits. In float32 they have; there our curve is
no further from torch's than torch's own is from itself when each of its first weights is moved by
one rounding.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spiritlevel.data import load, prepare
from spiritlevel.kernels import backend
from spiritlevel.models.ghost import GhostBottleneck
from spiritlevel.models.layers import ConvNormAct, Layers
from spiritlevel.nn import batch as snn
from spiritlevel.train import train

pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
pytest.importorskip("sklearn", reason="the digits come with the extra study")

pytestmark = pytest.mark.slow  # some 1,000 steps
STEPS = 200
SETTINGS = {"momentum": 0.9, "steps": STEPS, "batch_size": 32, "seed": 0}
# What is learned fast is chaotic fast: in float32 a slower pace leaves more steps to compare.
PACE = {torch.float64: 0.1, torch.float32: 0.01}
NORMS = 20
ROUNDING = 2.0**-24


class SmallGhostNet(nn.Module):
    """The first stages of GhostNet's table 1, on small images: `NORMS` norms."""

    def __init__(self, norm):
        super().__init__()
        layers = Layers.of(norm)
        self.stem = ConvNormAct(1, 8, layers, 3)
        self.blocks = nn.Sequential(
            GhostBottleneck(8, 16, 8, layers),
            GhostBottleneck(8, 24, 12, layers, stride=2),
            GhostBottleneck(12, 36, 20, layers, kernel=5, stride=2, gate="hard"),
            ConvNormAct(20, 64, layers),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    data = prepare(load("digits"), size=16)
    return data.train_x[:], data.train_y


def ghostnet(norm, dtype):
    torch.manual_seed(0)
    return SmallGhostNet(norm).to(dtype)


def moved_by_a_rounding(model, seed):
    """Each weight up or down by one part in 2**24, at random."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            sign = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p.copy_(p + p * sign * 2 * ROUNDING)
    return model


def curve(model, digits):
    (x, y), dtype = digits, next(model.parameters()).dtype
    losses = train(model, x.to(dtype), y, lr=PACE[dtype], **SETTINGS).loss
    assert len(losses) == STEPS
    return torch.tensor(losses, dtype=torch.float64)


def our_curve(dtype, digits):
    model, before = ghostnet(snn.BatchNorm2d, dtype), backend.ran.copy()
    with backend.use("cpu"):
        losses = curve(model, digits)
    assert backend.ran - before == {"cpu": STEPS * NORMS}  # in each layer at each step, no other
    return losses, model


def test_in_float64_the_curves_are_the_same(digits):
    torchs = ghostnet(nn.BatchNorm2d, torch.float64)
    expected = curve(torchs, digits)
    losses, model = our_curve(torch.float64, digits)
    assert expected[0] > 2 > 0.5 > expected[-20:].mean()  # it does learn, from ln 10 = 2.3
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.state_dict(), torchs.state_dict(), rtol=1e-7, atol=1e-7)


def test_in_float32_the_curves_are_as_close_as_torchs_is_to_itself(digits):
    torchs = ghostnet(nn.BatchNorm2d, torch.float32)
    others = [curve(moved_by_a_rounding(torchs, seed), digits) for seed in (1, 2)]
    expected = curve(torchs, digits)
    losses, _ = our_curve(torch.float32, digits)
    spread = torch.stack([(other - expected).abs() for other in others]).amax(0)
    distance = (losses - expected).abs()
    # The first loss comes before any chaos: norms of some ten roundings, of a number near 2.3.
    assert distance[0] <= NORMS * 10 * ROUNDING * expected[0]
    # Then by stretches of 20 steps. Two of three paths from one point, each of its own rounding
    # throughout the run, differ by as much as the third, but for chance: it is given a factor 10.
    for begin in range(0, STEPS, 20):
        here = slice(begin, begin + 20)
        floor = 100 * ROUNDING
        assert distance[here].max() <= 10 * max(spread[here].max(), floor), begin
