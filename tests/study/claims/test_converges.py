"""Claim 2: the rule meets each case it distinguishes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    CLASSES,
    GHOSTNET,
    NETWORKS,
    PLAN,
    PLANS,
    QUANTITIES,
    TWO_SEEDS,
    by,
    by_seed,
    converges_records,
    diverge,
    fail,
    part,
    stabilises_records,
    without,
)

from spiritlevel.study.claims import judge as judge_all
from spiritlevel.study.claims.common import best_arm, mean_final_loss
from spiritlevel.study.claims.converges import (
    GHOSTNET_ARMS,
    RULE,
    cells,
    ghostnet_arms,
    largest_rate,
    trained_below,
)
from spiritlevel.study.networks import network
from spiritlevel.study.records import Records

RATIO, FASTER = RULE["rate_ratio_at_least"], RULE["step_ratio_at_least"]
BN_STEPS = 40
NONE_STEPS = round(BN_STEPS * FASTER)
CHANCE = math.log(CLASSES)


def arms(none, batch):
    return by("norm", {"none": none, "batch": batch, "group:8": none})


LARGER, SAME = arms(0.1, 1.0), arms(0.1, 0.1)
FAST, EQUAL = arms(2 * NONE_STEPS, BN_STEPS), arms(BN_STEPS, BN_STEPS)
# Ratios of steps of 1, 2 and 4: their interval reaches from far below 1 to far above the bound.
UNCLEAR = arms(by_seed(30, 60, 120), 30)
# BN trains at three times the rate in two seeds only.
SPLIT = arms(0.1, by_seed(1.0, 1.0, 0.1))


def judge(records, plan=PLAN):
    return judge_all("converges", records, plan)


def mine(records):
    """Those of the network on which the quick plan judges."""
    return records.of("small_vgg")


def status(plan=PLAN, **figures):
    return judge(converges_records(plan=plan, **figures), plan).status


def holds(name, plan=PLAN, **figures):
    return part(judge(converges_records(plan=plan, **figures), plan), name).holds


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


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("largest", "steps", "expected"),
    [
        (LARGER, FAST, "supported"),
        (LARGER, EQUAL, "partly"),
        (SAME, EQUAL, "not supported"),
        (SPLIT, UNCLEAR, "inconclusive"),
    ],
    ids=["supported", "partly", "not supported", "inconclusive"],
)
def test_each_verdict_on_the_networks_of_each_plan(plan, largest, steps, expected):
    assert status(plan, largest=largest, steps=steps) == expected


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
    for batch in (end, 1.0, None):
        found = part(judge(converges_records(largest=arms(end, batch))), "rate")
        assert (found.holds, found.value) == (None, None)
    assert holds("rate", largest=arms(0.1, end)) is True


def test_a_lower_bound_refutes_nothing():
    """BN trains to the end of the grid, which is too near to tell how much farther it would."""
    plan = replace(PLAN, lrs=(0.05, 0.1, 0.2))
    assert holds("rate", plan, largest=arms(0.1, 0.2)) is None
    plan = replace(PLAN, lrs=(0.05, 0.1, 0.2, 0.25))
    assert holds("rate", plan, largest=arms(0.1, 0.2)) is False


def test_noisy_controls_are_not_among_the_norms_of_the_grid():
    records = Records([*stabilises_records(plan=NETWORKS), *converges_records(plan=NETWORKS)])
    assert "noisy-batch" in records.values("train", "norm")
    found = judge(records, NETWORKS).by_network["small_vgg"]
    assert found.words["norms"] == "batch, group:8, none"
    read = [one.words["norm"] for one in found.parts if one.quantity.endswith("largest")]
    assert sorted(read) == ["batch", "group:8", "none"]


def test_a_rate_at_which_bn_alone_ran_is_not_of_the_grid():
    """Claim 1 runs BN and noisy BN at a rate of the network's, whatever grid was asked for."""
    plan = replace(NETWORKS, networks=("small_vgg",), lrs=(0.01, 0.03))
    records = Records([*stabilises_records(plan=plan), *converges_records(plan=plan)])
    beside = {r.settings["lr"] for r in records.select("train", norm="batch")} - set(plan.lrs)
    assert beside == {network("small_vgg").rate}
    for record in records.select("train", norm="batch", lr=network("small_vgg").rate):
        record.result["final_loss"] = 0.01
    found = judge(records, plan)
    assert part(found, "rate").holds is None
    assert part(found, "largest", norm="batch").value in plan.lrs
    assert found.words["rate_batch"] in ("0.01", "0.03")


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "none"}, {"norm": "batch"}, {"seed": 11}, {"seed": 11, "norm": "batch"}],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, settings):
    assert judge(change(converges_records(), "train", **settings)).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(TWO_SEEDS) == "inconclusive"


