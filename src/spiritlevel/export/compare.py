"""How far a file's outputs are from the model's, batch after batch.

Outputs in float32 agree where no value differs by more than `TOLERANCE` of the largest of its
tensor (or of 0.001, where all are less); whole numbers where they are equal. Types are the same,
and what is infinite or NaN is so in both. Where the first output is logits (N, K), K of 2 or more,
no sample may have another top-1, but for those whose two largest logits lie within `TIE`. A file of
less precision is judged by the accuracy that is left: it may lose `MOST_LOST`; without targets
`MOST_CHANGED` of the samples may have another top-1; without logits, or on an example alone,
nothing but shapes and types is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from spiritlevel.export.report import Differs, Verification

__all__ = ["MOST_CHANGED", "MOST_LOST", "TIE", "TOLERANCE", "Comparison", "is_logits"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Other types have 1e-2. The file adds in another order, layer upon layer."""
TIE = 1e-4
MOST_CHANGED = 0.05
MOST_LOST = 0.01


@dataclass
class Comparison:
    """What is found on one kind of input; `add` takes a batch after the other."""

    compared: str
    kind: str = "float32"
    batch: int = 0
    samples: int = 0
    difference: float = 0.0
    allowed: float = 0.0
    """What was allowed of the largest difference."""
    worst: float = -1.0
    """The largest difference as a share of what was allowed of it."""
    logits: int = 0
    """Samples that have some."""
    differs: list[Differs] = field(default_factory=list)
    judged: int = 0
    """Samples with a target."""
    right_model: int = 0
    right_file: int = 0
    values: int = 0
    """Of all outputs; and how many of them are finite."""
    finite: int = 0
    wrong: str = ""

    def add(self, expected: list[Tensor], found: list[Tensor], target: Tensor | None) -> None:
        """One call of the model: its outputs, the file's, and the labels (N,) where there are."""
        size = len(expected[0]) if expected[0].dim() else 1
        if len(expected) != len(found):
            self._fail(f"{len(found)} outputs for {len(expected)}")
        for place, (ours, theirs) in enumerate(zip(expected, found, strict=False)):
            self._values(f"output {place}" if place else "the output", ours, theirs)
        if is_logits(expected[0]) and found and found[0].shape == expected[0].shape:
            self._classes(expected[0], found[0], target)
        self.batch, self.samples = max(self.batch, size), self.samples + size

    def _values(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        if ours.shape != theirs.shape:
            self._fail(f"{name} is {tuple(theirs.shape)} for {tuple(ours.shape)}")
            return
        if not ours.numel():
            return
        if ours.dtype != theirs.dtype:
            self._fail(f"{name} is {theirs.dtype} for {ours.dtype}")
            return
        finite = ours.isfinite()
        self.values, self.finite = self.values + ours.numel(), self.finite + int(finite.sum())
        alike = torch.isclose(ours[~finite], theirs[~finite], equal_nan=True)
        if not torch.equal(finite, theirs.isfinite()) or not bool(alike.all()):
            self._fail(f"{name} is infinite or NaN elsewhere")
            return
        if not bool(finite.any()):
            return
        ours, theirs = ours[finite], theirs[finite]
        allowed = 0.0
        if _has_fractions(ours):
            allowed = TOLERANCE.get(ours.dtype, 1e-2) * max(float(ours.abs().max()), 1e-3)
        difference = _largest_difference(ours, theirs)
        worse = difference / allowed if allowed else float(difference > 0) * torch.inf
        worse = worse if difference else 0.0
        if worse > self.worst:
            self.worst, self.difference, self.allowed = worse, difference, allowed
        if worse > 1 and self.kind == "float32":
            self._fail(f"{name} differs by {difference:.1e}")

    def _classes(self, ours: Tensor, theirs: Tensor, target: Tensor | None) -> None:
        by_model, by_file = ours.argmax(1), theirs.argmax(1)
        self.logits += len(ours)
        for row in (by_model != by_file).nonzero()[:, 0].tolist():
            first, second = ours[row].double().topk(2).values.tolist()
            gap, model, file = first - second, int(by_model[row]), int(by_file[row])
            self.differs.append(Differs(self.samples + row, model, file, gap, gap <= TIE))
        if target is not None and target.shape == by_file.shape and not target.is_floating_point():
            target = target.cpu()
            self.judged += len(target)
            self.right_model += int((by_model == target).sum())
            self.right_file += int((by_file == target).sum())

    def _fail(self, why: str) -> None:
        self.wrong = self.wrong or why

    @property
    def agreement(self) -> float | None:
        """Share of the samples with the same top-1."""
        return 1 - len(self.differs) / self.logits if self.logits else None

    def row(self) -> Verification:
        """The verdict."""
        wrong = self.wrong or (self._rounding() if self.kind == "float32" else self._coarse())
        if self.values and not self.finite:
            wrong = wrong or "no output is finite, so nothing was compared"
        return Verification(
            self.compared,
            self.batch,
            self.samples,
            self.kind,
            self.difference,
            self.allowed,
            self.agreement,
            not wrong,
            wrong,
        )

    def _rounding(self) -> str:
        flips = sum(not each.tie for each in self.differs)
        return f"{flips} samples in another class" if flips else ""

    def _coarse(self) -> str:
        if self.compared == "example":
            return ""
        if self.judged:
            lost = (self.right_model - self.right_file) / self.judged
            told, most = f"it loses {100 * lost:.1f} points of accuracy", MOST_LOST
        else:
            lost = len(self.differs) / self.logits if self.logits else 0.0
            told, most = f"{lost:.1%} of the samples in another class", MOST_CHANGED
        return f"{told}, of {100 * most:g} allowed" if lost > most else ""


def _has_fractions(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex()


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    if torch.equal(ours, theirs):
        return 0.0
    wide = torch.complex128 if ours.is_complex() else torch.float64
    found = float((ours.to(wide) - theirs.to(wide)).abs().max())
    # float64 has no digits for the last ones of an int64.
    return found if _has_fractions(ours) else max(found, 1.0)


def is_logits(output: Tensor) -> bool:
    """Whether a largest one of its values is a class."""
    return output.dim() == 2 and output.shape[1] > 1 and output.is_floating_point()
