from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.study.config import (
    LEAST_SIZE,
    MOST_SIZE,
    PRESETS,
    SHORTEST,
    Asked,
    Plan,
    plan_epochs,
    plan_study,
)
from spiritlevel.study.networks import network
from spiritlevel.study.stats import MIN_SEEDS

NAN, INF = math.nan, math.inf


def as_read(plan: Plan) -> dict:
    return json.loads(json.dumps(plan.to_json(), allow_nan=False))


def planned(preset: str = "quick", **asked) -> Plan:
    return plan_study(Asked(preset, **asked))


def changed(plan: Plan) -> set[str]:
    """What of its preset a plan differs in."""
    before = PRESETS[plan.preset].to_json()
    return {name for name, value in plan.to_json().items() if value != before[name]}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_as_it_is(preset):
    assert planned(preset) == PRESETS[preset]
    assert PRESETS[preset].preset == preset


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_a_preset_that_decides_has_seeds_enough_and_pairs_more(preset):
    plan = PRESETS[preset]
    assert MIN_SEEDS <= len(plan.seeds) < len(plan.gap_seeds)


def test_the_networks_of_a_preset_are_fed_images_of_a_size_they_take():
    plan = PRESETS["standard"]
    assert len(plan.networks) == 3
    assert all(network(name).least_size <= min(plan.size, plan.gap_size) for name in plan.networks)


def test_what_is_asked_is_changed_and_nothing_else():
    asked = {"data": "digits", "norms": ["none", "batch", "layer"], "lrs": [0.5], "threads": 2}
    plan = planned(**asked, seeds=[7])
    assert changed(plan) == {"data", "norms", "lrs", "threads", "seeds", "gap_seeds"}
    assert (plan.data, plan.threads) == ("digits", 2)
    assert plan.norms == ("none", "batch", "layer")
    assert plan.lrs == (0.5,)


def test_a_plan_does_not_change():
    with pytest.raises(FrozenInstanceError):
        PRESETS["quick"].threads = 2  # type: ignore[misc]


SIZES = f"wanted {LEAST_SIZE} to {MOST_SIZE} pixels a side"
EACH = "wanted one number for each channel, 0 to 1, of pixels scaled to 0 to 1"
ABOVE = EACH.replace(", 0 to", ", above 0 to")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "slow"}, "got preset 'slow'; wanted one of: quick, standard, smoke"),
        ({"seed": 1, "seeds": [1, 2]}, "both a seed and seeds"),
        ({"seeds": []}, "got seeds empty; wanted at least one, each once"),
        ({"seeds": [1, 2, 1]}, "got seeds 1, 2, 1; wanted at least one, each once"),
        ({"seeds": [1, -2]}, "got seeds 1, -2; wanted whole numbers from 0 to"),
        ({"seeds": [2**32]}, "got seeds 4294967296; wanted whole numbers from 0 to"),
        ({"seed": -1}, "got seeds -1, 0, 1; wanted whole numbers from 0 to"),
        ({"seed": 2**32 - 4}, "wanted whole numbers from 0 to"),
        ({"norms": ["batch", "group:8"]}, "wanted none and batch among them"),
        ({"norms": ["none"]}, "wanted none and batch among them"),
        ({"norms": ["none", "batch", "none"]}, "got norms none, batch, none; .* each once"),
        ({"norms": []}, "got norms empty"),
        ({"norms": ["none", "batch", "bacth"]}, "bacth"),
        ({"lrs": [0.1, -0.1]}, "got learning rates 0.1, -0.1; wanted numbers above 0"),
        ({"lrs": [0.0]}, "wanted numbers above 0"),
        ({"lrs": [NAN]}, "got learning rates nan"),
        ({"lrs": [INF]}, "got learning rates inf"),
        ({"lrs": [0.1, 0.3, 0.1]}, "got lrs 0.1, 0.3, 0.1; wanted at least one, each once"),
        ({"lrs": []}, "got lrs empty"),
        ({"epochs": 0}, "got epochs=0; wanted a number above 0"),
        ({"epochs": -1.5}, "got epochs=-1.5; wanted a number above 0"),
        ({"epochs": NAN}, "got epochs=nan; wanted a number above 0"),
        ({"epochs": INF}, "got epochs=inf; wanted a number above 0"),
        ({"image_size": LEAST_SIZE - 1}, f"got image size {LEAST_SIZE - 1}; {SIZES}"),
        ({"image_size": MOST_SIZE + 1}, f"got image size {MOST_SIZE + 1}; {SIZES}"),
        ({"image_size": 0}, f"got image size 0; {SIZES}"),
        ({"mean": []}, f"got mean empty; {EACH}"),
        ({"mean": [0.5, 1.1]}, f"got mean 0.5, 1.1; {EACH}"),
        ({"mean": [-0.1]}, f"got mean -0.1; {EACH}"),
        ({"mean": [127.5]}, f"got mean 127.5; {EACH}"),
        ({"mean": [NAN]}, f"got mean nan; {EACH}"),
        ({"std": []}, f"got std empty; {ABOVE}"),
        ({"std": [0.0]}, f"got std 0.0; {ABOVE}"),
        ({"std": [0.2, -0.2]}, f"got std 0.2, -0.2; {ABOVE}"),
        ({"std": [64]}, f"got std 64; {ABOVE}"),
        ({"std": [NAN]}, f"got std nan; {ABOVE}"),
        ({"threads": 0}, "got threads=0; wanted at least 1"),
        ({"threads": -1}, "got threads=-1"),
    ],
    ids=lambda v: " ".join(f"{n}={w}" for n, w in v.items()) if isinstance(v, dict) else "",
)
def test_what_cannot_be_is_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        planned(**{"preset": "quick"} | asked)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 6])
def test_one_seed_is_the_first_of_as_many_as_the_preset_has(preset, seed):
    plan, before = planned(preset, seed=seed), PRESETS[preset]
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
    plan = planned(seeds=seeds)
    assert plan.seeds == tuple(seeds)
    assert plan.gap_seeds == gap_seeds


