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

from spiritlevel.study.claims import (
    converges,
    decouples,
    gradients,
    networks,
    regularises,
    stabilises,
)
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
NETWORKS = replace(PLAN, networks=("small_vgg", "small_resnet"))
GHOSTNET = replace(PLAN, networks=("ghostnet_050",))
OWN = replace(PLAN, networks=("my.models:build",))
PLANS = {"quick": PLAN, "networks": NETWORKS, "GhostNet": GHOSTNET, "own": OWN}

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
        "train": {
            "accuracy": [0.1] * 3,
            "final_accuracy": 0.0,
            "test_accuracy": 0.0,
            "test_accuracy_batch": 0.0,
        },
        "landscape": {
            "median": dict.fromkeys(QUANTITIES, math.inf),
            "shift_median": dict.fromkeys(("l2", "cosine", "relative"), math.nan),
        },
        "depth": {"activation_growth": None, "gradient_growth": None},
        "gap": {"test_loss_at_target": None, "gap_at_target": None},
        # A unit that no image of the batch switches on has a gradient of length 0, hence no cosine.
        "invariance": {"cosine_without": math.nan},
        "scaling": {"cosine_without": math.nan},
    }
    assert record.result is not None
    changed = record.result | nothing[record.task]
    if "drift" in changed:
        changed["drift"] = [math.nan] * len(changed["drift"])
    for name, value in (("final_loss", math.nan), ("diverged_at", 2)):
        if name in changed:
            changed[name] = value
    return as_read(cell, changed)


def curve(steps: int | None, of: int, target: float = 1.0) -> list[float]:
    """Accuracies of `of` batches whose running mean first reaches `target` at `steps`, or never."""
    start = of if steps is None else steps - math.ceil(target * SMOOTH)
    return [0.0] * start + [1.0] * (of - start)


def _trained(**changed: Any) -> Result:
    """Of a training run: what a claim does not ask about is the same everywhere."""
    return {
        "loss": [2.3, 0.2],
        "accuracy": [0.1, 0.9],
        "diverged_at": None,
        "final_loss": 0.2,
        "final_accuracy": 0.9,
        "classes": CLASSES,
        "test_accuracy": 0.9,
        "test_accuracy_batch": 0.9,
        "drift": [1.0, 1.0, 1.0],
    } | changed


# Claim 1

CLASSES = 10
BN_STEPS = 40
"""To most of BN's gain, at the rate at which noisy BN runs."""
GAIN = 1 / CLASSES + stabilises.RULE["share_of_gain"] * (1 - 1 / CLASSES)
"""The accuracy that is most of the gain of a net which gets everything right in the end."""


def best_rates(plan: Plan, network: str) -> dict[str, float]:
    """Rates at which the arms of claim 1 end with the least loss: the first, and the second."""
    settings = [cell.settings for cell in stabilises.cells(plan) if cell.task == "train"]
    return {
        norm: sorted({s["lr"] for s in settings if (s["network"], s["norm"]) == (network, norm)})[n]
        for n, norm in enumerate(("none", "batch"))
    }


