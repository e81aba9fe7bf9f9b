"""`spiritlevel eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended, image_options, trained
from spiritlevel.cli.aside import told_aside
from spiritlevel.cli.lines import printable, tell
from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from spiritlevel.data import Images, Pixels, Preprocessing
    from spiritlevel.train import Evaluation

__all__ = ["evaluate"]

_MODEL, _DATA, _OUTPUT = "Model", "Data", "Output"


def evaluate(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The folder of a run, or a file of weights."),
    ],
    data: Annotated[str | None, image_options.data(_DATA)] = None,
    split: Annotated[
        Literal["test", "train"],
        typer.Option(help="Which of its images.", rich_help_panel=_DATA),
    ] = "test",
    weights: Annotated[
        Literal["best", "last"],
        typer.Option(help="Which of a run's.", rich_help_panel=_MODEL),
    ] = "best",
    model: Annotated[str | None, image_options.model(_MODEL)] = None,
    device: Annotated[str | None, image_options.device(_MODEL)] = None,
    image_size: Annotated[int | None, image_options.image_size(_DATA)] = None,
    mean: Annotated[str | None, image_options.mean(_DATA)] = None,
    std: Annotated[str | None, image_options.std(_DATA)] = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", rich_help_panel=_DATA)] = 128,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all of it as JSON.", rich_help_panel=_OUTPUT)
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A file for the JSON.", rich_help_panel=_OUTPUT)
    ] = None,
) -> int:
    """How right a trained network is on images, class by class, and what it confuses.

    Images are brought to what the run was trained on, and classes matched by their names. Exit 0:
    evaluated; 2: wrong use.
    """
    from spiritlevel.cli.evaluation_report import print_evaluation, record
    from spiritlevel.files import refuse_unwritable, write_whole

    if data is None:
        raise UsageError("got no --data; wanted the images to evaluate on, as --data mnist5k")
    if batch_size < 1:
        raise UsageError(f"got --batch-size {batch_size}; wanted 1 or more")
    if out is not None:
        refuse_unwritable(out)
    found = trained.Weights.of(run, (f"{weights}.safetensors",))
    with told_aside():
        fed, images = _fed(found, data, image_size, mean, std)
        subject = found.model(model, fed, found.told_by)
        place = trained.moved(subject.model, device)
        x, y = _rows(images, fed, split)
        tell(say("terminal.eval.model", name=subject.spec, weights=found.file or run))
        both = _evaluated(subject.model, x, y, fed.num_classes, batch_size, place)
    told = record(*both, fed=fed, batch_size=batch_size) | {
        "model": subject.spec,
        "weights": str(found.file or run),
        "data": images.name,
        "split": split,
    }
    if out is not None:
        write_whole(out, json.dumps(told, indent=2) + "\n")
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        print_evaluation(told)
    return 0


def _fed(
    found: trained.Weights, data: str, size: int | None, mean: str | None, std: str | None
) -> tuple[Preprocessing, Images]:
    """How the model is fed, and the images with the labels that it knows. Raises UsageError."""
    from spiritlevel.cli.study import numbers
    from spiritlevel.data import Preprocessing, load, prepare

    stored = found.preprocessing
    if stored is not None:
        given = {"mean": numbers("--mean", mean, float), "std": numbers("--std", std, float)}
        changed = {name: tuple(value) for name, value in given.items() if value is not None}
        fed = replace(stored, size=stored.size if size is None else size, **changed)  # type: ignore[arg-type]
        images = load(data, image_size=fed.size)
        return fed, _in_channels(_as_classes(images, fed.classes), fed.channels)
    images = load(data, image_size=size)
    centre, deviation = numbers("--mean", mean, float), numbers("--std", std, float)
    prepared = prepare(images, mean=centre, std=deviation)
    if centre is None or deviation is None:
        tell(say("terminal.eval.measured", name=images.name))
    return Preprocessing.of(prepared, images), images


def _as_classes(images: Images, classes: Sequence[str]) -> Images:
    """With labels by the place of each name in `classes`, the run's. Raises UsageError."""
    import torch

    own = images.classes
    if own == tuple(classes):
        return images
    unknown = [name for name in own if name not in classes]
    if unknown or len({*classes}) < len(classes) or len({*own}) < len(own):
        raise UsageError(
            f"got data {images.name} with the classes {_listed(own)}, and a run with "
            f"{_listed(classes)}; wanted names of the run's own, in any order. Rename the folders "
            "of the images, or give the data that it was trained on"
        )
    tell(
        say(
            "terminal.eval.matched",
            name=images.name,
            count=len(own),
            classes=len(classes),
        )
    )
    place = torch.tensor([classes.index(name) for name in own])
    return replace(
        images,
        train_y=place[images.train_y],
        test_y=place[images.test_y],
        classes=tuple(classes),
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    from spiritlevel.cli.tables import one_line

    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def _in_channels(images: Images, channels: int) -> Images:
    """Grey images for a network of colour ones, as RGB. Raises UsageError for the reverse."""
    if images.channels == channels:
        return images
    if channels == 1:
        raise UsageError(
            f"got data {images.name} with {images.channels} channels, and a run of grey images; "
            "wanted grey ones"
        )
    tell(say("terminal.eval.grey", name=images.name))
    as_rgb = {n: getattr(images, n).expand(-1, channels, -1, -1) for n in ("train_x", "test_x")}
    return replace(images, **as_rgb)


def _rows(images: Images, fed: Preprocessing, split: str) -> tuple[Pixels, Tensor]:
    from spiritlevel.data import prepare

    prepared = prepare(images, mean=fed.mean, std=fed.std)
    if split == "train":
        return prepared.train_x, prepared.train_y
    return prepared.test_x, prepared.test_y


def _evaluated(
    model: nn.Module,
    x: Pixels,
    y: Tensor,
    num_classes: int,
    batch_size: int,
    device: torch.device,
) -> tuple[Evaluation, Evaluation | None]:
    """By running statistics, and by those of each batch where it has batch norms."""
    from spiritlevel.cli.progress import Share
    from spiritlevel.lent.norms import batch_norms
    from spiritlevel.train import evaluate as evaluation

    modes = [False, True] if batch_norms(model) and len(y) > 1 else [False]
    found: list[Evaluation] = []
    done, total = 0, len(modes) * -(-len(y) // batch_size)
    with Share() as bar:

        def keep_going() -> None:
            nonlocal done
            done += 1
            bar.tell(done / total, say("terminal.eval.evaluating"))
            if ended:
                raise KeyboardInterrupt

        for training in modes:
            try:
                each = evaluation(
                    model,
                    x,
                    y,
                    num_classes=num_classes,
                    batch_size=batch_size,
                    training=training,
                    device=device,
                    keep_going=keep_going,
                )
            except (ValueError, RuntimeError) as error:
                if not training or isinstance(error, UsageError):
                    raise
                # A batch of one value a channel has no variance, and norms say so in many ways.
                tell(say("terminal.eval.no_batch_statistics", error=printable(str(error))))
                break
            found.append(each)
    return found[0], found[1] if len(found) > 1 else None
