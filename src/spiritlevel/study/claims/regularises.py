"""Claim 4: the noise of batch statistics reduces overfitting."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.study.claims.common import shape, weights
from spiritlevel.study.claims.judgement import Judgement, Part, Status, number, setting
from spiritlevel.study.config import Plan
from spiritlevel.study.networks import network
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.stats import Interval, mean_interval
from spiritlevel.study.tasks.gap import MIN_IMAGES

__all__ = ["ARMS", "CLAIM", "NETWORK", "NOISY", "RULE", "cells", "differences", "judge"]

CLAIM = "regularises"
NETWORK = ("mlp",)
SMALL = {"depth": 2, "width": 128, "activation": "relu"}
RULE = {
    "slope_from": -1.3,  # of log noise over log batch size: the noise falls as 1/n
    "slope_to": -0.7,
    "share_of_seeds": 0.8,  # with a lower test loss
    "no_effect_within": 0.005,  # nats of test loss
}
NOISY = "ghost:16"
# Arm -> its settings. `off` is BN without batch noise: statistics from all training images.
ARMS = {
    "off": {"norm": "batch", "noise": False, "lr": 0.1},
    "64": {"norm": "batch", "noise": True, "lr": 0.1},
    "16": {"norm": NOISY, "noise": True, "lr": 0.1},
    "4": {"norm": "ghost:4", "noise": True, "lr": 0.1},
    "layer": {"norm": "layer", "noise": True, "lr": 0.1},
    "none": {"norm": "none", "noise": True, "lr": 0.1},
    "off at 0.3": {"norm": "batch", "noise": False, "lr": 0.3},
    "layer at 0.3": {"norm": "layer", "noise": True, "lr": 0.3},
    "none at 0.3": {"norm": "none", "noise": True, "lr": 0.3},
}
BIG_ARMS = {name: ARMS[name] for name in ("off", "16", "layer", "none", "off at 0.3")}
"""Of a network that takes its time."""
RIVALS = ("layer", "layer at 0.3", "none", "none at 0.3", "off at 0.3")
"""Arms without batch noise, each at two rates: another norm, none, and BN itself."""
SIZES = (4, 8, 16, 32, 64, 128)
HOFFER, LUO = "Hoffer et al. 2017 (ghost BN)", "Luo et al. 2019"


def cells(plan: Plan) -> Iterator[Cell]:
    """The noise by batch size; the gap with noise on, off, and with its rivals."""
    for name in plan.networks or NETWORK:
        known = network(name)
        base = shape(plan, name) | ({} if plan.networks else SMALL)
        for seed in plan.seeds:
            trained = {"norm": "batch", "init": known.inits[0], "lr": known.rate, "seed": seed}
            sizes = {"steps": plan.noise_steps, "sizes": SIZES, "draws": plan.noise_draws}
            yield Cell("noise", base | trained | sizes | {"images": 8})
        few = {
            "size": plan.gap_size,
            "images": MIN_IMAGES,
            "test_images": plan.test_images,
            "target": plan.gap_target,
            "steps": plan.gap_steps,
            "every": 10,
        }
        for seed in plan.gap_seeds:
            for arm in (BIG_ARMS if plan.networks else ARMS).values():
                init = weights(name, str(arm["norm"]))
                yield Cell("gap", base | few | {"seed": seed, "init": init} | arm)


def judge(records: Records) -> Judgement:
    """Test loss at equal training loss, noise on against off, paired by seed; then the rivals."""
    slope = mean_interval([run["slope"]["logits"] for run in records.by_seed("noise").values()])
    scales = None if slope is None else RULE["slope_from"] <= slope.value <= RULE["slope_to"]
    found = mean_interval(_list(differences(records, "16")))
    lower = _lower(records, found)
    rival = _rival(records)
    status: Status
    if lower is None or (lower and scales is None):
        status = "inconclusive"
    elif not lower:
        status = "not supported"
    elif rival or not scales:
        status = "partly"
    else:
        status = "inconclusive" if rival is None else "supported"
    headline = Part.of(
        "claims.regularises.difference",
        found,
        HOFFER,
        holds=lower,
        words={"arm": _name("16")},
        records=_numbers(records, "off", "16"),
    )
    parts = (
        headline,
        Part.of(
            "claims.regularises.slope",
            slope,
            LUO,
            holds=scales,
            records=tuple(records.numbers("noise")),
        ),
        *_arms(records),
    )
    return Judgement(CLAIM, status, headline, parts, _words(records, found, slope))


def differences(records: Records, arm: str) -> dict[int, float | None]:
    """seed -> test loss of `arm` minus noise off's, both where training loss passes the target."""
    off, on = (records.by_seed("gap", **ARMS[name]) for name in ("off", arm))
    found: dict[int, float | None] = {}
    for seed in sorted(off.keys() & on.keys()):
        a, b = on[seed]["test_loss_at_target"], off[seed]["test_loss_at_target"]
        found[seed] = None if a is None or b is None else a - b
    return found


