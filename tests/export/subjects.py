"""Small models with running statistics that came from data, and what they are fed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl


def settled(model, *inputs, steps=4):
    """In train(), after a few batches, so that eval differs from a fresh layer's."""
    torch.manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
        for _ in range(steps):
            model.train()(*(2 * torch.randn_like(x) + 1 for x in inputs))
    return model


def classifier(classes=5):
    """(N, 3, 8, 8) -> (N, classes)."""
    return settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, classes),
        ),
        torch.zeros(8, 3, 8, 8),
    )


def labelled(count=21, batch=8, classes=5):
    """Batches of (N, 3, 8, 8) and labels, the last one smaller."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 8, 8, generator=made)
    y = torch.randint(classes, (count,), generator=made)
    return list(zip(x.split(batch), y.split(batch), strict=True))


class Several(nn.Module):
    """Two inputs, of which one by name; two outputs and no third."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)
        self.side = nn.Linear(5, 4)

    def forward(self, signal, *, extra):
        y = self.norm(self.conv(signal)).mean(-1)
        return {"logits": y + self.side(extra), "side": self.side(extra), "none": None}


class Functional(nn.Module):
    """A batch norm without a module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        return F.batch_norm(self.conv(x), self.mean, self.var, training=self.training)


class Counts(nn.Module):
    """Its output depends on how often it was called, which no file can know."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


def volume():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU())


def with_norm(kind):
    norm = sl.nn.norm_layer(kind)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4))
