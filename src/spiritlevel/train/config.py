"""All that decides a run, as data: through TOML and back.

RUN/config.toml holds every field, so that `spiritlevel train --config RUN/config.toml` is that run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from spiritlevel.errors import UsageError, require
from spiritlevel.train.feed import AUGMENTS
from spiritlevel.train.recipe import Recipe
from spiritlevel.train.recipes import published_recipe
from spiritlevel.train.typed import refuse_unknown, type_fields

__all__ = ["AMP", "Config", "house_recipe", "parse_toml", "read_toml", "stretched"]

AMP = ("none", "bf16", "fp16")
_STEMS = ("auto", "imagenet", "cifar")
_SMALL = 64
"""Pixels a side, below which a GhostNet's first layer halves too much."""


@dataclass(frozen=True)
class Config:
    """A run of `spiritlevel train`. Raises UsageError for what cannot be."""

    model: str
    """One of ours, or pkg.module:factory."""
    data: str
    """As `data.load` has it."""
    recipe: Recipe
    norm: str = "batch"
    stem: str = "auto"
    """imagenet, cifar, or auto: cifar below 64 pixels a side."""
    image_size: int = 0
    """Pixels a side. 0: the images' own, and at least 32."""
    mean: tuple[float, ...] = ()
    """Of each channel. Empty: measured on the training images."""
    std: tuple[float, ...] = ()
    augment: str = "none"
    """none, crop, or crop-flip: as `crop_and_flip`, for crop without the flips."""
    validation: float = 0.1
    """Share of the training images, of each class, that is not trained on but chooses the best
    weights. 0: none, and the best are the last. The test images choose nothing."""
    seed: int = 0
    device: str = "auto"
    amp: str = "none"
    """Mixed precision: none, bf16 or fp16."""
    channels_last: bool = True
    compile: bool = False
    probe: int = 0
    """Steps from sample to sample of the probe. 0: none."""
    check: bool = True
    """Whether the model is checked at the end."""
    save_every: float = 60.0
    """Seconds at most from checkpoint to checkpoint; one is written after each epoch, too."""

    def __post_init__(self) -> None:
        type_fields(self, _KINDS, _refusal)
        for name, (wanted, sound) in {
            "model": ("a name", bool(self.model)),
            "data": ("a source of images", bool(self.data)),
            "stem": (f"one of {', '.join(_STEMS)}", self.stem in _STEMS),
            "image_size": ("8 or more pixels, or 0", self.image_size == 0 or self.image_size >= 8),
            "augment": (f"one of {', '.join(AUGMENTS)}", self.augment in AUGMENTS),
            "validation": ("a share from 0 to 0.5", 0 <= self.validation <= 0.5),
            "seed": ("a whole number of 0 or more", 0 <= self.seed < 2**63),
            "amp": (f"one of {', '.join(AMP)}", self.amp in AMP),
            "probe": ("0 or more steps", self.probe >= 0),
            "save_every": ("0 or more seconds", self.save_every >= 0),
        }.items():
            if not sound:
                raise _refusal(name, getattr(self, name), wanted)

    def stem_for(self, side: int) -> str:
        """The stem for images of `side` pixels a side."""
        return ("cifar" if side < _SMALL else "imagenet") if self.stem == "auto" else self.stem

    def differs(self, other: Mapping[str, Any]) -> list[str]:
        """What of it decides the numbers of a run and is otherwise in `other`, of `to_dict`."""
        own, theirs = _flat(self.to_dict()), _flat(other)
        return [
            f"{name} = {theirs.get(name)!r}, not {own.get(name)!r}"
            for name in sorted(own.keys() | theirs.keys())
            if own.get(name) != theirs.get(name) and name not in _FREE
        ]

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON or TOML; the recipe's under `recipe`."""
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return told | {"recipe": self.recipe.to_dict()}

    def to_toml(self) -> str:
        """Raises MissingExtra."""
        head = "# spiritlevel train --config config.toml --out ANOTHER is this run again.\n"
        return head + str(require("tomli_w", extra="train").dumps(self.to_dict()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The run of these fields; others have their defaults. Raises UsageError."""
        refuse_unknown(values, _FIELDS, "a configuration")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise UsageError(
                f"got a run without {' and '.join(missing)}; wanted a model, images and a recipe, "
                "as in: spiritlevel train ghostnet_050 --data mnist5k"
            )
        recipe = values["recipe"]
        made = recipe if isinstance(recipe, Recipe) else Recipe.from_dict(recipe)
        return cls(**{**values, "recipe": made})


_FREE = ("device", "probe", "check", "save_every")
"""Fields that may change when a run goes on."""
_FIELDS = tuple(f.name for f in fields(Config))
_KINDS: Mapping[str, str] = {f.name: str(f.type) for f in fields(Config) if f.name != "recipe"}


def _refusal(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"got {name} = {value!r}; wanted {wanted}")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    recipe = values.get("recipe", {})
    return {k: v for k, v in values.items() if k != "recipe"} | {
        f"recipe.{name}": value for name, value in recipe.items()
    }


def house_recipe(epochs: int) -> Recipe:
    """Ours, for small images: SGD with momentum, a cosine after a warm-up, an averaged model."""
    Recipe(lr=0.1, epochs=epochs, batch_size=128)  # raises for what is no number of epochs
    return Recipe(
        lr=0.1,
        epochs=epochs,
        batch_size=128,
        nesterov=True,
        weight_decay=5e-4,
        label_smoothing=0.1,
        warmup_epochs=min(5.0, epochs / 5),
        ema_decay=0.999,
    )


def stretched(name: str, epochs: int) -> Recipe:
    """The published recipe, all of its times scaled to a run of `epochs`. Raises UsageError."""
    recipe = published_recipe(name)
    house_recipe(epochs)  # raises for what is no number of epochs
    by = epochs / recipe.epochs
    return replace(
        recipe,
        epochs=epochs,
        warmup_epochs=recipe.warmup_epochs * by,
        period=recipe.period * by,
        milestones=tuple(milestone * by for milestone in recipe.milestones),
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The fields of a file, unchecked. Raises UsageError for what is no TOML."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "bytes that are no UTF-8"
        raise UsageError(f"got {why} while reading {path}; wanted a TOML file") from error


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f'got {path}, which is no TOML ({error}); wanted lines such as: norm = "batch"'
        ) from error
