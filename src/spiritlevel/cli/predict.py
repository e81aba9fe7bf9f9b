"""`spiritlevel predict`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended, image_options, trained
from spiritlevel.cli.aside import told_aside
from spiritlevel.cli.lines import tell
from spiritlevel.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from spiritlevel.data import Preprocessing

__all__ = ["predict"]

_BATCH = 64
_MODEL, _OUTPUT = "Model", "Output"


def predict(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The folder of a run, or a file of weights."),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders of them, or - for paths from stdin, one a line.",
        ),
    ],
    top: Annotated[
        int, typer.Option(help="Classes to tell, the likeliest first.", rich_help_panel=_OUTPUT)
    ] = 3,
    weights: Annotated[
        Literal["best", "last"],
        typer.Option(help="Which of a run's.", rich_help_panel=_MODEL),
    ] = "best",
    model: Annotated[str | None, image_options.model(_MODEL)] = None,
    device: Annotated[str | None, image_options.device(_MODEL)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line.", rich_help_panel=_OUTPUT)
    ] = False,
) -> int:
    """What a trained network sees in images: its likeliest classes, with their probabilities.

    Images are fed as the run has kept it. Exit 0: all are told; 1: some could not be read, which
    stderr names; 2: none could, or wrong use.
    """
    if top < 1:
        raise UsageError(f"got --top {top}; wanted 1 or more")
    found = trained.Weights.of(run, (f"{weights}.safetensors",))
    fed = found.preprocessing
    if fed is None:
        raise UsageError(
            f"got weights {found.file or run} that do not tell how images are fed; wanted those "
            "of a run, or of spiritlevel.models.save_weights(..., preprocessing=...)"
        )
    with told_aside():
        subject = found.model(model, fed, found.told_by)
        place = trained.moved(subject.model, device)
        subject.model.eval()
    if sys.stderr.isatty():
        told = say(
            "terminal.predict.model",
            name=subject.spec,
            weights=found.file or run,
            data=fed.data,
            size=fed.size,
        )
        tell(told)
    done = failed = 0
    for files, x, errors in _batches(_named(images), fed):
        for error in errors:
            tell(f"spiritlevel: {error}")
        answers = _answers(subject.model, fed.apply(x).to(place), fed) if files else []
        for file, row in zip(files, answers, strict=True):
            if row is None:
                tell(f"spiritlevel: got {str(file)!r}, for which the logits are not finite, as NaN")
                failed += 1
            else:
                done += 1
                _print(file, row.topk(min(top, len(row))), fed.classes, as_json)
        sys.stdout.flush()
        failed += len(errors)
    if failed:
        tell(say("terminal.predict.failed", failed=failed, total=done + failed))
    return 0 if not failed else 1 if done else 2


def _named(images: Sequence[str]) -> Iterator[str]:
    for each in images:
        if each == "-":
            for line in sys.stdin.buffer:  # names need be no text
                if name := line.rstrip(b"\r\n"):
                    yield os.fsdecode(name)
        else:
            yield each


def _batches(
    names: Iterator[str], fed: Preprocessing
) -> Iterator[tuple[list[Path], Tensor, list[DataError]]]:
    """Files, their pixels uint8 (n, C, size, size), and what could not be read meanwhile."""
    import torch

    from spiritlevel.data.decode import decoded
    from spiritlevel.data.loose import loose

    files: list[Path] = []
    errors: list[DataError] = []
    x = torch.empty(_BATCH, fed.channels, fed.size, fed.size, dtype=torch.uint8)
    for each in loose(names):
        if ended:
            raise KeyboardInterrupt
        try:
            if isinstance(each, DataError):
                raise each
            x[len(files)] = decoded(each, fed.channels, fed.size)
            files.append(each)
        except DataError as error:
            errors.append(error)
        if len(files) == _BATCH or len(errors) == _BATCH:
            yield files, x[: len(files)], errors
            files, errors = [], []
    yield files, x[: len(files)], errors


def _answers(model: nn.Module, x: Tensor, fed: Preprocessing) -> list[Tensor | None]:
    """Of each image the probabilities float64 (C,), or None. Raises UsageError."""
    import torch

    from spiritlevel.lent.score import output_of

    with told_aside(), torch.no_grad():
        logits = output_of(model(x))
    if logits is None or logits.shape != (len(x), fed.num_classes):
        got = "no logits" if logits is None else f"logits {tuple(logits.shape)}"
        raise UsageError(
            f"got {got} from the model for {len(x)} images; wanted "
            f"{(len(x), fed.num_classes)}, for the classes that the weights tell"
        )
    rows = logits.double().cpu().softmax(1)
    return [row if bool(row.isfinite().all()) else None for row in rows]


def _print(
    file: Path, likeliest: torch.return_types.topk, classes: Sequence[str], as_json: bool
) -> None:
    from spiritlevel.cli.tables import one_line

    answers = [
        {"class": classes[i], "index": i, "probability": p}
        for i, p in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    ]
    if as_json:
        print(json.dumps({"file": str(file), "answers": answers}))
        return
    told = [
        say(
            "terminal.predict.answer",
            name=one_line(each["class"]),
            probability=each["probability"],
        )
        for each in answers
    ]
    name = one_line(str(file), None)
    print(say("terminal.predict.line", file=name, answers=", ".join(told)))
