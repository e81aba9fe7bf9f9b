"""What is asked of a study, and the presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.nn import norm_layer

__all__ = ["PRESETS", "Plan", "plan_study"]


@dataclass(frozen=True)
class Plan:
    """All that decides a study's cells; frozen into `config.json` before the first cell runs."""

    preset: str
    data: str = "mnist5k"
    seeds: tuple[int, ...] = (151, 152, 153)
    gap_seeds: tuple[int, ...] = (151, 152, 153, 154, 155, 156)
    """The effect of the noise on the gap is small: it needs more pairs than the others."""
    norms: tuple[str, ...] = ("none", "batch", "group:8")
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    threads: int = 1
    # Sizes, in preset `quick` those whose trial runs gave clear measurements in seconds.
    size: int = 14
    """Pixels a side of what the small nets are fed: larger images are averaged down to it."""
    sweep_steps: int = 140
    landscape_steps: int = 100
    drift_steps: int = 500
    depth: int = 40
    width: int = 256
    deep_depth: int = 24
    deep_steps: int = 80
    gap_steps: int = 400
    noise_steps: int = 120
    noise_draws: int = 16
    ghost_model: str = "ghostnet_050"
    ghost_steps: int = 50

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
        usual = PRESETS["quick"]
        wrong = [name for name in known if not _alike(tuples[name], getattr(usual, name))]
        if wrong:
            raise RecordsError(
                f"got a plan whose {', '.join(sorted(wrong))} is not what a run writes; "
                "wanted its config.json as it was: restore it, or start a new run"
            )
        return cls(**tuples)


def _alike(value: Any, example: Any) -> bool:
    """Of the same kind and, if a number, of a size that a run can have."""
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_alike(item, example[0]) for item in value)
    if isinstance(example, str):
        return isinstance(value, str)
    kinds = (int,) if isinstance(example, int) else (int, float)
    return type(value) in kinds and 0 <= value < 2**32


# `smoke` runs every kind of cell once in under a minute. One seed decides nothing, so every verdict
# that needs repetition is `inconclusive`.
PRESETS: dict[str, Plan] = {
    "quick": Plan("quick"),
    "smoke": Plan(
        "smoke",
        data="digits",
        seeds=(10,),
        gap_seeds=(10,),
        norms=("none", "batch"),
        lrs=(0.1,),
        sweep_steps=22,
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
    ),
}


def plan_study(
    preset: str,
    *,
    data: str | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    norms: Sequence[str] | None = None,
    lrs: Sequence[float] | None = None,
    threads: int | None = None,
) -> Plan:
    """The preset with what the user changed. Raises UsageError for what cannot be."""
    if preset not in PRESETS:
        raise UsageError(f"got preset {preset!r}; wanted one of: {', '.join(PRESETS)}")
    plan = PRESETS[preset]
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
        if not all(0 < lr < float("inf") for lr in lrs):
            raise UsageError(
                f"got learning rates {', '.join(map(str, lrs))}; wanted numbers above 0"
            )
        plan = replace(plan, lrs=tuple(sorted(_distinct("lrs", lrs))))
    if threads is not None:
        if threads < 1:
            raise UsageError(f"got threads={threads}; wanted at least 1 a cell")
        plan = replace(plan, threads=threads)
    return plan if data is None else replace(plan, data=data)


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