def _numbers(records: Records, *arms: str) -> tuple[int, ...]:
    return tuple(number for arm in arms for number in records.numbers("gap", **ARMS[arm]))


def _name(arm: str) -> str:
    return say(f"claims.regularises.arms.{arm.replace(' ', '_').replace('.', '')}")


def _list(by_seed: dict[int, float | None]) -> list[float | None]:
    return list(by_seed.values())


def _lower(records: Records, found: Interval | None) -> bool | None:
    """Is the test loss lower with the noise on? None where the seeds do not tell."""
    if found is None:
        return None
    bound = RULE["no_effect_within"]
    if found.low > 0 or (-bound < found.low and found.high < bound):
        return False
    values = [value for value in differences(records, "16").values() if value is not None]
    negative = sum(value < 0 for value in values) / len(values)
    return True if found.high < 0 and negative >= RULE["share_of_seeds"] else None


def _rival(records: Records) -> bool | None:
    """Does an arm without batch noise do as well? False if each is clearly worse, seed by seed."""
    noise = differences(records, "16")
    behind = []
    for arm in RIVALS:
        if not records.select("gap", **ARMS[arm]):
            continue  # not planned: an arm whose runs are missing leaves the claim undecided
        rival = differences(records, arm)
        pairs = [(rival[seed], noise[seed]) for seed in sorted(noise.keys() & rival.keys())]
        gaps = [None if a is None or b is None else a - b for a, b in pairs]
        behind.append(mean_interval(gaps))
    if not behind:
        return None
    if any(interval is not None and interval.low <= 0 for interval in behind):
        return True
    return None if None in behind else False


def _arms(records: Records) -> Iterator[Part]:
    for arm, settings in ARMS.items():
        if arm not in ("off", "16") and records.select("gap", **settings):
            found = mean_interval(_list(differences(records, arm)))
            source = HOFFER if arm in ("64", "4") else say("claims.sources.no_noise")
            more: dict[str, Any] = {"records": _numbers(records, "off", arm)}
            words = {"arm": _name(arm)}
            yield Part.of("claims.regularises.difference", found, source, words=words, **more)
    for arm in ("off", "16"):
        runs = records.by_seed("gap", **ARMS[arm])
        gaps = [run["gap_at_target"] for run in runs.values()]
        source = "Zhang et al. 2017, Table 1"
        yield Part.of(
            "claims.regularises.gap",
            mean_interval(gaps),
            source,
            words={"arm": _name(arm)},
            records=_numbers(records, arm),
        )


def _words(records: Records, found: Interval | None, slope: Interval | None) -> dict[str, str]:
    off = records.by_seed("gap", **ARMS["off"])
    losses = [run["test_loss_at_target"] for run in off.values()]
    known = [loss for loss in losses if loss is not None]
    values = [v for v in differences(records, "16").values() if v is not None]
    best = min(
        (
            (r.value, arm)
            for arm in RIVALS
            if (r := mean_interval(_list(differences(records, arm))))
        ),
        default=(None, "–"),
    )
    targets = records.values("gap", "target")
    return {
        "target": setting(targets[0] if targets else None),
        "difference": number(found),
        "off": number(fmean(known) if known else None),
        "lower": str(sum(v < 0 for v in values)),
        "seeds": str(len(values)),
        "slope": number(slope),
        "rival": _name(best[1]) if best[1] in ARMS else "–",
        "rival_difference": number(best[0]),
    }
