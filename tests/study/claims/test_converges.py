"""Claim 2: the rule meets each case it distinguishes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    PLAN,
    QUANTITIES,
    TWO_SEEDS,
    by,
    by_seed,
    converges_records,
    diverge,
    fail,
    part,
    without,
)

from spiritlevel.study.claims.common import best_rate, mean_final_loss
from spiritlevel.study.claims.converges import GHOSTNET_ARMS, RULE, judge, largest_rate
from spiritlevel.study.records import Records

RATIO, FASTER = RULE["rate_ratio_at_least"], RULE["step_ratio_at_least"]
BN_STEPS = 40
NONE_STEPS = round(BN_STEPS * FASTER)


def arms(none, batch):
    return by("norm", {"none": none, "batch": batch, "group:8": none})


LARGER, SAME = arms(0.1, 1.0), arms(0.1, 0.1)
FAST, EQUAL = arms(2 * NONE_STEPS, BN_STEPS), arms(BN_STEPS, BN_STEPS)
# Ratios of steps of 1, 2 and 4: their interval reaches from far below 1 to far above the bound.
UNCLEAR = arms(by_seed(40, 80, 160), 40)
# BN trains at three times the rate in two seeds only.
SPLIT = arms(0.1, by_seed(1.0, 1.0, 0.1))


def status(**figures):
    return judge(converges_records(**figures)).status


def holds(name, **figures):
    return part(judge(converges_records(**figures)), name).holds


@pytest.mark.parametrize(
    ("largest", "steps", "expected"),
    [
        (LARGER, FAST, "supported"),
        (LARGER, EQUAL, "partly"),
        (LARGER, UNCLEAR, "partly"),
        (SAME, FAST, "partly"),
        (SPLIT, FAST, "partly"),
        (SAME, EQUAL, "not supported"),
        (SAME, UNCLEAR, "inconclusive"),
        (SPLIT, EQUAL, "inconclusive"),
        (SPLIT, UNCLEAR, "inconclusive"),
    ],
    ids=[f"rate {r}, speed {s}" for r, s in ["++", "+-", "+?", "-+", "?+", "--", "-?", "?-", "??"]],
)
def test_larger_rate_and_faster(largest, steps, expected):
    assert status(largest=largest, steps=steps) == expected


def test_bn_that_trains_nowhere_refutes_the_larger_rate():
    assert holds("rate", largest=arms(0.1, None)) is False


@pytest.mark.parametrize("largest", [arms(None, 1.0), arms(by_seed(0.1, 0.1, None), 1.0)])
def test_no_larger_rate_than_that_of_a_net_which_never_trains(largest):
    assert holds("rate", largest=largest) is None


def test_nothing_trains():
    assert status(largest=arms(None, None)) == "inconclusive"


def test_a_net_that_never_trains_is_nothing_to_be_faster_than():
    """The rule: inconclusive where the net without BN trains nowhere."""
    assert status(largest=arms(None, 1.0)) == "inconclusive"


def test_the_end_of_the_grid():
    end = max(PLAN.lrs)
    assert holds("rate", largest=arms(end, end)) is None
    assert holds("rate", largest=arms(0.1, end)) is True


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "none"}, {"norm": "batch"}, {"seed": 11}, {"seed": 11, "norm": "batch"}],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, settings):
    assert judge(change(converges_records(), "sweep", **settings)).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(plan=TWO_SEEDS) == "inconclusive"


def test_the_bound_of_the_rates():
    for factor, expected in ((ABOVE, "supported"), (BELOW, "partly")):
        rate = 0.1 * RATIO * factor
        plan = replace(PLAN, lrs=(0.1, rate, 10.0))
        assert status(largest=arms(0.1, rate), plan=plan) == expected


@pytest.mark.parametrize(
    ("none", "batch"),
    [
        (0.01, 0.03),
        (0.1, 0.3),
        (1.0, 3.0),
    ],
)
def test_three_times_the_rate_is_three_times_the_rate(none, batch):
    plan = replace(PLAN, lrs=(none, batch, 10.0))
    assert batch / none == pytest.approx(RATIO)
    assert holds("rate", largest=arms(none, batch), plan=plan) is True


def test_the_loss_below_which_a_run_has_trained():
    for factor, expected in ((BELOW, "supported"), (ABOVE, "partly")):
        bound = RULE["trained_below"] * factor
        assert status(loss=by("lr", {0.3: bound, 1.0: bound}, 0.2)) == expected


def test_the_bound_of_the_steps():
    assert holds("steps", steps=arms(NONE_STEPS + 1, BN_STEPS)) is True
    assert holds("steps", steps=arms(NONE_STEPS - 1, BN_STEPS)) is False
    assert status(steps=arms(NONE_STEPS + 1, BN_STEPS)) == "supported"
    assert status(steps=arms(NONE_STEPS - 1, BN_STEPS)) == "partly"


def test_faster_on_average_is_not_enough_if_the_interval_reaches_down_to_1():
    """The ratios are 1.6, 1.6 and 1.6, then 1, 2 and 2.5: both are above the bound in the mean."""
    assert holds("steps", steps=arms(64, 40)) is True
    assert holds("steps", steps=arms(by_seed(40, 80, 100), 40)) is None


def test_slower_on_average_is_not_enough_if_the_interval_reaches_up_to_the_bound():
    """The ratios are 1, 1.1 and 1.2, then 0.75, 1.25 and 1.75."""
    assert holds("steps", steps=arms(by_seed(40, 44, 48), 40)) is False
    assert holds("steps", steps=arms(by_seed(30, 50, 70), 40)) is None


def test_each_arm_runs_at_its_own_best_rate():
    """With BN the fast rate is the one that ends lowest; without, the slow one."""
    lowest = {"none": 0.03, "batch": 0.3}
    loss = by("norm", {norm: by("lr", {lr: 0.1}, 0.3) for norm, lr in lowest.items()}, 0.3)
    none, batch = (by("lr", {lowest[norm]: 100}, 30) for norm in ("none", "batch"))
    records = converges_records(loss=loss, steps=arms(none, batch))
    assert {norm: best_rate(records, "sweep", norm) for norm in lowest} == lowest
    assert judge(records).headline.value == pytest.approx(1)


def test_a_rate_at_which_one_seed_diverges_is_not_the_best():
    records = diverge(converges_records(), "sweep", norm="batch", lr=0.01, seed=11)
    assert best_rate(records, "sweep", "batch") == 0.03
    assert mean_final_loss(records, "sweep", norm="batch", lr=0.01) == float("inf")
    assert best_rate(Records(), "sweep", "batch") is None


def test_the_largest_rate_is_read_seed_by_seed():
    records = converges_records(largest=arms(0.1, by_seed(1.0, 0.3, None)))
    assert [largest_rate(records, "batch", seed) for seed in PLAN.seeds] == [1.0, 0.3, None]
    assert part(judge(records), "largest", norm="batch").value is None
    records = converges_records(largest=arms(0.1, by_seed(1.0, 0.3, 0.3)))
    assert part(judge(records), "largest", norm="batch").value == 0.3


@pytest.mark.parametrize("settings", [{}, {"seed": 10}], ids=["every seed", "one seed"])
def test_divergence_is_not_speed(settings):
    """BN breaks off at the third step whatever the rate: it never gets anywhere."""
    records = diverge(converges_records(steps=EQUAL), "sweep", norm="batch", **settings)
    judgement = judge(records)
    assert judgement.headline.value is None or judgement.headline.value <= 1
    assert judgement.status in ("not supported", "inconclusive")


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_landscape_is_shown_at_the_smaller_rate(quantity):
    records = converges_records(smoother=8.0)
    assert part(judge(records), quantity).value == pytest.approx(8)
    records = diverge(records, "landscape", norm="none", lr=0.03, init="he", seed=10)
    assert part(judge(records), quantity).value is None


def test_the_accuracy_that_ghostnet_must_reach():
    bound = RULE["ghostnet_accuracy"]
    for accuracy, reached in ((bound * ABOVE, "3"), (bound * BELOW, "0")):
        judgement = judge(converges_records(reaches=accuracy))
        assert part(judgement, "ghostnet_batch").words["reached"] == reached


def test_ghostnet_is_shown_at_the_rate_that_reaches_most():
    judgement = judge(converges_records(reaches=by("lr", {1.0: 0.6, 1e-4: 0.2}, 0.1)))
    assert part(judgement, "ghostnet_none", init="default").words["lr"] == "1"
    assert part(judgement, "ghostnet_none", init="he").value == pytest.approx(20)
    assert len(GHOSTNET_ARMS) == sum("ghostnet" in p.quantity for p in judgement.parts)