def test_rates_are_sorted():
    assert planned(lrs=[1.0, 0.01, 0.1]).lrs == (0.01, 0.1, 1.0)


# A network of the user's


def test_a_model_is_the_network_of_every_claim_at_the_usual_size_of_images():
    plan = planned(model="my.models:build")
    assert plan.networks == ("my.models:build",)
    assert plan.size == plan.gap_size == network("my.models:build").least_size == 32
    assert changed(plan) == {"networks", "size", "gap_size"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [LEAST_SIZE, 48, MOST_SIZE])
def test_a_model_is_fed_images_of_the_size_that_is_asked(preset, size):
    plan = planned(preset, model="my.models:build", image_size=size)
    assert (plan.image_size, plan.size, plan.gap_size) == (size, size, size)
    assert plan.networks == ("my.models:build",)


# How images are fed


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_images_are_fed_at_the_size_at_which_they_were_asked_for(preset):
    plan = planned(preset, image_size=64)
    assert changed(plan) == {"image_size", "size"}
    assert plan.size == plan.image_size == 64


def test_mean_and_deviation_are_taken_as_they_are():
    plan = planned(mean=[0, 0.5, 1], std=[1e-6, 0.25, 1])
    assert plan.mean == (0.0, 0.5, 1.0)
    assert plan.std == (1e-6, 0.25, 1.0)
    assert all(type(value) is float for value in plan.mean + plan.std)
    assert changed(plan) == {"mean", "std"}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_augmenting_is_switched(preset, asked):
    assert planned(preset, augment=asked).augment is asked


def test_a_cell_names_what_was_asked_of_its_images_and_nothing_else():
    assert PRESETS["quick"].fed == {}
    assert planned(mean=[0.0]).fed == {"mean": [0.0]}
    assert planned(augment=False).fed == {}
    asked = planned(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], augment=True)
    assert asked.fed == {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "augment": True}
    assert json.loads(json.dumps(asked.fed)) == asked.fed


# How long


def test_epochs_are_passes_over_the_training_images():
    plan = plan_epochs(planned("standard", epochs=2), 2, 50_000)
    assert plan.sweep_steps == round(2 * 50_000 / plan.batch_size)
    assert changed(plan) == {"sweep_steps"}
    assert plan_epochs(PRESETS["quick"], 0.5, 5000).sweep_steps == round(2500 / 64)


