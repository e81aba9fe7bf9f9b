"""Claim 4: the rule meets each case it distinguishes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import t
from study.synthetic import (
    ABOVE,
    BELOW,
    NETWORKS,
    PLAN,
    PLANS,
    TWO_SEEDS,
    by,
    by_seed,
    diverge,
    fail,
    part,
    regularises_records,
    without,
)

from spiritlevel.study.claims import judge as judge_all
from spiritlevel.study.claims.regularises import (
    ARMS,
    BIG_ARMS,
    RIVALS,
    RULE,
    _name,
    cells,
    differences,
    judge,
)
from spiritlevel.study.records import Records

NO_EFFECT = RULE["no_effect_within"]
ERRORS = t.ppf(0.975, 5)  # half the interval of six values, in standard errors
SLOPES = (RULE["slope_from"], RULE["slope_to"])
TEN_SEEDS = replace(PLAN, gap_seeds=tuple(range(10, 20)))
UNCLEAR = by_seed(-0.05, 0.03, -0.02, 0.04, -0.03, 0.01)


def status(plan=PLAN, **figures):
    return judge_all("regularises", regularises_records(plan=plan, **figures), plan).status


def spread(mean, standard_error):
    """Six differences with this mean and this standard error."""
    # Of (-1, -1, -1, 1, 1, 1) the deviation is sqrt(6 / 5) and the standard error sqrt(1 / 5).
    unit = standard_error * 5**0.5
    return by_seed(*(mean + sign * unit for sign in (-1, -1, -1, 1, 1, 1)))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, "supported"),
        ({"rivals": -0.03}, "partly"),
        ({"slope": -0.2}, "partly"),
        ({"difference": 0.0}, "not supported"),
        ({"difference": UNCLEAR}, "inconclusive"),
    ],
    ids=["supported", "a rival", "the slope", "no effect", "seeds disagree"],
)
def test_each_verdict_on_the_networks_of_each_plan(plan, figures, expected):
    assert status(plan, **figures) == expected


@pytest.mark.parametrize(
    "figures",
    [{"rivals": -0.03}, {"slope": -0.2}, {"slope": -2.0}],
    ids=["a rival without noise does as well", "noise falls too slowly", "noise falls too fast"],
)
def test_partly_if_lower_but_not_by_the_noise_alone(figures):
    assert status(**figures) == "partly"


@pytest.mark.parametrize("arm", RIVALS)
def test_partly_whichever_rival_does_as_well(arm):
    rival = by("norm", {ARMS[arm]["norm"]: by("lr", {ARMS[arm]["lr"]: -0.03}, 0.01)}, 0.01)
    assert status(rivals=rival) == "partly"
    assert judge(regularises_records(rivals=rival)).words["rival"] == _name(arm)


@pytest.mark.parametrize(
    "difference",
    [spread(0.03, 0.005), spread(0.0, 0.001), 0.0, 0.01],
    ids=["higher", "no effect", "none at all", "higher in all alike"],
)
def test_not_supported_if_the_test_loss_is_no_lower(difference):
    assert status(difference=difference) == "not supported"


@pytest.mark.parametrize(
    "figures",
    [
        {"difference": UNCLEAR},
        {"difference": by_seed(-0.02, -0.02, -0.02, -0.02, -0.02, None)},
        {"slope": by_seed(-1.0, -1.0, None)},
    ],
    ids=["seeds disagree", "a seed never reaches the target", "no slope in a seed"],
)
def test_inconclusive_if_the_seeds_do_not_tell(figures):
    assert status(**figures) == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("noise", {}),
        ("noise", {"seed": 11}),
        ("gap", {}),
        ("gap", {"norm": "ghost:16"}),
        ("gap", {"noise": False}),
    ],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, task, settings):
    assert judge(change(regularises_records(), task, **settings)).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(TWO_SEEDS) == "inconclusive"


def test_no_effect_needs_no_slope():
    records = without(regularises_records(difference=0.0), "noise")
    assert judge(records).status == "not supported"


@pytest.mark.parametrize("outside", [BELOW, ABOVE])
def test_the_bounds_of_the_slope(outside):
    inside = ABOVE if outside == BELOW else BELOW
    bound = SLOPES[1] if outside == BELOW else SLOPES[0]
    assert status(slope=bound * inside) == "supported"
    assert status(slope=bound * outside) == "partly"


def test_the_slope_is_judged_by_its_mean():
    assert status(slope=by_seed(-0.6, -1.0, -1.4)) == "supported"


def test_the_bound_in_standard_errors():
    """Lower in five of six seeds, and by two standard errors on average, more or less."""
    error = 0.01
    six = [-1.0, -1.0, -1.0, -1.0, -1.0, 5.0]  # mean 0, standard error 1
    for factor, expected in ((ABOVE, "supported"), (BELOW, "inconclusive")):
        mean = -ERRORS * error * factor
        assert status(difference=by_seed(*(mean + error * d for d in six))) == expected


def test_the_share_of_seeds():
    """Exactly at the share it holds, one seed below it does not, and the mean is clear in both."""
    lower = math.ceil(RULE["share_of_seeds"] * len(TEN_SEEDS.gap_seeds))
    for count, expected in ((lower, "supported"), (lower - 1, "inconclusive")):
        values = [-0.1] * count + [1e-6] * (10 - count)
        by_ten = by("seed", dict(zip(TEN_SEEDS.gap_seeds, values, strict=True)))
        assert status(TEN_SEEDS, difference=by_ten) == expected


def test_the_bound_of_no_effect():
    """The interval of six is the mean and 2.571 standard errors to either side."""
    t = 2.5706
    for factor, expected in ((0.999, "not supported"), (1.001, "inconclusive")):
        assert status(difference=spread(0.0, NO_EFFECT / t * factor)) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_no_effect_is_bounded_on_both_sides(sign):
    """The interval reaches beyond one of the two bounds, whichever it is."""
    mean = 0.8 * NO_EFFECT
    assert status(difference=spread(sign * mean, mean / ERRORS * ABOVE)) == "inconclusive"


def test_a_rival_must_do_as_well():
    mean = -0.02
    difference = by_seed(*[mean] * 6)
    assert status(difference=difference, rivals=mean * ABOVE) == "partly"
    assert status(difference=difference, rivals=mean * BELOW) == "supported"


@pytest.mark.parametrize(
    ("behind", "expected"), [(2.58, "supported"), (2.56, "partly"), (-2.56, "partly")]
)
def test_a_rival_is_beaten_if_the_interval_of_its_distance_lies_above_0(behind, expected):
    """Student's t of six is 2.571 standard errors; the distances are paired by seed."""
    error = 0.01
    noise = by_seed(-0.09, -0.1, -0.11, -0.1, -0.12, -0.08)
    distance = spread(behind * error, error)

    def rivals(settings):
        return noise(settings) + distance(settings)

    assert status(difference=noise, rivals=rivals) == expected


