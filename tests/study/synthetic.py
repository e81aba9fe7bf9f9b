"""Records as a run leaves them, made up so that the rule of each claim meets the case at hand.

A builder takes the figures that its claim's rule asks about and returns records of every cell that
the claim plans. A figure is a number, or a function of a cell's settings (`by`, `by_seed`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from spiritlevel.study.claims import converges, decouples, gradients, regularises, stabilises
from spiritlevel.study.claims.judgement import Judgement, Part
from spiritlevel.study.config import Plan
from spiritlevel.study.records import Cell, Record, Records
from spiritlevel.study.tasks.common import SMOOTH, tail_mean

Settings = Mapping[str, Any]
Result = dict[str, Any]

_SEEDS = (10, 11, 12, 13, 14, 15)
PLAN = Plan("quick", seeds=_SEEDS[:3], gap_seeds=_SEEDS, lrs=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0))
FIVE_SEEDS = replace(PLAN, seeds=_SEEDS[:5], gap_seeds=_SEEDS[:5])
TWO_SEEDS = replace(PLAN, seeds=_SEEDS[:2], gap_seeds=_SEEDS[:2])

# A hair off a threshold: far above rounding, far below anything the rules care about.
ABOVE, BELOW = 1 + 1e-6, 1 - 1e-6


def by(setting: str, cases: Mapping[Any, Any], otherwise: Any = None) -> Callable[[Settings], Any]:
    """A figure that depends on one setting."""
    return lambda settings: cases.get(settings[setting], otherwise)


def by_seed(*figures: Any) -> Callable[[Settings], Any]:
    """A figure for each of the seeds in turn."""
    return by("seed", dict(zip(_SEEDS, figures, strict=False)))


def _at(figure: Any, settings: Settings) -> Any:
    while callable(figure):
        figure = figure(settings)
    return figure


def as_read(cell: Cell, result: Result | None, error: str | None = None) -> Record:
    """The record of a cell as another process reads it from disk."""
    written = Record(cell.key, cell.task, cell.settings, result, error).to_json()
    return Record(**json.loads(written))


def _records(cells: Iterable[Cell], **tasks: Callable[[Settings], Result]) -> Records:
    return Records(as_read(cell, tasks[cell.task](cell.settings)) for cell in cells)


def part(judgement: Judgement, name: str, **words: str) -> Part:
    """The one part whose quantity ends in `name` and whose words hold `words`."""
    found = [
        part
        for part in judgement.parts
        if part.quantity.endswith(f".{name}") and words.items() <= part.words.items()
    ]
    assert len(found) == 1, f"{len(found)} parts named {name} with {words}"
    return found[0]


# What can become of records.


def without(records: Records, task: str | None = None, **settings: Any) -> Records:
    """Those that are left when the ones of `task` (any) with `settings` were never run."""
    return Records(record for record in records if not _matches(record, task, settings))


def fail(records: Records, task: str | None = None, **settings: Any) -> Records:
    """The same, where the cells of `task` with `settings` ended in a fault."""
    return Records(
        as_read(Cell(r.task, r.settings), None, "RuntimeError: made up")
        if _matches(r, task, settings)
        else r
        for r in records
    )


def diverge(records: Records, task: str | None = None, **settings: Any) -> Records:
    """The same, where runs of `task` with `settings` lost their loss to the floats at step 2."""
    return Records(_diverged(r) if _matches(r, task, settings) else r for r in records)


def _matches(record: Record, task: str | None, settings: Settings) -> bool:
    agree = all(record.settings.get(name) == value for name, value in settings.items())
    return agree and task in (None, record.task)


def _diverged(record: Record) -> Record:
    """As the tasks themselves report it; what is at its initialisation only has no slope."""
    cell = Cell(record.task, record.settings)
    if record.task == "noise":  # no logarithm of a variance that is no number
        return as_read(cell, None, "ValueError: math domain error")
    nothing: dict[str, Result] = {
        "drift": {"drift": [math.nan] * 3, "accuracy": [0.1] * 3, "test_accuracy": 0.1},
        "sweep": {"accuracy": [0.1] * 3, "final_accuracy": 0.1},
        "landscape": {
            "median": dict.fromkeys(QUANTITIES, math.inf),
            "shift_median": dict.fromkeys(("l2", "cosine", "relative"), math.nan),
        },
        "deep": {"final_accuracy": 0.1},
        "ghostnet": {"final_accuracy": 0.0},
        "depth": {"activation_growth": None, "gradient_growth": None},
        "gap": {"test_loss_at_target": None, "gap_at_target": None},
        # A unit that no image of the batch switches on has a gradient of length 0, hence no cosine.
        "invariance": {"cosine_without": math.nan},
    }
    assert record.result is not None
    changed = record.result | nothing[record.task]
    for name, value in (("final_loss", math.nan), ("diverged_at", 2)):
        if name in changed:
            changed[name] = value
    return as_read(cell, changed)


def curve(steps: int | None, of: int, target: float = 1.0) -> list[float]:
    """Accuracies of `of` batches whose running mean first reaches `target` at `steps`, or never."""
    start = of if steps is None else steps - math.ceil(target * SMOOTH)
    return [0.0] * start + [1.0] * (of - start)


# Claim 1

BN_STEPS = 80
"""To the accuracy of the rule, at the rate at which noisy BN runs."""
BEST = {"none": stabilises.LRS[0], "batch": stabilises.LRS[1]}
"""Rates at which the arms of claim 1 end with the least loss."""


def stabilises_records(
    *,
    steadier: Any = 4.0,
    layers: tuple[float, float, float] = (1.25, 1.0, 0.8),
    noise_moves: Any = 8.0,
    noise_steps: Any = BN_STEPS,
    noise_accuracy: Any = None,
    plan: Plan = PLAN,
) -> Records:
    """`steadier`: drift without BN over drift with it, mean over layers, each at its best rate.

    `layers`: how that ratio differs from its mean, layer by layer.
    `noise_moves`: drift of noisy BN over BN, mean over layers. `noise_steps`: to the accuracy of
    the rule (None: never), or `noise_accuracy`, batch by batch.
    """
    # By rate, so that reading another than the best one shows.
    bn_drift = {lr: 2.0**-index for index, lr in enumerate(stabilises.LRS)}

    def drifts(s: Settings) -> list[float]:
        if s["norm"].startswith("noisy"):
            ratio = _at(noise_moves, s)
            return [ratio * bn_drift[s["lr"]] * layer for layer in (0.5, 1.0, 1.5)]
        if s["norm"] == "batch":
            return [bn_drift[s["lr"]]] * 3
        if s["lr"] == BEST["none"]:
            return [_at(steadier, s) * bn_drift[BEST["batch"]] * layer for layer in layers]
        return [0.001] * 3  # does not learn, and keeps still

    def drift(s: Settings) -> Result:
        at_best = s["lr"] == BEST.get(s["norm"])
        steps = _at(noise_steps, s) if s["norm"] == "noisy-batch" else BN_STEPS
        accuracy = curve(steps, s["steps"], stabilises.RULE["accuracy"])
        if s["norm"] == "noisy-batch" and noise_accuracy is not None:
            accuracy = _at(noise_accuracy, s)
        return {
            "loss": [2.3, 0.5],
            "accuracy": accuracy,
            "diverged_at": None,
            "final_loss": 0.5 if at_best else 2.3,
            "test_accuracy": 0.9,
            "drift": drifts(s),
            "range": [1.0, 1.0, 1.0],
        }

    return _records(stabilises.cells(plan), drift=drift)


# Claims 2 and 5

QUANTITIES = ("loss_range", "gradient_change", "beta", "beta_norm2")
_LARGEST = by("norm", {"none": 0.1, "batch": 1.0, "group:8": 0.3})
_STEPS = by("norm", {"none": 120, "batch": 40, "group:8": 80})
_REACHES = by("norm", {"none": 0.1, "batch": 0.8})


def converges_records(
    *,
    largest: Any = _LARGEST,
    steps: Any = _STEPS,
    loss: Any = 0.2,
    smoother: float = 8.0,
    reaches: Any = _REACHES,
    plan: Plan = PLAN,
) -> Records:
    """`largest`: the largest rate at which a run trains (None: at none); above it, it diverges.

    `steps` to where accuracy ends, and the final `loss`, of a run that trains. `reaches`: final
    accuracy of GhostNet. `smoother`: each landscape figure without BN over that with it.
    """

    def sweep(s: Settings) -> Result:
        rate = _at(largest, s)
        trains = rate is not None and s["lr"] <= rate
        accuracy = curve(_at(steps, s) if trains else None, s["steps"])
        return {
            "loss": [2.3, 0.2],
            "accuracy": accuracy if trains else [0.1] * 3,
            "diverged_at": None if trains else 2,
            "final_loss": _at(loss, s) if trains else None,
            "classes": 10,
            "final_accuracy": tail_mean(accuracy) if trains else 0.1,
            "test_accuracy": 0.9,
            "test_accuracy_batch": 0.9,
        }

    def ghostnet(s: Settings) -> Result:
        return {
            "loss": [2.3, 0.8],
            "accuracy": [0.1, 0.8],
            "diverged_at": None,
            "final_loss": 0.8,
            "final_accuracy": _at(reaches, s),
            "test_accuracy_batch": 0.8,
        }

    landscape = _landscape(better=True, relative=0.5, smoother=smoother, loss=0.3)
    return _records(converges.cells(plan), sweep=sweep, landscape=landscape, ghostnet=ghostnet)


def decouples_records(
    *,
    error: Any = 1e-15,
    control: Any = 0.3,
    better: Any = True,
    relative: Any = 0.5,
    loss: Any = 0.3,
    plan: Plan = PLAN,
) -> Records:
    """`error`: of the identities; `control`: |cos(w, g)| without BN.

    `better`: whether a run with BN turns gradients less than its twin without, in length and angle;
    `relative`: the length with BN over that without, where it does. `loss`: final, of either.
    """

    def invariance(s: Settings) -> Result:
        worst = _at(error, s)
        return {
            "scales": [0.1, 10.0],
            "errors": {"0.0": [worst / 2, worst], "1e-05": [1e-3, 1e-5], "0.001": [1e-1, 1e-3]},
            "errors_without": [0.9, 9.0],
            "errors_float32": [4e-7, 4e-7],
            "cosine": worst / 2,
            "cosine_eps": 2e-5,
            "cosine_without": _at(control, s),
            "trajectories": {"worst_difference": worst / 2},
            "trajectories_without": {"worst_difference": 16.0},
        }

    landscape = _landscape(better=better, relative=relative, smoother=8.0, loss=loss)
    cells = [c for c in converges.cells(plan) if c.task == "landscape"]
    return _records([*decouples.cells(plan), *cells], invariance=invariance, landscape=landscape)


def _landscape(
    *, better: Any, relative: Any, smoother: float, loss: Any
) -> Callable[[Settings], Result]:
    def landscape(s: Settings) -> Result:
        plain = s["norm"] == "none"
        shift = {"l2": 0.4, "cosine": 0.8, "relative": 0.4}
        if not plain:
            closer = _at(better, s)
            length = 0.4 * _at(relative, s) if closer else 0.8
            shift = {"l2": length, "cosine": 0.9 if closer else 0.6, "relative": length}
        return {
            "loss": [2.3, 0.3],
            "diverged_at": None,
            "final_loss": _at(loss, s),
            "classes": 10,
            "median": dict.fromkeys(QUANTITIES, 3.0 * smoother if plain else 3.0),
            "shift_median": shift,
        }

    return landscape


def first(count: int, plan: Plan) -> Callable[[Settings], bool]:
    """True for the first `count` runs of the landscape with BN."""
    runs = [
        c.settings
        for c in converges.cells(plan)
        if c.task == "landscape" and c.settings["norm"] == "batch"
    ]
    assert count <= len(runs)
    chosen = [dict(settings) for settings in runs[:count]]
    return lambda settings: dict(settings) in chosen


# Claim 3


def gradients_records(
    *,
    steady: Any = 1.0,
    runs_away: Any = 2.0,
    gradient: Any = 1.0,
    residual: Any = 1.0,
    plan: Plan = PLAN,
) -> Records:
    """`steady`: factor per layer of activations with BN; `runs_away`: without, at doubled weights.

    `gradient`: of gradients with BN in plain nets; `residual`: in residual ones. Cells that are not
    of the rule, with another batch size or activation function, differ wildly.
    """

    def depth(s: Settings) -> Result:
        activation, backward = 1.0, 1.0
        if s["norm"] == "none":
            activation = _at(runs_away, s) if s["init"] == "he*2" else 1.0
        elif s["model"] == "residual_mlp":
            backward = _at(residual, s)
        elif (s["batch_size"], s["activation"]) == (128, "relu"):
            activation, backward = _at(steady, s), _at(gradient, s)
        else:
            activation, backward = 3.0, 3.0
        return {"activation_growth": activation, "gradient_growth": backward, "loss": 2.3}

    def deep(_: Settings) -> Result:
        return {"loss": [2.3, 0.2], "diverged_at": None, "final_loss": 0.2, "final_accuracy": 0.9}

    return _records(gradients.cells(plan), depth=depth, deep=deep)


# Claim 4

_LOWER = by_seed(-0.019, -0.021, -0.018, -0.022, -0.020, -0.020)


def regularises_records(
    *,
    difference: Any = _LOWER,
    rivals: Any = 0.01,
    slope: Any = -1.0,
    plan: Plan = PLAN,
) -> Records:
    """`difference`: test loss with noise minus without; `rivals`: of the other arms without noise.

    The arms of other noise, which the rule does not ask about, do far better than all.
    """
    off = 0.5

    def noise(s: Settings) -> Result:
        return {
            "sizes": list(s["sizes"]),
            "slope": {"first": -3.0, "last": -3.0, "logits": _at(slope, s)},
        }

    def gap(s: Settings) -> Result:
        arm = next(n for n, a in regularises.ARMS.items() if a.items() <= s.items())
        added = {"off": 0.0, "16": difference, "64": -0.4, "4": -0.4}.get(arm, rivals)
        loss = _at(added, s)
        loss = None if loss is None else off + loss
        return {
            "test_loss_at_target": loss,
            "test_accuracy_at_target": None if loss is None else 0.9,
            "gap_at_target": None if loss is None else loss - s["target"],
        }

    return _records(regularises.cells(plan), noise=noise, gap=gap)


BUILDERS: dict[str, Callable[..., Records]] = {
    "stabilises": stabilises_records,
    "converges": converges_records,
    "gradients": gradients_records,
    "regularises": regularises_records,
    "decouples": decouples_records,
}
