"""What was exported, what it was held against, and how far it is from that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spiritlevel.catalogue import columns, say

__all__ = ["Differs", "ExportReport", "Verification"]


@dataclass(frozen=True)
class Verification:
    """One comparison of the file's outputs with the model's."""

    compared: str
    """On what: "example" or "data"."""
    batch: int
    """Samples in the largest batch."""
    samples: int
    kind: str
    """How it is judged: "float32" by the tolerance, others by the accuracy that is left."""
    difference: float
    """The largest, of all output values."""
    tolerance: float
    """How large it may be: a share of the largest output of the batch it is in."""
    agreement: float | None
    """Share of the samples with the model's top-1; None where the output is no logits."""
    ok: bool
    why: str = ""
    """What is wrong, where it is not."""


@dataclass(frozen=True)
class Differs:
    """A sample of the data that the file puts into another class than the model does."""

    index: int
    """Its place in the data, from 0."""
    model: int
    """The class that the model finds."""
    file: int
    gap: float
    """Between the model's two largest logits."""
    tie: bool
    """They lie so close that rounding decides."""


@dataclass(frozen=True)
class ExportReport:
    """What `sl.export` did. `print` shows it as a table."""

    path: str
    format: str
    """onnx, pt2, openvino or int8."""
    runtime: str
    """What ran the file, with its version."""
    bytes: int
    """Of the file, and of what belongs to it."""
    rows: tuple[Verification, ...]
    differs: tuple[Differs, ...] = ()
    folded: int = 0
    """Batch norms that are in their neighbours now."""
    left: tuple[str, ...] = ()
    """Batch norms that are in the file, in eval, by name."""
    recalibrated: bool = False
    samples: int = 0
    """Of the data that have targets."""
    accuracy_model: float | None = None
    """Share of them that the model gets right; None without targets."""
    accuracy_file: float | None = None
    ms_model: float = 0.0
    """Median milliseconds of a sample at batch 1: the model in PyTorch, eager, as it was, on
    torch's own kernels; 0 where the file is not right."""
    ms_file: float = 0.0
    """The same of the file, taken in turns with the model."""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the file gives what the model does."""
        return all(row.ok for row in self.rows)

    @property
    def ties(self) -> tuple[Differs, ...]:
        """Samples whose class rounding decides."""
        return tuple(each for each in self.differs if each.tie)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """What is told beneath the table."""
        told = [_say("norms", folded=self.folded, left=len(self.left))]
        if self.left:
            told.append(_say("left", names=", ".join(self.left)))
        if self.recalibrated:
            told.append(_say("recalibrated"))
        if self.accuracy_model is not None and self.accuracy_file is not None:
            model, file = self.accuracy_model, self.accuracy_file
            told.append(_say("accuracy", samples=self.samples, model=model, file=file))
        if self.ok:
            told.append(_say("milliseconds", model=self.ms_model, file=self.ms_file))
        for each in self.differs[:_MOST]:
            line = _say("differs", **asdict(each))
            told.append(_say("tie", differs=line) if each.tie else line)
        if len(self.differs) > _MOST:
            told.append(_say("more", count=len(self.differs) - _MOST))
        return [*told, *self.notes]

    def title(self) -> str:
        """The file, and what ran it."""
        megabytes = self.bytes / 1e6
        return _say(
            "made", path=self.path, format=self.format, megabytes=megabytes, runtime=self.runtime
        )

    def cells(self) -> list[tuple[str, ...]]:
        """The table of the verification, its head first."""
        return [tuple(map(_say, _COLUMNS)), *(_cells(row) for row in self.rows)]

    def __str__(self) -> str:
        table = self.cells()
        widths = [max(map(columns, column)) for column in zip(*table, strict=True)]
        rows = [
            "  ".join(
                cell + " " * (width - columns(cell))
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in table
        ]
        return "\n".join([self.title(), "", *rows, "", *self.lines()])


_MOST = 10
"""Samples that are listed one by one; `differs` has all."""
_COLUMNS = ("on", "batch", "samples", "difference", "allowed", "agreement", "verdict")


def _cells(row: Verification) -> tuple[str, ...]:
    return (
        _say(row.compared),
        str(row.batch),
        f"{row.samples:,}",
        f"{row.difference:.1e}",
        f"{row.tolerance:.1e}" if row.kind == "float32" else _say("by_accuracy"),
        "" if row.agreement is None else f"{row.agreement:.2%}",
        _say("ok") if row.ok else _say("failed", why=row.why),
    )


def _say(key: str, **values: Any) -> str:
    return say(f"terminal.export.{key}", **values)