def stabilises_records(
    *,
    steadier: Any = 4.0,
    layers: tuple[float, ...] = (1.25, 1.0, 0.8),
    noise_moves: Any = 8.0,
    noise_steps: Any = BN_STEPS,
    noise_accuracy: Any = None,
    plan: Plan = PLAN,
) -> Records:
    """`steadier`: drift without BN over drift with it, mean over layers, each at its best rate.

    `layers`: how that ratio differs from its mean, layer by layer.
    `noise_moves`: drift of noisy BN over BN, mean over layers. `noise_steps`: to most of BN's gain
    (None: never), or `noise_accuracy`, batch by batch.
    """
    best = {name: best_rates(plan, name) for name in networks("stabilises", plan)}
    each = [0.5 + index / (len(layers) - 1) for index in range(len(layers))]  # mean 1

    def bn_drift(lr: float) -> float:
        return 1 / (1 + lr)  # by rate, so that reading another than the best one shows

    def drifts(s: Settings) -> list[float]:
        if s["norm"].startswith("noisy"):
            return [_at(noise_moves, s) * bn_drift(s["lr"]) * layer for layer in each]
        if s["norm"] == "none" and s["lr"] == best[s["network"]]["none"]:
            beside = bn_drift(best[s["network"]]["batch"])
            return [_at(steadier, s) * beside * layer for layer in layers]
        if s["norm"] == "none":
            return [0.001] * len(layers)  # does not learn, and keeps still
        return [bn_drift(s["lr"])] * len(layers)

    def train(s: Settings) -> Result:
        at_best = s["lr"] == best[s["network"]].get(s["norm"])
        steps = _at(noise_steps, s) if s["norm"] == "noisy-batch" else BN_STEPS
        accuracy = curve(steps, s["steps"], GAIN)
        if s["norm"] == "noisy-batch" and noise_accuracy is not None:
            accuracy = _at(noise_accuracy, s)
        return _trained(
            accuracy=accuracy,
            final_accuracy=tail_mean(accuracy),
            final_loss=0.5 if at_best else 2.3,
            drift=drifts(s),
        )

    landscape = _landscape(better=True, relative=0.5, smoother=8.0, loss=0.3)
    return _records(stabilises.cells(plan), train=train, landscape=landscape)


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
    accuracy of GhostNet where it is not judged. `smoother`: each landscape figure without BN over
    that with it.
    """

    def train(s: Settings) -> Result:
        if s["network"] not in networks("converges", plan):
            return _trained(final_loss=0.8, final_accuracy=_at(reaches, s))
        rate = _at(largest, s)
        trains = rate is not None and s["lr"] <= rate
        accuracy = curve(_at(steps, s) if trains else None, s["steps"])
        return _trained(
            accuracy=accuracy if trains else [0.1] * 3,
            diverged_at=None if trains else 2,
            final_loss=_at(loss, s) if trains else None,
            final_accuracy=tail_mean(accuracy) if trains else 0.0,
        )

    landscape = _landscape(better=True, relative=0.5, smoother=smoother, loss=0.3)
    return _records(converges.cells(plan), train=train, landscape=landscape)


def decouples_records(
    *,
    error: Any = 1e-15,
    control: Any = 0.3,
    better: Any = True,
    relative: Any = 0.5,
    loss: Any = 0.3,
    plan: Plan = PLAN,
) -> Records:
    """`error`: of the identities; `control`: |cos(w, g)| without BN; of networks and single layers.

    `better`: whether a run with BN turns gradients less than its twin without, in length and angle;
    `relative`: the length with BN over that without, where it does. `loss`: final, of either.
    """

    def scaling(s: Settings) -> Result:
        worst = _at(error, s)
        return {
            "scales": [0.1, 10.0],
            "errors": {"0.0": [worst / 2, worst], "1e-05": [1e-3, 1e-5]},
            "errors_without": [0.9, 9.0],
            "cosine": worst / 2,
            "cosine_without": _at(control, s),
        }

    def invariance(s: Settings) -> Result:
        return scaling(s) | {
            "errors_float32": [4e-7, 4e-7],
            "trajectories": {"worst_difference": _at(error, s) / 2},
            "trajectories_without": {"worst_difference": 16.0},
        }

    landscape = _landscape(better=better, relative=relative, smoother=8.0, loss=loss)
    tasks = {"invariance": invariance, "scaling": scaling, "landscape": landscape}
    return _records(decouples.cells(plan), **tasks)


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
            "classes": CLASSES,
            "median": dict.fromkeys(QUANTITIES, 3.0 * smoother if plain else 3.0),
            "shift_median": shift,
        }

    return landscape


def first(count: int, plan: Plan) -> Callable[[Settings], bool]:
    """True for the first `count` runs of the landscape with BN."""
    runs = [
        c.settings
        for c in decouples.cells(plan)
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
    loss: Any = 0.2,
    plan: Plan = PLAN,
) -> Records:
    """`steady`: factor per layer of activations with BN; `runs_away`: without, at doubled weights.

    `gradient`: of gradients with BN. `loss`: final, of a training run. Cells that are not of the
    rule, with another batch size, activation function or depth, differ wildly.
    """
    cells = list(gradients.cells(plan))
    at_start = [cell.settings for cell in cells if cell.task == "depth"]
    deepest = {s["network"]: 0 for s in at_start}
    for s in at_start:
        deepest[s["network"]] = max(deepest[s["network"]], s.get("depth", 0))

    def depth(s: Settings) -> Result:
        activation, backward = 1.0, 1.0
        layers = deepest[s["network"]]
        beside = s.get("activation", "relu") != "relu" or s["batch_size"] in (32, 512)
        if beside or s.get("depth", 0) < layers:
            activation, backward = 3.0, 3.0
        elif s["norm"] == "batch":
            activation, backward = _at(steady, s), _at(gradient, s)
        elif s["init"] == "he*2":
            activation = _at(runs_away, s)
        names = [f"{index}" for index in range(s.get("depth", 20) + 1)]
        return {
            "activation_growth": activation,
            "gradient_growth": backward,
            "loss": 2.3,
            "layers": names,
        }

    return _records(cells, depth=depth, train=lambda s: _trained(final_loss=_at(loss, s)))


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
