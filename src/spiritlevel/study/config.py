"""What is asked of a study, and the presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args, get_origin, get_type_hints

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.nn import norm_layer

__all__ = ["PRESETS", "Asked", "Plan", "plan_epochs", "plan_study"]

LEAST_SIZE, MOST_SIZE = 32, 1024
"""Pixels a side: five halvings, and what a laptop holds."""
MOST_RATE = 1e6
SHORTEST = 22
"""Steps of a training run: its figures are means over the last twenty."""


@dataclass(frozen=True)
class Plan:
    """All that decides a study's cells; frozen into `config.json` before the first cell runs."""

    preset: str
    data: str = "mnist5k"
    networks: tuple[str, ...] = ()
    """On which each claim is judged; none: on the small network that shows it best."""
    seeds: tuple[int, ...] = (161, 162, 163)
    gap_seeds: tuple[int, ...] = (161, 162, 163, 164, 165, 166)
    """The effect of the noise on the gap is small: it needs more pairs than the others."""
    norms: tuple[str, ...] = ("none", "batch", "group:8")
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    threads: int = 1
    batch_size: int = 64
    image_size: int = 0
    """Pixels a side to which images are brought when they are read; 0: as the source has them."""
    mean: tuple[float, ...] = ()
    """Of the pixels in [0, 1], per channel, to standardise by; empty: the training images' own."""
    std: tuple[float, ...] = ()
    augment: bool = False
    """Random crops and flips while training."""
    # Sizes, in preset `quick` those whose trial runs gave clear measurements in seconds.
    size: int = 14
    """Pixels a side of what the networks are fed: larger images are averaged down to it."""
    sweep_steps: int = 140
    every: int = 20
    """Steps from one reading of a training network to the next."""
    landscape_steps: int = 100
    drift_steps: int = 500
    depth: int = 40
    width: int = 256
    deep_depth: int = 24
    deep_steps: int = 80
    gap_steps: int = 400
    gap_size: int = 14
    gap_target: float = 0.1
    """Training loss, nats, at which test losses are compared."""
    test_images: int = 4500
    """On which they are read."""
    noise_steps: int = 120
    noise_draws: int = 16
    ghost_model: str = "ghostnet_050"
    """The article's network, shown beside claims that are judged on smaller ones."""
    ghost_steps: int = 50

    @property
    def fed(self) -> dict[str, Any]:
        """How a cell's images are standardised and moved, where that was asked."""
        asked = {"mean": list(self.mean), "std": list(self.std), "augment": self.augment}
        return {name: value for name, value in asked.items() if value}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """Raises RecordsError for a plan of another version."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            odd = ", ".join(sorted(set(values) ^ known))
            raise RecordsError(
                f"got a run whose plan differs from this version's in: {odd}; "
                "wanted one of this version. "
                "Report it with the version that made it, or start a new run."
            )
        tuples: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        kinds = get_type_hints(cls)
        wrong = [name for name in known if not _alike(tuples[name], kinds[name])]
        wrong += [name for name in ("seeds", "gap_seeds", "norms", "lrs") if not tuples[name]]
        if wrong:
            raise RecordsError(
                f"got a plan whose {', '.join(sorted(set(wrong)))} is not what a run writes; "
                "wanted its config.json as it was: restore it, or start a new run"
            )
        return cls(**tuples)


def _alike(value: Any, kind: Any) -> bool:
    """Of the kind and, if a number, of a size that a run can have."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_alike(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and 0 <= value < 2**32
    return type(value) is kind and (kind is not int or 0 <= value < 2**32)


# `smoke` runs every kind of cell once in under a minute. One seed decides nothing, so every verdict
# that needs repetition is `inconclusive`.
PRESETS: dict[str, Plan] = {
    "quick": Plan("quick"),
    # Colour images of 32 px, about an hour on two cores.
    "standard": Plan(
        "standard",
        data="cifar10",
        networks=("small_vgg", "small_resnet", "ghostnet_050"),
        seeds=(171, 172, 173),
        gap_seeds=(171, 172, 173, 174, 175),
        size=32,
        sweep_steps=160,
        # Without a norm these images take three times the steps of digits to be learned at all.
        landscape_steps=300,
        gap_steps=800,
        gap_size=16,
        gap_target=0.5,
        test_images=2000,
        noise_draws=8,
    ),
    "smoke": Plan(
        "smoke",
        data="digits",
        seeds=(10,),
        gap_seeds=(10,),
        norms=("none", "batch"),
        lrs=(0.1,),
        sweep_steps=22,
        every=10,
        landscape_steps=20,
        drift_steps=40,
        depth=8,
        width=32,
        deep_depth=6,
        deep_steps=20,
        gap_steps=20,
        noise_steps=5,
        noise_draws=2,
        ghost_steps=2,
        test_images=500,
    ),
}


@dataclass(frozen=True)
class Asked:
    """What a user may change of a preset; None: nothing."""

    preset: str
    data: str | None = None
    model: str | None = None
    """`pkg.module:factory`: then each claim is judged on that network."""
    seed: int | None = None
    seeds: Sequence[int] | None = None
    norms: Sequence[str] | None = None
    lrs: Sequence[float] | None = None
    epochs: float | None = None
    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: bool | None = None
    threads: int | None = None


