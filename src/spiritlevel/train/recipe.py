"""How to train, as data: everything about a run but the model and the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from spiritlevel.errors import UsageError
from spiritlevel.train.typed import refuse_unknown, type_fields

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Rates are per update, times in epochs. Raises UsageError for what cannot be.

    `Recipe.from_dict(recipe.to_dict())` is the recipe again, through JSON or TOML too.
    """

    lr: float
    """The largest learning rate: that after the warm-up."""
    epochs: int
    batch_size: int
    """Images of one update, on all devices together."""
    optimizer: str = "sgd"
    """sgd, adamw, or rmsprop: TensorFlow's, as `RMSpropTF` has it."""
    momentum: float = 0.9
    """Of sgd and rmsprop."""
    nesterov: bool = False
    """Of sgd."""
    eps: float = 1e-8
    """Of adamw and rmsprop."""
    weight_decay: float = 0.0
    """For some parameters only: see `parameter_groups`. Decoupled from the gradient in adamw."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike (Szegedy et al. 2016, section 7)."""
    warmup_epochs: float = 0.0
    """The rate rises linearly for so long."""
    warmup_lr: float = 0.0
    """The rate it rises from."""
    schedule: str = "cosine"
    """cosine: to 0 at the end. steps: times `gamma` at each milestone. periodic: times `gamma`
    each `period` epochs."""
    milestones: tuple[float, ...] = ()
    """Epochs, for steps. None: the rate stays."""
    period: float = 0.0
    """Epochs, for periodic."""
    gamma: float = 0.1
    ema_decay: float = 0.0
    """Of the average of the weights: see `averaged`. 0: none is kept."""
    dropout: float = 0.0
    """Before the classifier: the `drop_rate` that the model is to be created with."""
    init: str = "torch"
    """torch: the weights as the layers drew them. he: as `models.init_he_` draws them."""
    clip_norm: float = 0.0
    """The norm that the gradient of all parameters is shortened to. 0: it is not."""
    accumulate: int = 1
    """Passes that an update is made of, each with its share of the batch. Norms see one pass."""
    mixup: float = 0.0
    """Alpha of mixup: see `mix`. 0: none."""
    cutmix: float = 0.0
    """Alpha of CutMix: see `mix`. 0: none."""

    def __post_init__(self) -> None:
        type_fields(self, _KINDS, _refusal)
        for name, (wanted, holds) in _RULES.items():
            if not holds(getattr(self, name)):
                raise _refusal(name, getattr(self, name), wanted)
        self._check_together()

    def _check_together(self) -> None:
        """What holds of fields of which each alone is sound."""
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise _refusal("nesterov", True, "false, or sgd with momentum above 0")
        if not self.warmup_epochs < self.epochs:
            wanted = f"less than the {self.epochs} epochs of the run"
            raise _refusal("warmup_epochs", self.warmup_epochs, wanted)
        if self.warmup_lr > self.lr:
            raise _refusal("warmup_lr", self.warmup_lr, f"at most lr, {self.lr:g}")
        if self.milestones and self.schedule != "steps":
            wanted = f"none with schedule {self.schedule!r}, or schedule 'steps'"
            raise _refusal("milestones", self.milestones, wanted)
        if self.milestones and not self.warmup_epochs <= self.milestones[0]:
            wanted = f"epochs after the warm-up's {self.warmup_epochs:g}"
            raise _refusal("milestones", self.milestones, wanted)
        if self.milestones and not self.milestones[-1] < self.epochs:
            wanted = f"epochs before the last, {self.epochs}"
            raise _refusal("milestones", self.milestones, wanted)
        if bool(self.period) is not (self.schedule == "periodic"):
            raise _refusal("period", self.period, "above 0 with schedule 'periodic', else 0")
        if self.batch_size % self.accumulate:
            wanted = f"a divisor of the batch size, {self.batch_size}"
            raise _refusal("accumulate", self.accumulate, wanted)

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON or TOML."""
        return asdict(self) | {"milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe of these fields; others have their defaults. Raises UsageError."""
        if not isinstance(values, Mapping):
            raise UsageError(f"got {values!r} for a recipe; wanted fields and their values")
        refuse_unknown(values, tuple(_KINDS), "a recipe")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise UsageError(
                f"got a recipe without {', '.join(missing)}; wanted every field that has no "
                "default: lr, epochs and batch_size"
            )
        return cls(**values)


_KINDS: Mapping[str, str] = {f.name: str(f.type) for f in fields(Recipe)}
"""Field -> its type, as it is written above."""


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of: {', '.join(names)}", lambda value: value in names


def _whole(low: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of {low} or more", lambda value: bool(value >= low)


_POSITIVE = "a finite number above 0", lambda value: bool(0 < value < math.inf)
_NOT_NEGATIVE = "a finite number of 0 or more", lambda value: bool(0 <= value < math.inf)
_SHARE = "a number from 0 to below 1", lambda value: bool(0 <= value < 1)

_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": _POSITIVE,
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "optimizer": _one_of("sgd", "adamw", "rmsprop"),
    "momentum": _SHARE,
    "eps": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "label_smoothing": _SHARE,
    "warmup_epochs": _NOT_NEGATIVE,
    "warmup_lr": _NOT_NEGATIVE,
    "schedule": _one_of("cosine", "steps", "periodic"),
    "milestones": (
        "epochs above 0, each later than the one before",
        lambda value: all(a < b < math.inf for a, b in zip((0.0, *value), value, strict=False)),
    ),
    "period": _NOT_NEGATIVE,
    "gamma": ("a number above 0, at most 1", lambda value: bool(0 < value <= 1)),
    "ema_decay": _SHARE,
    "dropout": _SHARE,
    "init": _one_of("torch", "he"),
    "clip_norm": _NOT_NEGATIVE,
    "accumulate": _whole(1),
    "mixup": _NOT_NEGATIVE,
    "cutmix": _NOT_NEGATIVE,
}


def _refusal(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"got {name} = {value!r} in a recipe; wanted {wanted}")
