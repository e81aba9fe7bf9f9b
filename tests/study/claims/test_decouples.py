"""Claim 5: the rule meets each case it distinguishes."""

from __future__ import annotations

import math

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    CLASSES,
    FIVE_SEEDS,
    GHOSTNET,
    NETWORKS,
    OWN,
    PLAN,
    PLANS,
    TWO_SEEDS,
    by,
    by_seed,
    decouples_records,
    diverge,
    fail,
    first,
    part,
    without,
)

from spiritlevel.study.claims import judge as judge_all
from spiritlevel.study.claims.decouples import RULE, cells, judge, shift_pairs

EXACT, CONTROL, TRAINS = RULE["exact_below"], RULE["control_above"], RULE["trains_below"]
PAIRS = len(shift_pairs(decouples_records(plan=FIVE_SEEDS)))
MOSTLY, RARELY = math.ceil(RULE["mostly"] * PAIRS), math.floor(RULE["rarely"] * PAIRS)
MIXED = by_seed(True, False, True, False, True)


CHANCE = math.log(CLASSES)


def status(plan=PLAN, **figures):
    return judge_all("decouples", decouples_records(plan=plan, **figures), plan).status


def of_networks(figure, otherwise):
    """`figure` for the whole networks, `otherwise` for the single layers."""
    return lambda settings: figure if "network" in settings else otherwise


@pytest.mark.parametrize(
    ("error", "better", "expected"),
    [
        (1e-15, True, "supported"),
        (1e-15, False, "partly"),
        (1e-15, MIXED, "partly"),
        (1e-3, True, "partly"),
        (1e-3, False, "not supported"),
        (1e-3, MIXED, "not supported"),
    ],
    ids=[f"scale {s}, layers {c}" for s, c in ["++", "+-", "+?", "-+", "--", "-?"]],
)
def test_scale_and_layers(error, better, expected):
    assert status(error=error, better=better) == expected


@pytest.mark.parametrize("plan", [PLAN, NETWORKS], ids=["quick", "networks"])
@pytest.mark.parametrize(
    ("error", "better", "expected"),
    [
        (1e-15, True, "supported"),
        (1e-15, False, "partly"),
        (1e-3, False, "not supported"),
        (by_seed(1e-15, 1e-15, 1e-3), True, "inconclusive"),
    ],
    ids=["supported", "partly", "not supported", "inconclusive"],
)
def test_each_verdict_on_the_networks_of_each_plan(plan, error, better, expected):
    assert status(plan, error=error, better=better) == expected


@pytest.mark.parametrize("plan", [GHOSTNET, OWN], ids=["GhostNet", "own"])
def test_a_network_of_one_initialisation_is_never_free_of_the_other_layers(plan):
    """It has two rates from the same weights: of the layers that decides nothing."""
    records = decouples_records(plan=plan)
    pairs = shift_pairs(records)
    assert len({pair["init"] for pair in pairs}) == 1
    assert len({pair["lr"] for pair in pairs}) == 2
    judgement = judge_all("decouples", records, plan)
    assert judgement.headline.holds is None
    assert judgement.headline.value == pytest.approx(0.5)
    assert judgement.status == "partly"


@pytest.mark.parametrize(
    "figures",
    [
        {"control": 0.0},
        {"control": of_networks(0.0, 0.3)},
        {"control": of_networks(0.3, 0.0)},
        {"control": by_seed(0.3, 0.3, 0.0)},
        {"control": None},
        {"error": by_seed(1e-15, 1e-15, 1e-3)},
        {"loss": 2.3},
        {"loss": by("norm", {"none": 2.3}, 0.3)},
        {"loss": by("seed", {10: 2.3}, 0.3)},
    ],
    ids=[
        "the control shows nothing",
        "in the network nothing",
        "in the single layer nothing",
        "the control shows nothing in one seed",
        "the control is no number",
        "seeds disagree",
        "nothing trains",
        "one arm does not train",
        "one seed does not train",
    ],
)
def test_inconclusive(figures):
    assert status(**figures) == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("scaling", {}),
        ("scaling", {"seed": 11}),
        ("landscape", {}),
        ("landscape", {"norm": "none"}),
        ("landscape", {"norm": "batch", "seed": 11}),
    ],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, task, settings):
    assert judge(change(decouples_records(), task, **settings)).status == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize("settings", [{}, {"seed": 11}], ids=str)
