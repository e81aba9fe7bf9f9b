"""What a command is given to check: a model of the user's by name, and batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spiritlevel.catalogue import spoken
from spiritlevel.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from spiritlevel import data
    from spiritlevel.data import Prepared

__all__ = [
    "Builder",
    "Fed",
    "Images",
    "Subject",
    "builder",
    "moved",
    "named_loader",
    "read_images",
    "trained_on",
]

_SEED = 0
"""Of the order of the images: the same batches in every run."""


@dataclass(frozen=True)
class Images:
    """Training images in batches, in one random order, as often as they are asked for."""

    prepared: Prepared
    rows: tuple[Tensor, ...]
    name: str
    fed: int
    """How many images that are."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows:
            yield self.prepared.train_x[rows], self.prepared.train_y[rows]


def read_images(
    spec: str,
    *,
    image_size: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    most: int,
) -> Images:
    """At most `most` batches of the training images. Raises UsageError and MissingExtra."""
    import torch

    from spiritlevel.data import batches, load, prepare

    images = load(spec, seed=_SEED, image_size=image_size)
    prepared = prepare(images, mean=mean, std=std)
    n = len(prepared.train_y)
    steps = max(1, min(most, n // max(batch_size, 1)))
    generator = torch.Generator().manual_seed(_SEED)
    rows = tuple(batches(n, batch_size, steps, generator=generator))
    return Images(prepared, rows, images.name, steps * batch_size, images.classes)


def named_loader(spec: str) -> tuple[Any, str]:
    """The user's own batches: "pkg.module:loader", an iterable or a function that returns one.

    With it, where it stands. Raises UsageError.
    """
    from spiritlevel.study import theirs
    from spiritlevel.study.named import named

    found, root = named(spec, what="loader", wanted="an iterable of batches there")
    place = spec
    if callable(found) and not hasattr(found, "__iter__"):
        place = theirs.place(*theirs.source(found), spoken())
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"got {theirs.told(error)} from loader {spec}{theirs.where(error, root)}, called "
                "without arguments; wanted an iterable of batches. Put that right and run again"
            ) from error
    if not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise UsageError(
            f"got loader {spec}, which is {theirs.a(found)}; wanted an iterable of batches, as a "
            "DataLoader, or a function that returns one"
        )
    return found, place


@dataclass(frozen=True)
class Subject:
    """A model, and the line of the code that builds it."""

    model: nn.Module
    spec: str
    source: tuple[Path, int] | None = None


class Fed(Protocol):
    """What a model is built for: `data.Prepared` and `data.Preprocessing` tell it."""

    @property
    def num_classes(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> int:
        """Pixels a side."""


@dataclass(frozen=True)
class Builder:
    """What builds the model, which has not run yet."""

    spec: str
    factory: Any = None
    """`study.factory.Factory`; None: it is one of `spiritlevel.list_models()`."""

    def told(self) -> str | None:
        """A sentence that names the code of the user's that is about to run."""
        return None if self.factory is None else str(self.factory.told())

    def build(self, fed: Fed | None) -> Subject:
        """Raises UsageError, also for whatever the user's code raises."""
        given: dict[str, Any] = {}
        if fed is not None:
            given = {"num_classes": fed.num_classes, "in_chans": fed.channels}
            given["image_size"] = fed.size
        if self.factory is not None:
            source = (Path(self.factory.file), self.factory.line)
            return Subject(_called(self.factory, given), self.spec, source)
        from spiritlevel.models import create_model

        given.pop("image_size", None)
        return Subject(create_model(self.spec, **given), self.spec)


def trained_on(builder: Builder, images: data.Images, norm: str) -> nn.Module:
    """The user's model for these images, with `norm`: given to its factory, or converted.

    Raises UsageError, also for whatever the user's code raises.
    """
    from spiritlevel.surgery import convert

    given: dict[str, Any] = {"num_classes": len(images.classes), "in_chans": images.channels}
    given |= {"image_size": images.size, "norm": norm}
    model = _called(builder.factory, given)
    takes = inspect.signature(builder.factory.function).parameters
    return model if norm == "batch" or "norm" in takes else convert(model, norm)


def builder(spec: str) -> Builder:
    """By pkg.module:factory, or the name of one of our models. Raises UsageError."""
    from spiritlevel.models import list_models
    from spiritlevel.study.factory import load_factory

    if ":" in spec:
        return Builder(spec, load_factory(spec))
    if spec in list_models():
        return Builder(spec)
    hint = did_you_mean(spec, list_models())
    raise UsageError(
        f"got model {spec!r}; wanted pkg.module:factory, as my.models:build, or one of: "
        f"{', '.join(list_models())}.{hint}"
    )


def moved(model: nn.Module, device: str, option: str) -> torch.device:
    """Where the model then is. Raises UsageError, which names the `option`."""
    import torch

    try:
        if device == "meta":
            raise RuntimeError("nothing is computed there")
        model.to(device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(
            f"got {option} {device}, where the model cannot go ({error}); wanted a device "
            "that is here, as cpu"
        ) from error


def _called(factory: Any, given: dict[str, Any]) -> nn.Module:
    from torch import nn

    from spiritlevel.study import theirs

    arguments = _arguments(factory, given)
    where = f"{factory.spec} ({theirs.place(factory.file, factory.line)})"
    try:
        model = factory.function(**arguments)
    except (Exception, SystemExit) as error:
        shown = ", ".join(
            f"{name}={'...' if callable(value) else repr(value)}"
            for name, value in arguments.items()
        )
        raise UsageError(
            f"got {theirs.told(error)} from {where}"
            f"{theirs.where(error, factory.folder, factory.file)}, "
            f"called as {factory.name}({shown}); wanted a model. Put that right and run again"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"got {theirs.a(model)} from {where}; wanted a torch.nn.Module. Let it return one"
        )
    return model


_SAME = {"classes": "num_classes", "in_channels": "in_chans", "img_size": "image_size"}


def _arguments(factory: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What the signature asks for: of the images what is known of them, a norm where it must be."""
    from spiritlevel.nn import norm_layer

    try:
        signature = inspect.signature(factory.function)
    except (TypeError, ValueError):
        return {}
    found, lacking = dict[str, Any](), []
    for parameter in signature.parameters.values():
        name = _SAME.get(parameter.name, parameter.name)
        if parameter.kind is parameter.VAR_KEYWORD and "num_classes" in given:
            found.setdefault("num_classes", given["num_classes"])
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif name in given:
            found[parameter.name] = given[name]
        elif parameter.default is not parameter.empty:
            continue
        elif name == "norm":
            found["norm"] = "batch"
        elif name == "norm_layer":
            found["norm_layer"] = norm_layer("batch")
        else:
            lacking.append(parameter.name)
    if lacking:
        raise UsageError(
            f"got {factory.spec}, whose signature {factory.name}{signature} wants "
            f"{', '.join(lacking)}; a check gives norm or norm_layer, and with --data num_classes, "
            f"in_chans and image_size. Give --data, or {', '.join(lacking)} a default"
        )
    if {"classes", "num_classes"} <= found.keys():
        del found["num_classes"]  # by **options; it has a name of its own for them
    return found