def test_the_bound_of_the_rates():
    for factor, expected in ((ABOVE, "supported"), (BELOW, "partly")):
        rate = 0.1 * RATIO * factor
        plan = replace(PLAN, lrs=(0.1, rate, 10.0))
        assert status(plan, largest=arms(0.1, rate)) == expected


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
    assert holds("rate", plan, largest=arms(none, batch)) is True


@pytest.mark.parametrize("best", [0.2, 1.0, 2.0])
def test_a_run_has_trained_if_it_came_part_of_the_way_to_the_best(best):
    """BN ends at the best loss at its smallest rate, and beyond the plain net's a hair off."""
    bound = CHANCE - RULE["share_of_way"] * (CHANCE - best)
    for factor, expected in ((BELOW, True), (ABOVE, False)):
        loss = by("lr", {0.3: bound * factor, 1.0: bound * factor}, best)
        assert trained_below(mine(converges_records(loss=loss))) == pytest.approx(bound)
        assert holds("rate", loss=loss) is expected


def test_the_way_to_the_best_is_that_of_any_norm_from_chance():
    """Where group norm ends lower than both arms that are compared, they have farther to go."""
    loss = by("norm", {"group:8": 0.1}, 1.9)
    assert trained_below(mine(converges_records(loss=loss))) == pytest.approx(
        CHANCE - RULE["share_of_way"] * (CHANCE - 0.1)
    )
    assert holds("rate", loss=loss) is None
    assert holds("rate", loss=1.9) is True


def test_chance_is_that_of_as_many_classes():
    records = mine(converges_records(loss=0.2))
    for record in records.select("train"):
        record.result["classes"] = 100
    chance = math.log(100)
    assert trained_below(records) == pytest.approx(chance - RULE["share_of_way"] * (chance - 0.2))


def test_nothing_has_trained_where_nothing_ended():
    assert trained_below(Records()) is None
    assert trained_below(diverge(mine(converges_records()))) is None


def test_no_run_has_trained_that_is_above_chance():
    """Each seed has a rate at which it ends at chance by luck; in the mean all are worse."""
    lucky = {10: 0.03, 11: 0.1, 12: 0.3}

    def loss(s):
        return CHANCE + (0.001 if lucky[s["seed"]] == s["lr"] else 0.01)

    records = mine(converges_records(largest=3.0, loss=loss))
    assert all(largest_rate(records, "batch", seed) is None for seed in PLAN.seeds)


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
    found = {norm: best_arm(mine(records), norm) for norm in lowest}
    assert found == {norm: ("he", lr) for norm, lr in lowest.items()}
    assert judge(records).headline.value == pytest.approx(1)


def test_a_rate_at_which_one_seed_diverges_is_not_the_best():
    records = mine(diverge(converges_records(), "train", norm="batch", lr=0.01, seed=11))
    assert best_arm(records, "batch") == ("he", 0.03)
    assert mean_final_loss(records, "train", norm="batch", lr=0.01) == math.inf
    assert best_arm(Records(), "batch") is None


def test_the_largest_rate_is_read_seed_by_seed():
    records = converges_records(largest=arms(0.1, by_seed(1.0, 0.3, None)))
    found = [largest_rate(mine(records), "batch", seed) for seed in PLAN.seeds]
    assert found == [1.0, 0.3, None]
    assert part(judge(records), "largest", norm="batch").value is None
    records = converges_records(largest=arms(0.1, by_seed(1.0, 0.3, 0.3)))
    assert part(judge(records), "largest", norm="batch").value == 0.3


@pytest.mark.parametrize("settings", [{}, {"seed": 10}], ids=["every seed", "one seed"])
def test_divergence_is_not_speed(settings):
    """BN breaks off at the third step whatever the rate: it never gets anywhere."""
    records = diverge(converges_records(steps=EQUAL), "train", norm="batch", **settings)
    judgement = judge(records)
    assert judgement.headline.value is None or judgement.headline.value <= 1
    assert judgement.status in ("not supported", "inconclusive")


def test_a_target_that_is_not_reached_counts_as_reached_one_step_too_late():
    judgement = judge(converges_records(steps=arms(70, None)))
    assert judgement.headline.value == pytest.approx(70 / (PLAN.sweep_steps + 1))