def plan_study(asked: Asked) -> Plan:
    """The preset with what the user changed. Raises UsageError for what cannot be."""
    if asked.preset not in PRESETS:
        raise UsageError(f"got preset {asked.preset!r}; wanted one of: {', '.join(PRESETS)}")
    plan = _with_seeds(PRESETS[asked.preset], asked.seed, asked.seeds)
    plan = _with_grid(plan, asked.norms, asked.lrs)
    plan = _with_images(plan, asked)
    if asked.model is not None:
        size = plan.image_size or 32
        plan = replace(plan, networks=(asked.model,), size=size, gap_size=size)
    if asked.epochs is not None and not 0 < asked.epochs < float("inf"):
        raise UsageError(f"got epochs={asked.epochs}; wanted a number above 0")
    if asked.threads is not None:
        if asked.threads < 1:
            raise UsageError(f"got threads={asked.threads}; wanted at least 1 a cell")
        plan = replace(plan, threads=asked.threads)
    return plan


def _with_seeds(plan: Plan, seed: int | None, seeds: Sequence[int] | None) -> Plan:
    if seed is not None and seeds is not None:
        raise UsageError("got both a seed and seeds; give the first seed, or all of them")
    if seeds is not None:
        chosen = _distinct("seeds", seeds)
        plan = replace(plan, seeds=chosen, gap_seeds=_more(chosen, len(plan.gap_seeds)))
    elif seed is not None:
        chosen = tuple(seed + offset for offset in range(len(plan.gap_seeds)))
        plan = replace(plan, seeds=chosen[: len(plan.seeds)], gap_seeds=chosen)
    if not all(0 <= seed < 2**32 for seed in (*plan.seeds, *plan.gap_seeds)):
        raise UsageError(
            f"got seeds {', '.join(map(str, plan.seeds))}; wanted whole numbers from 0 to 2^32 - 1"
        )
    return plan


def _with_grid(plan: Plan, norms: Sequence[str] | None, lrs: Sequence[float] | None) -> Plan:
    if norms is not None:
        for spec in norms:
            norm_layer(spec)  # raises UsageError for a norm that there is not
        plan = replace(plan, norms=_distinct("norms", norms))
        if not {"none", "batch"} <= set(plan.norms):
            raise UsageError(
                f"got norms {', '.join(norms)}; wanted none and batch among them: "
                "the study compares them"
            )
    if lrs is not None:
        if not all(0 < lr <= MOST_RATE for lr in lrs):
            raise UsageError(
                f"got learning rates {', '.join(map(str, lrs))}; "
                f"wanted numbers above 0, at most {MOST_RATE:g}"
            )
        plan = replace(plan, lrs=tuple(sorted(_distinct("lrs", lrs))))
    return plan


def _with_images(plan: Plan, asked: Asked) -> Plan:
    """What is read, at what size, and by which moments it is standardised."""
    if asked.data is not None:
        plan = replace(plan, data=asked.data)
    if asked.image_size is not None:
        if not LEAST_SIZE <= asked.image_size <= MOST_SIZE:
            raise UsageError(
                f"got image size {asked.image_size}; "
                f"wanted {LEAST_SIZE} to {MOST_SIZE} pixels a side"
            )
        plan = replace(plan, image_size=asked.image_size, size=asked.image_size)
    for name, values in (("mean", asked.mean), ("std", asked.std)):
        if values is not None:
            low = 0 if name == "mean" else 1e-6
            if not values or not all(low <= value <= 1 for value in values):
                least = "0" if name == "mean" else "above 0"
                raise UsageError(
                    f"got {name} {', '.join(map(str, values)) or 'empty'}; wanted one number for "
                    f"each channel, {least} to 1, of pixels scaled to 0 to 1"
                )
            changed: dict[str, Any] = {name: tuple(map(float, values))}
            plan = replace(plan, **changed)
    return plan if asked.augment is None else replace(plan, augment=asked.augment)


def plan_epochs(plan: Plan, epochs: float, images: int) -> Plan:
    """The plan with so many passes over `images` training images a run. Raises UsageError."""
    steps = round(epochs * images / plan.batch_size)
    if steps < SHORTEST:
        least = math.ceil(1000 * SHORTEST * plan.batch_size / images) / 1000
        raise UsageError(
            f"got epochs={epochs:g}, {steps} steps of {plan.batch_size} of {images:,} images; "
            f"wanted at least {SHORTEST} steps, since a run's figures are means over its last "
            f"twenty: give {least:g} or more"
        )
    return replace(plan, sweep_steps=steps, landscape_steps=min(plan.landscape_steps, steps))


def _distinct(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if not values or len(set(values)) != len(values):
        raise UsageError(
            f"got {name} {', '.join(map(str, values)) or 'empty'}; wanted at least one, each once"
        )
    return tuple(values)


def _more(seeds: tuple[int, ...], count: int) -> tuple[int, ...]:
    """At least `count` seeds: those given, then the next ones."""
    rest = (seed for seed in range(max(seeds) + 1, max(seeds) + 1 + count))
    return (*seeds, *list(rest)[: max(0, count - len(seeds))])
