"""Claim 5: the rule meets each case it distinguishes."""

from __future__ import annotations

import math

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    FIVE_SEEDS,
    PLAN,
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

from spiritlevel.study.claims.decouples import RULE, judge, shift_pairs

EXACT, CONTROL, TRAINS = RULE["exact_below"], RULE["control_above"], RULE["trains_below"]
PAIRS = len(shift_pairs(decouples_records(plan=FIVE_SEEDS)))
MOSTLY, RARELY = math.ceil(RULE["mostly"] * PAIRS), math.floor(RULE["rarely"] * PAIRS)
MIXED = by_seed(True, False, True, False, True)


def status(**figures):
    return judge(decouples_records(**figures)).status


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


@pytest.mark.parametrize(
    "figures",
    [
        {"control": 0.0},
        {"control": by_seed(0.3, 0.3, 0.0)},
        {"control": None},
        {"error": by_seed(1e-15, 1e-15, 1e-3)},
        {"loss": 2.3},
        {"loss": by("norm", {"none": 2.3}, 0.3)},
        {"loss": by("seed", {10: 2.3}, 0.3)},
    ],
    ids=[
        "the control shows nothing",
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
        ("invariance", {}),
        ("invariance", {"seed": 11}),
        ("landscape", {}),
        ("landscape", {"norm": "none"}),
        ("landscape", {"norm": "batch", "seed": 11}),
    ],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, task, settings):
    assert judge(change(decouples_records(), task, **settings)).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(plan=TWO_SEEDS) == "inconclusive"


def test_the_bound_of_exactness():
    assert status(error=EXACT * BELOW) == "supported"
    assert status(error=EXACT * ABOVE) == "partly"


@pytest.mark.parametrize("name", ["errors", "cosine", "trajectories"])
def test_each_identity_must_be_exact(name):
    """One figure above the bound is enough, in every seed."""
    records = decouples_records()
    changed = {
        "errors": {"errors": {"0.0": [1e-15, EXACT * ABOVE], "1e-05": [1e-3]}},
        "cosine": {"cosine": EXACT * ABOVE},
        "trajectories": {"trajectories": {"worst_difference": EXACT * ABOVE}},
    }[name]
    for record in records.select("invariance"):
        record.result.update(changed)
    assert judge(records).status == "partly"


def test_an_error_that_is_no_number_decides_nothing():
    records = decouples_records()
    for record in records.select("invariance"):
        record.result["errors"]["0.0"][0] = None
    assert judge(records).status == "inconclusive"


def test_the_bound_of_the_control():
    assert status(control=CONTROL * ABOVE) == "supported"
    assert status(control=CONTROL * BELOW) == "inconclusive"


def test_the_bound_of_training():
    assert status(loss=TRAINS * BELOW) == "supported"
    assert status(loss=TRAINS * ABOVE) == "inconclusive"


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


@pytest.mark.parametrize("name", ["cosine", "trajectories"])
def test_an_identity_that_is_no_number_does_not_end_the_judging(name):
    records = decouples_records()
    for record in records.select("invariance", seed=10):
        nothing = {"cosine": None, "trajectories": {"worst_difference": None}}
        record.result[name] = nothing[name]
    assert judge(records).status == "inconclusive"


def test_figures():
    judgement = judge(decouples_records(error=1e-15, control=0.3))
    assert part(judgement, "exact").value == pytest.approx(1e-15)
    assert part(judgement, "cosine_without").value == pytest.approx(0.3)
    assert part(judgement, "rate_without").value == pytest.approx(16)
    assert judgement.words["better"] == judgement.words["pairs"]


def test_one_initialisation_alone_decides_nothing_of_the_layers():
    """What BN does to the shift depends on it."""
    records = diverge(decouples_records(), "landscape", norm="none", init="xavier")
    assert {pair["init"] for pair in shift_pairs(records)} == {"he"}
    assert judge(decouples_records()).status == "supported"
    assert judge(records).status == "partly"
