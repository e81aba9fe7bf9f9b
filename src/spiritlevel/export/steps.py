"""Copy, recalibrate, fold, write, run, compare; and the file is there only if it is right."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from spiritlevel.errors import ExportError, UsageError
from spiritlevel.export.example import Example, read_example
from spiritlevel.export.metadata import Metadata, Normalization, as_normalization
from spiritlevel.export.place import drafted
from spiritlevel.export.report import ExportReport
from spiritlevel.export.runtimes import Runtime
from spiritlevel.export.subject import copied, examined
from spiritlevel.export.verify import calls_of, verified
from spiritlevel.files import refuse_unwritable
from spiritlevel.lent.feeding import Forward, Progress, drawn, refuse_one, take, targets
from spiritlevel.lent.norms import batch_norms

__all__ = ["FORMATS", "export"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "int8": ".onnx"}
"""What `to` may be, and how such files are called."""


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    to: str | None = None,
    batches: Iterable[Any] | None = None,
    recalibrate: bool = False,
    calibration: Iterable[Any] | None = None,
    forward: Forward | None = None,
    precision: str = "float32",
    classes: Iterable[str] | None = None,
    normalization: Normalization | Mapping[str, Any] | None = None,
    recipe: Any = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the model, in eval and with its batch norms folded, to a file that is proven right.

    `example` is a tensor, a tuple of the model's inputs or a dict of them by name; its batch may be
    1. `to` is "onnx", "pt2", "openvino" or "int8", by default what the suffix says: .onnx, .pt2 or
    .xml. The file takes any batch. It is opened and run at two batch sizes on the example, and on
    all of `batches` (as `sl.check` takes them, with `forward`), and held against the model in eval
    as `compare` says. `recalibrate=True` gives what is exported exact population statistics first,
    of `calibration` (default: `batches`), which int8 takes its ranges from, too. `classes`,
    `normalization` and `recipe` go into the file.

    The model is not changed. Raises UsageError for what cannot be exported, such as a batch norm
    that normalises by the batch in eval; ExportError, whose `report` tells more, where the file is
    not right: then nothing is left behind, and a file that was there is as it was; MissingExtra.
    """
    target = Path(path)
    to = _format(target, to)
    _check(to, precision, recalibrate and batches is None and calibration is None)
    told = Metadata(_classes(classes), as_normalization(normalization))
    refuse_unwritable(target)
    tell = progress or (lambda what, done, total: None)
    batches, calibration = _held(batches), _held(calibration)
    original = copied(model)
    given = read_example(original, example)
    if recalibrate:
        tell("recalibrating", 0, 1)
        _recalibrate(original, batches if calibration is None else calibration, forward)
    original.eval().requires_grad_(False)
    notes = examined(original, given, told)
    traced = given.of_batch(max(2, given.batch))
    tell("folding", 0, 1)
    folded = _folded(original, traced)
    recipe = _recipe(model, original, folded, recalibrate, recipe)
    told = replace(told, recipe=recipe, versions=_versions())
    options: dict[str, Any] = {}
    if to == "int8":
        options["calibration"], options["targets"] = _inputs(
            original, batches if calibration is None else calibration, forward
        )
        options["on_batch"] = tell
    if to == "openvino":
        options["precision"] = precision
    with drafted(target) as draft:
        tell(f"writing {target.name}", 0, 1)
        runtime = _writer(to)(folded, draft, traced, told, **options)
        report = verified(runtime, original, traced, batches, forward, tell)
        report = replace(
            report,
            path=str(path),
            format=to,
            bytes=sum(file.stat().st_size for file in draft.parent.iterdir()),
            folded=recipe["folded"],
            left=tuple(recipe["left"]),
            recalibrated=recalibrate,
            notes=(*notes, *report.notes),
        )
        if not report.ok:
            raise ExportError(_told(report), report=report)
    return report