def test_a_net_that_ends_at_chance_has_come_no_way_to_be_faster_on():
    for ends_at, expected in ((ABOVE / CLASSES, 3), (1 / CLASSES, 0)):
        records = converges_records()
        for record in records.select("train", norm="none", network="small_vgg"):
            record.result["final_accuracy"] = ends_at
        assert judge(records).headline.n == expected


def test_the_ratio_of_rates_counts_its_own_seeds():
    records = converges_records()
    for record in records.select("train", norm="none", network="small_vgg", seed=11):
        record.result["final_accuracy"] = 1 / CLASSES
    found = part(judge(records), "rate")
    assert found.value == pytest.approx(10)
    assert found.n == 3


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_landscape_is_shown_at_the_smaller_rate(quantity):
    records = converges_records(smoother=8.0)
    assert part(judge(records), quantity).value == pytest.approx(8)
    records = diverge(records, "landscape", norm="none", lr=0.03, init="he", seed=10)
    assert part(judge(records), quantity).value is None


def test_each_figure_of_the_rates_stands_on_all_runs_of_its_norms():
    """It changes where the largest rate that trains is no more, and where the next one is."""
    records = mine(converges_records())
    rate = part(judge(records), "rate")
    none, batch = (part(judge(records), "largest", norm=norm) for norm in ("none", "batch"))
    assert {*none.records, *batch.records} < set(rate.records), "and the norm that sets the bound"
    assert len(rate.records) == 3 * len(PLAN.lrs) * len(PLAN.seeds)
    for lr, final_loss in ((1.0, None), (3.0, 0.2)):
        changed = mine(converges_records())
        (record,) = changed.select("train", norm="batch", lr=lr, seed=11)
        assert records.number(record) in batch.records
        record.result["final_loss"] = final_loss
        assert part(judge(changed), "rate").value != pytest.approx(rate.value)
        assert part(judge(changed), "largest", norm="none") == none
    assert part(judge(changed), "largest", norm="batch") == batch, "one seed more at 3"


def test_the_runs_that_set_the_bound_are_among_those_of_the_rates():
    records = mine(converges_records(loss=by("norm", {"group:8": 0.1}, 0.2)))
    read = {
        list(records)[number].settings["norm"] for number in part(judge(records), "rate").records
    }
    assert read == {"none", "batch", "group:8"}


def test_the_cells_without_a_norm_have_the_weights_and_rates_that_help():
    found = {
        (c.settings["init"], c.settings["lr"])
        for c in cells(GHOSTNET)
        if c.task == "train" and c.settings["norm"] == "none"
    }
    known = network("ghostnet_050")
    assert found == {(known.inits[-1], lr) for lr in (*known.small_rates, *GHOSTNET.lrs)}
    assert known.small_rates
    assert known.inits[-1] != known.inits[0]
    normed = [c.settings for c in cells(GHOSTNET) if c.settings["norm"] == "batch"]
    assert {s["lr"] for s in normed} - set(GHOSTNET.lrs) == {0.002, 0.003}, "the landscape's"


# GhostNet, beside the small network


def beside(records):
    return list(ghostnet_arms(records.of("ghostnet_050")))


def of_arm(parts, name, **words):
    (found,) = (p for p in parts if p.quantity.endswith(name) and words.items() <= p.words.items())
    return found


def test_the_accuracy_that_ghostnet_must_reach():
    bound = RULE["ghostnet_accuracy"]
    for accuracy, reached in ((bound * ABOVE, "3"), (bound * BELOW, "0")):
        parts = beside(converges_records(reaches=accuracy))
        assert of_arm(parts, "ghostnet_batch").words["reached"] == reached


def test_ghostnet_is_shown_at_the_rate_that_reaches_most():
    parts = beside(converges_records(reaches=by("lr", {1.0: 0.6, 1e-4: 0.2}, 0.1)))
    assert of_arm(parts, "ghostnet_none", init="torch's own").words["lr"] == "1"
    assert of_arm(parts, "ghostnet_none", init="He").value == pytest.approx(20)
    assert len(parts) == len(GHOSTNET_ARMS)


@pytest.mark.parametrize("accuracy", [0.9, 0.1])
def test_ghostnet_beside_decides_nothing(accuracy):
    assert status(reaches=accuracy) == "supported"


def test_ghostnet_is_among_the_numbers_of_the_claim_where_it_is_not_judged():
    for plan, count in ((PLAN, len(GHOSTNET_ARMS)), (NETWORKS, 0), (GHOSTNET, 0)):
        found = judge(converges_records(plan=plan), plan).parts
        assert sum("ghostnet" in one.quantity for one in found) == count
