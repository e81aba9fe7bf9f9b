"""What a file says of itself, in its own metadata: under `spiritlevel.*` keys, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from spiritlevel.errors import UsageError

__all__ = ["PREFIX", "Metadata", "Normalization", "as_normalization"]

PREFIX = "spiritlevel."


@dataclass(frozen=True)
class Normalization:
    """How an image becomes the model's input: `(pixel / 255 - mean) / std`, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    """Pixels a side."""
    channels: str = "RGB"
    """Their order; `grey` for one."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Of a pixel before the mean is taken off."""
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        if not all(isinstance(each, tuple) for each in (self.mean, self.std, self.value_range)):
            raise UsageError(
                f"got a normalization with mean {self.mean!r}, std {self.std!r} and value_range "
                f"{self.value_range!r}; wanted tuples of numbers, as mean=(0.5,)"
            )
        size = self.size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UsageError(f"got a normalization with size {size!r}; wanted pixels, 1 or more")
        numbers = (*self.mean, *self.std, *self.value_range)
        if (
            not self.mean
            or len(self.mean) != len(self.std)
            or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
            or not all(n > 0 for n in self.std)
        ):
            raise UsageError(
                f"got a normalization with mean {self.mean} and std {self.std}; wanted as many "
                "finite numbers in either, one a channel, and those of std above 0"
            )


@dataclass(frozen=True)
class Metadata:
    """All that a file says beside its numbers."""

    classes: tuple[str, ...] | None = None
    """The name of each output, in their order."""
    normalization: Normalization | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the model, whether it was recalibrated, the batch norms folded."""
    versions: Mapping[str, str | int] = field(default_factory=dict)

    def with_versions(self, **versions: str | int) -> Metadata:
        """The same, with what else it was made by."""
        return Metadata(
            self.classes, self.normalization, self.recipe, {**self.versions, **versions}
        )

    def to_strings(self) -> dict[str, str]:
        """Keys of the file's own metadata -> JSON. Raises UsageError for what JSON cannot hold."""
        told = {key: value for key, value in asdict(self).items() if value is not None}
        return {f"{PREFIX}{name}": _as_json(name, value) for name, value in told.items()}

    @classmethod
    def from_strings(cls, found: Mapping[str, str]) -> Metadata:
        """What `to_strings` wrote; without what is not there, or is not as we write it."""
        told: dict[str, Any] = {}
        for name in ("classes", "normalization", "recipe", "versions"):
            try:
                told[name] = json.loads(found[PREFIX + name])
            except (KeyError, ValueError, TypeError, RecursionError):
                continue
        return cls(
            _strings(told.get("classes")),
            _normalization(told.get("normalization")),
            _mapping(told.get("recipe")),
            _mapping(told.get("versions")),
        )


def _as_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"got metadata that JSON cannot hold, in its {name} ({error}); wanted finite numbers, "
            "strings, lists and dicts"
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return None


def _normalization(value: Any) -> Normalization | None:
    try:
        return as_normalization(value)
    except UsageError:
        return None


def as_normalization(value: Any) -> Normalization | None:
    """From a dict of the same fields, too. Raises UsageError."""
    if value is None or isinstance(value, Normalization):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(
            f"got normalization={value!r}; wanted a Normalization or a dict with its fields, as "
            "dict(mean=(0.5,), std=(0.25,))"
        )
    given: dict[str, Any] = {
        name: tuple(each) if isinstance(each, Iterable) and not isinstance(each, str) else each
        for name, each in value.items()
    }
    try:
        return Normalization(**given)
    except TypeError as error:
        raise UsageError(
            f"got a normalization of {', '.join(map(str, value))} ({error}); wanted mean and std, "
            "and of size, channels, value_range and layout what is known"
        ) from error