def test_no_landscape_is_longer_than_the_epochs():
    plan = plan_epochs(PRESETS["quick"], 0.5, 5000)
    assert plan.landscape_steps == plan.sweep_steps < PRESETS["quick"].landscape_steps
    assert changed(plan) == {"sweep_steps", "landscape_steps"}


def test_a_training_too_short_for_its_figures_is_refused_with_what_would_do():
    assert SHORTEST > 20, "a full window, and a step to change in"
    quick = PRESETS["quick"]
    with pytest.raises(UsageError) as caught:
        plan_epochs(quick, 1, 500)
    assert str(caught.value) == (
        "got epochs=1, 8 steps of 64 of 500 images; wanted at least 22 steps, since a run's "
        "figures are means over its last twenty: give 2.816 or more"
    )
    plan = plan_epochs(quick, 2.816, 500)
    assert plan.sweep_steps == plan.landscape_steps == SHORTEST


# As config.json has it


@pytest.mark.parametrize(
    "plan",
    [
        *PRESETS.values(),
        planned(seeds=[3], lrs=[1, 0.25], norms=["batch", "none"]),
        planned(model="my.models:build", mean=[0.5], std=[0.25], augment=True, image_size=40),
    ],
    ids=[*PRESETS, "changed", "own"],
)
def test_a_plan_is_read_back_from_json_as_it_was(plan):
    back = Plan.from_json(as_read(plan))
    assert back == plan
    assert hash(back) == hash(plan)


def test_what_can_be_asked_can_be_read_back():
    plan = planned(lrs=[0.1, 1e6])
    assert Plan.from_json(as_read(plan)) == plan


def test_a_plan_of_another_version_is_refused_by_what_differs():
    plan = as_read(PRESETS["quick"])
    del plan["lrs"]
    plan["rates"] = [0.1]
    with pytest.raises(RecordsError, match="differs from this version's in: lrs, rates; wanted"):
        Plan.from_json(plan)


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("preset", None),
        ("preset", ["quick"]),
        ("data", 7),
        ("networks", "small_vgg"),
        ("networks", None),
        ("networks", [None]),
        ("networks", [["small_vgg"]]),
        ("seeds", 161),
        ("seeds", ["161"]),
        ("seeds", [161.0]),
        ("seeds", [-1]),
        ("seeds", [2**32]),
        ("seeds", [True]),
        ("gap_seeds", [None]),
        ("norms", ["none", 1]),
        ("lrs", [0.1, "0.3"]),
        ("lrs", [-0.1]),
        ("lrs", [NAN]),
        ("lrs", [INF]),
        ("lrs", [True]),
        ("lrs", {"0.1": 0.3}),
        ("threads", 1.0),
        ("threads", True),
        ("threads", -1),
        ("batch_size", "64"),
        ("image_size", None),
        ("mean", 0.5),
        ("mean", ["0.5"]),
        ("std", [[0.5]]),
        ("augment", 1),
        ("augment", "yes"),
        ("augment", None),
        ("sweep_steps", 140.0),
        ("sweep_steps", 10**12),
        ("gap_target", "0.1"),
        ("gap_target", False),
        ("gap_target", 2.0**32),
        ("ghost_model", {}),
    ],
    ids=lambda value: str(value),
)
def test_a_plan_of_odd_kinds_is_refused_by_their_names(name, odd):
    plan = as_read(PRESETS["standard"]) | {name: odd}
    message = f"got a plan whose {name} is not what a run writes; wanted its config.json as it was"
    with pytest.raises(RecordsError, match=message):
        Plan.from_json(plan)


def test_all_that_is_odd_is_named():
    plan = as_read(PRESETS["quick"]) | {"threads": "2", "lrs": 0.1, "augment": None}
    with pytest.raises(RecordsError, match="whose augment, lrs, threads is not"):
        Plan.from_json(plan)


def test_a_plan_without_seeds_is_refused():
    with pytest.raises(RecordsError):
        Plan.from_json(as_read(PRESETS["standard"]) | {"seeds": []})


def test_a_whole_number_does_for_a_rate():
    plan = as_read(PRESETS["quick"]) | {"lrs": [1, 2], "gap_target": 1}
    assert Plan.from_json(plan) == replace(PRESETS["quick"], lrs=(1, 2), gap_target=1)
