"""Random programs of convolutions, norms, sums, activations and views, many of them in place."""

from __future__ import annotations

import random

import pytest
import torch
from surgery_models import CLOSE, images, twin_of
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.nn import batch

SIZE = 14


class Program(nn.Module):
    """Each step reads tensors that earlier ones made, and makes one; some write what they read."""

    def __init__(self, seed):
        super().__init__()
        choose = random.Random(seed)
        self.steps = []
        self.convs, self.bns = nn.ModuleList(), nn.ModuleList()
        self.relu, self.silu = nn.ReLU(inplace=choose.random() < 0.5), nn.SiLU()
        count = 1
        for _ in range(SIZE):
            kind = choose.choice(("conv", "bn", "bn", "act", "act", "add", "add", "view", "drop"))
            near = [max(0, count - choose.choice((1, 1, 1, 2, 3))) for _ in range(2)]
            self.steps.append((kind, choose.randrange(6), *near))
            count += 1
            if kind == "conv":
                self.convs.append(nn.Conv2d(3, 3, 1))
            if kind == "bn":
                self.bns.append(nn.BatchNorm2d(3))
        self.last = choose.randrange(1, 4)

    def forward(self, x):
        made = [x * 1]
        convs, bns = iter(self.convs), iter(self.bns)
        for kind, way, one, other in self.steps:
            made.append(self.step(kind, way, made[one], made[other], convs, bns))
        return sum(made[-self.last :])

    def step(self, kind, way, a, b, convs, bns):
        if kind == "conv":
            return next(convs)(a)
        if kind == "bn":
            return next(bns)(a)
        if kind == "view":
            return a.view_as(b)
        if kind == "drop":
            return F.dropout(a, 0.5, self.training, way == 0)
        if kind == "add":
            a = a if way != 1 else a.view(a.shape)
            if way == 2:
                a += b
                return a
            return a.add_(b) if way == 3 else torch.add(a, b) if way == 4 else b + a
        acts = (
            self.relu,
            self.silu,
            F.relu_,
            lambda t: F.leaky_relu(t, 0.2),
            lambda t: t.relu(),
            lambda t: F.silu(t, inplace=True),
        )
        return acts[way](a)


def outcome(model, training):
    """Output and gradients; None where autograd refuses the program."""
    model.train(training)
    x = images().requires_grad_()
    torch.manual_seed(0)
    model.zero_grad()
    try:
        y = model(x)
        y.square().sum().backward()
    except RuntimeError as error:
        if "inplace operation" in str(error) or "in-place operation" in str(error):
            return None
        raise
    return [y, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("seed", range(80))
def test_a_random_program_computes_the_same(seed):
    torch.manual_seed(seed)
    model = Program(seed).double()
    twin = twin_of(model)
    sl.fuse(model)
    for training in (True, False):
        got, expected = outcome(model, training), outcome(twin, training)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(model.state_dict(), twin.state_dict(), **CLOSE)


def test_enough_of_them_are_fused_and_run():
    fused = ran = 0
    for seed in range(60):
        model = Program(seed).double()
        ran += outcome(model, True) is not None
        sl.fuse(model)
        fused += any(type(m) is batch.BatchNormAct2d for m in model.modules())
    assert min(ran, fused) > 20