def _format(path: Path, to: str | None) -> str:
    if to is None:
        to = next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
    elif to in FORMATS and path.suffix != FORMATS[to]:
        raise UsageError(
            f"got {path} for {to}; wanted a name that ends in {FORMATS[to]}. Rename it, or leave "
            "to= out"
        )
    if to not in FORMATS:
        wanted = ", ".join(f"{name} ({suffix})" for name, suffix in FORMATS.items())
        raise UsageError(
            f"got {path} to export to{f' and to={to!r}' if to else ''}; wanted a name that ends in "
            f".onnx, .pt2 or .xml, and to=, where it is given, one of: {wanted}"
        )
    return to


def _check(to: str, precision: str, without_data: bool) -> None:
    """Raises UsageError for options that do not go together."""
    if without_data:
        raise UsageError(
            "got recalibrate=True without data; wanted batches=, or calibration=, to take the "
            "statistics of"
        )
    if precision not in ("float32", "bfloat16") or (precision != "float32" and to != "openvino"):
        raise UsageError(
            f"got precision={precision!r} for {to}; wanted float32, or bfloat16 and to='openvino'"
        )


def _writer(to: str) -> Callable[..., Runtime]:
    """Loaded when it is asked for, since each format has packages of its own."""
    name = {"pt2": "program"}.get(to, to)
    module = importlib.import_module(f"spiritlevel.export.{name}")
    return cast(Callable[..., Runtime], module.write)


def _held(batches: Iterable[Any] | None) -> Iterable[Any] | None:
    """What can be read more than once. Raises UsageError."""
    if batches is not None:
        refuse_one(batches)
    return list(drawn(batches)) if isinstance(batches, Iterator) else batches


def _classes(classes: Iterable[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    names = tuple(classes) if isinstance(classes, Iterable) else ()
    if not names or isinstance(classes, str) or not all(isinstance(each, str) for each in names):
        raise UsageError(f"got classes={classes!r}; wanted a name for each, as ['cat', 'dog']")
    return names


def _recalibrate(model: nn.Module, batches: Any, forward: Forward | None) -> None:
    """In the modes that it has, by which frozen layers are told."""
    from spiritlevel.surgery.recalibrate import recalibrate

    recalibrate(model, batches, forward=forward)


def _folded(model: nn.Module, given: Example) -> nn.Module:
    from spiritlevel.surgery.fold import fold

    with torch.no_grad():
        folded: nn.Module = fold(model, given.as_given)
    return folded.eval()


def _recipe(
    model: nn.Module, original: nn.Module, folded: nn.Module, recalibrated: bool, given: Any
) -> dict[str, Any]:
    before, left = (batch_norms(each) for each in (original, folded))
    told: dict[str, Any] = {
        "model": getattr(original, "made_as", None) or type(original).__name__,
        "recalibrated": recalibrated,
        "folded": len(before) - len(left),
        "left": list(left),
    }
    if given is not None:
        held = dataclasses.is_dataclass(given) and not isinstance(given, type)
        told["training"] = dataclasses.asdict(given) if held else given
    return told


def _versions() -> dict[str, str | int]:
    from spiritlevel import __version__

    return {"spiritlevel": __version__, "torch": str(torch.__version__)}


def _inputs(
    model: nn.Module, batches: Any, forward: Forward | None
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor | None]]:
    """What the model is given for the first batches, by position, and their targets: for int8."""
    if batches is None:
        raise UsageError(
            "got int8 without data; wanted calibration=, or batches=, to take the ranges of its "
            "values from"
        )
    inputs: list[list[torch.Tensor]] = []
    wanted: list[torch.Tensor | None] = []
    for batch in take(batches).batches:
        calls = calls_of(model, batch, forward)
        inputs += [given for given, _ in calls]
        wanted += [targets(batch)] if len(calls) == 1 else [None] * len(calls)
    return inputs, wanted


def _told(report: ExportReport) -> str:
    wrong = [
        f"on {row.compared} of batch {row.batch}, {row.why}" for row in report.rows if not row.ok
    ]
    article = "a" if report.format == "pt2" else "an"
    return (
        f"got {article} {report.format} file that gives other numbers in {report.runtime} than "
        f"the model does: {'; '.join(wrong)}. Wanted the same; nothing was written to "
        f"{report.path}. Does the model keep a count, draw at random, or do other things for "
        "other inputs or batches?"
    )
