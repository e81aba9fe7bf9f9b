from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.study.config import PRESETS, Plan, plan_study
from spiritlevel.study.stats import MIN_SEEDS


def as_read(plan: Plan) -> dict:
    return json.loads(json.dumps(plan.to_json(), allow_nan=False))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_as_it_is(preset):
    assert plan_study(preset) == PRESETS[preset]
    assert PRESETS[preset].preset == preset


def test_a_preset_that_decides_has_seeds_enough_and_pairs_more():
    quick = PRESETS["quick"]
    assert MIN_SEEDS <= len(quick.seeds) < len(quick.gap_seeds)


def test_what_is_asked_is_changed_and_nothing_else():
    asked = {"data": "digits", "norms": ["none", "batch", "layer"], "lrs": [0.5], "threads": 2}
    plan = plan_study("quick", **asked, seeds=[7])
    changed = {n for n, v in plan.to_json().items() if v != PRESETS["quick"].to_json()[n]}
    assert changed == {"data", "norms", "lrs", "threads", "seeds", "gap_seeds"}
    assert (plan.data, plan.threads) == ("digits", 2)
    assert plan.norms == ("none", "batch", "layer")
    assert plan.lrs == (0.5,)


def test_a_plan_does_not_change():
    with pytest.raises(FrozenInstanceError):
        PRESETS["quick"].threads = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "slow"}, "got preset 'slow'; wanted one of: quick, smoke"),
        ({"seed": 1, "seeds": [1, 2]}, "both a seed and seeds"),
        ({"seeds": []}, "got seeds empty; wanted at least one, each once"),
        ({"seeds": [1, 2, 1]}, "got seeds 1, 2, 1; wanted at least one, each once"),
        ({"norms": ["batch", "group:8"]}, "wanted none and batch among them"),
        ({"norms": ["none"]}, "wanted none and batch among them"),
        ({"norms": ["none", "batch", "none"]}, "got norms none, batch, none; .* each once"),
        ({"norms": []}, "got norms empty"),
        ({"norms": ["none", "batch", "bacth"]}, "bacth"),
        ({"lrs": [0.1, -0.1]}, "got learning rates 0.1, -0.1; wanted numbers above 0"),
        ({"lrs": [0.0]}, "wanted numbers above 0"),
        ({"lrs": [float("nan")]}, "got learning rates nan"),
        ({"lrs": [float("inf")]}, "got learning rates inf"),
        ({"lrs": [0.1, 0.3, 0.1]}, "got lrs 0.1, 0.3, 0.1; wanted at least one, each once"),
        ({"lrs": []}, "got lrs empty"),
        ({"threads": 0}, "got threads=0; wanted at least 1"),
        ({"threads": -1}, "got threads=-1"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_what_cannot_be_is_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        plan_study(**{"preset": "quick"} | asked)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 7])
def test_one_seed_is_the_first_of_as_many_as_the_preset_has(preset, seed):
    plan, before = plan_study(preset, seed=seed), PRESETS[preset]
    assert plan.seeds == tuple(range(seed, seed + len(before.seeds)))
    assert plan.gap_seeds == tuple(range(seed, seed + len(before.gap_seeds)))


@pytest.mark.parametrize(
    ("seeds", "gap_seeds"),
    [
        ([5], (5, 6, 7, 8, 9, 10)),
        ([9, 2, 4], (9, 2, 4, 10, 11, 12)),
        (list(range(8)), tuple(range(8))),
    ],
    ids=str,
)
def test_all_seeds_are_taken_and_filled_up_for_the_gap(seeds, gap_seeds):
    plan = plan_study("quick", seeds=seeds)
    assert plan.seeds == tuple(seeds)
    assert plan.gap_seeds == gap_seeds


def test_rates_are_sorted():
    assert plan_study("quick", lrs=[1.0, 0.01, 0.1]).lrs == (0.01, 0.1, 1.0)


@pytest.mark.parametrize(
    "plan",
    [*PRESETS.values(), plan_study("quick", seeds=[3], lrs=[1, 0.25], norms=["batch", "none"])],
    ids=["quick", "smoke", "changed"],
)
def test_a_plan_is_read_back_from_json_as_it_was(plan):
    back = Plan.from_json(as_read(plan))
    assert back == plan
    assert hash(back) == hash(plan)


def test_a_plan_of_another_version_is_refused_by_what_differs():
    plan = as_read(PRESETS["quick"])
    del plan["lrs"]
    plan["rates"] = [0.1]
    with pytest.raises(RecordsError, match="differs from this version's in: lrs, rates; wanted"):
        Plan.from_json(plan)