def test_inconclusive_if_the_single_layer_is_missing(change, settings):
    """All identities must hold, and those of whole trainings are told by the layer alone."""
    assert judge(change(decouples_records(), "invariance", **settings)).status == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
def test_inconclusive_if_the_identities_were_read_in_two_seeds(change):
    records = change(decouples_records(), "scaling", seed=12)
    assert judge(change(records, "invariance", seed=12)).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(TWO_SEEDS) == "inconclusive"


IDENTITIES = [
    ("scaling", "errors"),
    ("scaling", "cosine"),
    ("invariance", "errors"),
    ("invariance", "cosine"),
    ("invariance", "trajectories"),
]


def one_off(task, name, figure, seeds=PLAN.seeds):
    """Records of which a single identity is off by `figure`, in these seeds."""
    records = decouples_records()
    changed = {
        "errors": {"errors": {"0.0": [1e-15, figure], "1e-05": [1e-3]}},
        "cosine": {"cosine": figure},
        "trajectories": {"trajectories": {"worst_difference": figure}},
    }[name]
    for record in records.select(task):
        if record.settings["seed"] in seeds:
            record.result.update(changed)
    return records


@pytest.mark.parametrize(("task", "name"), IDENTITIES)
def test_each_identity_must_be_exact(task, name):
    """One figure above the bound is enough, in every seed."""
    assert judge(one_off(task, name, EXACT * ABOVE)).status == "partly"


@pytest.mark.parametrize(("task", "name"), IDENTITIES)
def test_each_identity_may_be_off_by_rounding(task, name):
    assert judge(one_off(task, name, EXACT * BELOW)).status == "supported"
    assert judge(one_off(task, name, EXACT * ABOVE)).status != "supported"


@pytest.mark.parametrize(("task", "name"), IDENTITIES)
def test_an_identity_that_fails_in_one_seed_decides_nothing(task, name):
    assert judge(one_off(task, name, EXACT * ABOVE, PLAN.seeds[:1])).status == "inconclusive"


@pytest.mark.parametrize(("task", "name"), IDENTITIES)
def test_an_identity_that_is_no_number_decides_nothing(task, name):
    for seeds in (PLAN.seeds, PLAN.seeds[:1]):
        assert judge(one_off(task, name, None, seeds)).status == "inconclusive"


def test_the_bound_of_the_control():
    assert status(control=CONTROL * ABOVE) == "supported"
    assert status(control=CONTROL * BELOW) == "inconclusive"


def test_the_bound_of_training_is_a_share_of_chance():
    assert status(loss=TRAINS * CHANCE * BELOW) == "supported"
    assert status(loss=TRAINS * CHANCE * ABOVE) == "inconclusive"


@pytest.mark.parametrize("name", ["l2", "cosine", "relative"])
def test_a_shift_that_is_no_number_is_compared_with_nothing(name):
    """A run may train and yet have overflowed where the shift was read."""
    records = decouples_records()
    for record in records.select("landscape", norm="batch", lr=0.03, seed=11):
        record.result["shift_median"][name] = None
    assert {pair["lr"] for pair in shift_pairs(records)} == {0.1}


def test_chance_is_that_of_as_many_classes():
    for factor, expected in ((BELOW, "supported"), (ABOVE, "inconclusive")):
        records = decouples_records(loss=TRAINS * math.log(100) * factor)
        for record in records.select("landscape"):
            record.result["classes"] = 100
        assert judge(records).status == expected


@pytest.mark.parametrize(
    ("count", "holds"),
    [(PAIRS, True), (MOSTLY, True), (MOSTLY - 1, None), (RARELY + 1, None), (RARELY, False)],
)
def test_the_shares_of_pairs(count, holds):
    records = decouples_records(better=first(count, FIVE_SEEDS), plan=FIVE_SEEDS)
    judgement = judge(records)
    assert judgement.headline.holds is holds
    assert judgement.status == ("supported" if holds else "partly")
    assert part(judgement, "share").value == pytest.approx(100 * count / PAIRS)


