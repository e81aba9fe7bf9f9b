"""The book of bugs: for each rule at least one that fires it, with its cured twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], dict[str, Any]]


@dataclass
class Entry:
    rule: str
    module: str
    bug: Build
    clean: Build | None = None
    ranks: int = 1
    """Processes of torch.distributed that it is run in; two are run by test_ranks.py alone."""
    severity: str | None = None
    """Of the finding, where it is not the rule's own."""

    @property
    def name(self) -> str:
        return self.bug.__name__

    def twin(self, build: Build) -> Build:
        """Enter `build` as the same without the bug."""
        self.clean = build
        return build


CASES: list[Entry] = []


def case(
    rule: str, module: str, *, ranks: int = 1, severity: str | None = None
) -> Callable[[Build], Entry]:
    """Enter a function that builds what `check` is given; the finding must name `module`.

    It must be of the rule's severity, or of the one that is given.
    """

    def enter(bug: Build) -> Entry:
        entry = Entry(rule, module, bug, ranks=ranks, severity=severity)
        CASES.append(entry)
        return entry

    return enter


def blobs(
    n: int = 256, channels: int = 3, size: int = 6, classes: int = 3
) -> tuple[Tensor, Tensor]:
    """Images (n, channels, size, size) around one centre a class, and labels, in random order."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, channels, 1, 1, generator=generator)
    noise = torch.randn(n, channels, size, size, generator=generator)
    rows = torch.randperm(n, generator=generator)
    return (centres[y] + noise)[rows], y[rows]


def small_net(channels: int = 3, classes: int = 3) -> nn.Sequential:
    """conv 0, norm 1, ReLU 2, conv 3, norm 4, ReLU 5, pool, flatten, head 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def batches(x: Tensor, y: Tensor, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def train(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], epochs: int = 5) -> nn.Module:
    """Plain SGD, in train(); left in train()."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(epochs):
        for x, y in pairs:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model