@pytest.mark.parametrize("change", [fail, without, diverge])
def test_a_rival_that_one_seed_did_not_measure_is_not_beaten(change):
    """A run that is missing leaves a pair fewer; one that misses the target leaves no interval."""
    arm = ARMS[RIVALS[0]]
    records = change(regularises_records(), "gap", seed=10, **arm)
    assert judge(records).status == ("inconclusive" if change is diverge else "supported")


def test_not_supported_for_want_of_rivals():
    records = regularises_records()
    for arm in RIVALS:
        records = fail(records, "gap", **ARMS[arm])
    assert judge(records).status != "supported"


@pytest.mark.parametrize("arm", [arm for arm in RIVALS if arm in BIG_ARMS])
def test_partly_whichever_of_fewer_rivals_does_as_well(arm):
    rival = by("norm", {ARMS[arm]["norm"]: by("lr", {ARMS[arm]["lr"]: -0.03}, 0.01)}, 0.01)
    assert status(NETWORKS, rivals=rival) == "partly"


def test_rivals_count_as_far_as_they_were_run():
    """A network that takes its time has fewer of them: one that is not there decides nothing."""
    assert set(RIVALS) & set(BIG_ARMS) != set(RIVALS)
    records = regularises_records(plan=NETWORKS).of("small_vgg")
    assert not [arm for arm in ARMS if arm not in BIG_ARMS and records.select("gap", **ARMS[arm])]
    assert judge(records).status == "supported"
    for arm in set(RIVALS) & set(BIG_ARMS):
        some = diverge(records, "gap", seed=10, **ARMS[arm])
        assert judge(some).status == "inconclusive", "one that was run and gave no figure"


def test_differences_are_paired_by_seed():
    records = without(regularises_records(), "gap", seed=12, noise=False)
    assert differences(records, "16").keys() == set(PLAN.gap_seeds) - {12}
    assert differences(regularises_records(), "16")[11] == pytest.approx(-0.021)
    assert differences(Records(), "16") == {}


def test_an_arm_that_does_not_reach_the_target_has_no_difference():
    records = diverge(regularises_records(), "gap", norm="ghost:16", seed=10)
    assert differences(records, "16")[10] is None
    assert judge(records).status == "inconclusive"
    words = judge(records).words
    assert (words["lower"], words["seeds"]) == ("5", "5")


def test_figures():
    judgement = judge(regularises_records(rivals=0.01))
    assert judgement.headline.value == pytest.approx(-0.02)
    assert judgement.headline.n == len(PLAN.gap_seeds)
    assert part(judgement, "slope").value == pytest.approx(-1)
    assert part(judgement, "difference", arm="layer norm").value == pytest.approx(0.01)
    gap = (
        part(judgement, "gap", arm="noise off").value
        - part(judgement, "gap", arm="groups of 16").value
    )
    assert gap == pytest.approx(0.02)
    assert (judgement.words["lower"], judgement.words["seeds"]) == ("6", "6")


def test_no_two_arms_are_the_same_cell():
    gap = [cell.key for cell in cells(PLAN) if cell.task == "gap"]
    assert len(set(gap)) == len(gap) == len(ARMS) * len(PLAN.gap_seeds)
    gap = [cell.key for cell in cells(NETWORKS) if cell.task == "gap"]
    assert len(set(gap)) == len(gap) == 2 * len(BIG_ARMS) * len(PLAN.gap_seeds)


def test_a_tiny_effect_is_no_effect_however_clear():
    tiny = RULE["no_effect_within"] / 5
    assert status(difference=by_seed(*[-tiny] * 6)) == "not supported"