@pytest.mark.parametrize("name", ["relative", "cosine"])
def test_better_is_shorter_and_at_a_smaller_angle(name):
    records = decouples_records()
    for pair in shift_pairs(records):
        pair["batch"][name] = pair["none"][name]
    assert judge(records).headline.holds is False


def test_pairs_are_of_the_same_rate_initialisation_and_seed():
    records = decouples_records(relative=by("lr", {0.03: 0.5, 0.1: 0.25}))
    pairs = shift_pairs(records)
    assert len(pairs) == len(PAIRS_OF_QUICK) * len(PLAN.seeds)
    assert {(pair["lr"], pair["init"]) for pair in pairs} == PAIRS_OF_QUICK
    alone = without(records, "landscape", norm="none", init="he", lr=0.1)
    assert {(pair["lr"], pair["init"]) for pair in shift_pairs(alone)} == {
        (0.03, "he"),
        (0.1, "xavier"),
    }


PAIRS_OF_QUICK = {(0.03, "he"), (0.1, "he"), (0.1, "xavier")}


def test_the_headline_is_the_geometric_mean_over_pairs_then_seeds():
    judgement = judge(decouples_records(relative=by("lr", {0.03: 0.5, 0.1: 0.25})))
    assert judgement.headline.value == pytest.approx((0.5 * 0.25**2) ** (1 / 3))


def test_diverged_runs_are_left_out():
    records = diverge(decouples_records(), "landscape", norm="none", lr=0.1)
    assert {pair["lr"] for pair in shift_pairs(records)} == {0.03}
    assert judge(records).status == "partly"


def test_figures():
    judgement = judge(decouples_records(error=1e-15, control=0.3))
    assert part(judgement, "exact").value == pytest.approx(1e-15, abs=0)
    assert part(judgement, "exact_layer").value == pytest.approx(1e-15, abs=0)
    assert part(judgement, "eps").value == pytest.approx(1e-3)
    assert part(judgement, "float32").value == pytest.approx(4e-7)
    assert part(judgement, "cosine_without").value == pytest.approx(0.3)
    assert part(judgement, "rate_without").value == pytest.approx(16)
    assert judgement.words["better"] == judgement.words["pairs"]


def test_one_initialisation_alone_decides_nothing_of_the_layers():
    """What BN does to the shift depends on it."""
    records = diverge(decouples_records(), "landscape", norm="none", init="xavier")
    assert {pair["init"] for pair in shift_pairs(records)} == {"he"}
    assert judge(decouples_records()).status == "supported"
    assert judge(records).status == "partly"


def test_whole_networks_and_single_layers_are_shown_apart():
    judgement = judge(decouples_records(error=of_networks(1e-13, 1e-15)))
    assert part(judgement, "exact").value == pytest.approx(1e-13, abs=0)
    assert part(judgement, "cosine").value == pytest.approx(0.5e-13, abs=0)
    assert part(judgement, "exact_layer").value == pytest.approx(1e-15, abs=0)
    assert part(judgement, "rate").value == pytest.approx(0.5e-15, abs=0)


def test_the_figures_of_the_shift_stand_on_the_pairs_that_count():
    records = diverge(decouples_records(), "landscape", norm="none", lr=0.1, init="xavier", seed=11)
    judgement = judge(records)
    read = [list(records)[number].settings for number in judgement.headline.records]
    assert {(s["lr"], s["init"]) for s in read} == {(0.03, "he"), (0.1, "he")}
    assert len(read) == len(set(judgement.headline.records)) == 2 * 2 * len(PLAN.seeds)
    assert part(judgement, "share").records == judgement.headline.records


def test_the_cells_are_of_each_network_and_of_one_layer():
    for plan in PLANS.values():
        found = list(cells(plan))
        names = plan.networks or ("small_vgg",)
        scaling = [c.settings for c in found if c.task == "scaling"]
        assert {s["network"] for s in scaling} == set(names)
        assert len(scaling) == len(names) * len(plan.seeds)
        layers = [c.settings for c in found if c.task == "invariance"]
        assert len(layers) == len(plan.seeds)
        assert not any("network" in s for s in layers)
