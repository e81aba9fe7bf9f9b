"""Claim 1: the rule meets each case it distinguishes."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import geometric_mean

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    BN_STEPS,
    GAIN,
    GHOSTNET,
    NETWORKS,
    OWN,
    PLAN,
    PLANS,
    TWO_SEEDS,
    best_rates,
    by_seed,
    diverge,
    fail,
    part,
    stabilises_records,
    without,
)

from spiritlevel.study.claims import judge as judge_all
from spiritlevel.study.claims.common import best_arm
from spiritlevel.study.claims.stabilises import (
    LRS,
    NETWORK,
    RULE,
    cells,
    drift_ratios,
    judge,
    noise_rate,
)
from spiritlevel.study.networks import network
from spiritlevel.study.records import Records

STEADY, MOVES = RULE["steadier_at_least"], RULE["noise_moves_at_least"]
AS_FAST = math.floor(BN_STEPS * RULE["as_fast_at_most"])
SLOWER = math.ceil(BN_STEPS * RULE["slower_at_least"])
BEST = best_rates(PLAN, *NETWORK)
NOISE_LR = network(*NETWORK).rate


def status(plan=PLAN, **figures):
    return judge_all("stabilises", stabilises_records(plan=plan, **figures), plan).status


def reason(**figures):
    """What the rule makes of the noise: False, steadiness is not the reason; True, it is."""
    return part(judge(stabilises_records(**figures)), "noise_steps").holds


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"noise_steps": None}, "supported"),
        ({}, "partly"),
        ({"steadier": 1.0}, "not supported"),
        ({"steadier": by_seed(8.0, 8.0, 1.0)}, "inconclusive"),
        ({"noise_moves": 1.0}, "inconclusive"),
    ],
    ids=["supported", "partly", "not supported", "seeds disagree", "noise moves nothing"],
)
def test_each_verdict_on_the_networks_of_each_plan(plan, figures, expected):
    assert status(plan, **figures) == expected


@pytest.mark.parametrize(
    "noise_steps",
    [2 * SLOWER, None, by_seed(SLOWER, None, SLOWER + 1)],
    ids=["slower", "never", "by seed"],
)
def test_supported_if_steady_inputs_are_what_makes_it_fast(noise_steps):
    assert status(noise_steps=noise_steps) == "supported"


def test_partly_if_unsteady_inputs_train_as_fast():
    assert status() == "partly"
    assert reason() is False


@pytest.mark.parametrize(
    "figures",
    [
        {"noise_steps": None, "noise_moves": 1.0},
        {"noise_steps": None, "noise_moves": by_seed(8.0, 8.0, 1.0)},
        {"noise_steps": (AS_FAST + SLOWER) // 2},
        {"noise_steps": by_seed(BN_STEPS, BN_STEPS, None)},
    ],
    ids=["noise moves nothing", "in one seed nothing", "in between", "seeds disagree"],
)
def test_inconclusive_if_the_noise_tells_no_reason(figures):
    assert status(**figures) == "inconclusive"
    assert reason(**figures) is None


@pytest.mark.parametrize(
    "steadier", [1.0, 0.5, by_seed(1.0, 1.1, 0.9)], ids=["as much", "more", "about as much"]
)
def test_not_supported_if_inputs_move_as_much_with_bn(steadier):
    assert status(steadier=steadier, noise_steps=None) == "not supported"


@pytest.mark.parametrize(
    "figures",
    [
        {"steadier": by_seed(8.0, 8.0, 1.0)},
        {"steadier": by_seed(0.9 * STEADY, 1.2 * STEADY, 1.5 * STEADY)},
        {"steadier": by_seed(0.5 * STEADY, 0.8 * STEADY, 0.95 * STEADY)},
        {"layers": (10.0, 0.5, 0.2)},
    ],
    ids=["one seed disagrees", "mean above", "mean below", "most layers are less steady"],
)
def test_inconclusive_if_steadier_only_here_and_there(figures):
    assert status(**figures) == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "none"}, {"norm": "batch"}, {"seed": 11}, {"seed": 11, "norm": "none"}],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, settings):
    assert judge(change(stabilises_records(), "train", **settings)).status == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
def test_noise_in_two_seeds_tells_no_reason(change):
    records = change(stabilises_records(noise_steps=None), norm="noisy-batch", seed=12)
    assert judge(records).status == "inconclusive"
    assert part(judge(records), "noise_steps").holds is None
    records = change(stabilises_records(steadier=1.5), norm="noisy-batch", seed=12)
    assert judge(records).status == "not supported", "that is decided without the noise"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_drift_of_zero_is_no_ratio(norm):
    records = stabilises_records()
    for record in records.select("train", norm=norm):
        record.result["drift"] = [0.0, 0.0, 0.0]
    assert judge(records).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(TWO_SEEDS) == "inconclusive"


def test_the_bound_of_steadiness():
    assert status(steadier=STEADY * ABOVE) == "partly"
    assert status(steadier=STEADY * BELOW) == "not supported"


@pytest.mark.parametrize(("count", "expected"), [(3, "inconclusive"), (10, "partly")])
def test_nearly_all_layers_must_be_steadier(count, expected):
    """One layer that is not: of three too many, of ten as many as the rule allows."""
    assert 1 / 10 <= 1 - RULE["steadier_layers"] + 1e-9 < 1 / 3
    others = 0.2 ** (-1 / (count - 1))  # mean 1
    layers = (*[others] * (count - 1), 0.2)
    assert geometric_mean(layers) == pytest.approx(1)
    assert status(steadier=4.0, layers=layers) == expected


def test_two_layers_of_ten_are_too_many():
    layers = (*[0.2**-0.25] * 8, 0.2, 0.2)
    assert status(steadier=4.0, layers=layers) == "inconclusive"


def test_a_layer_is_steadier_if_its_ratio_is_above_1():
    ratio = 4.0
    for least, expected in ((ABOVE / ratio, "partly"), (BELOW / ratio, "inconclusive")):
        layers = (1 / least, 1.0, least)
        assert status(steadier=ratio, layers=layers) == expected


def test_the_bound_of_how_far_noise_moves():
    assert status(noise_moves=MOVES * ABOVE, noise_steps=None) == "supported"
    assert status(noise_moves=MOVES * BELOW, noise_steps=None) == "inconclusive"


def test_the_bounds_of_as_fast_and_of_slower():
    assert reason(noise_steps=AS_FAST) is False
    assert reason(noise_steps=AS_FAST + 1) is None
    assert reason(noise_steps=SLOWER - 1) is None
    assert reason(noise_steps=SLOWER) is True


def test_the_accuracy_to_be_reached_is_most_of_what_bn_gains():
    plateau = [GAIN] * PLAN.drift_steps
    assert reason(noise_accuracy=[p * ABOVE for p in plateau]) is False
    assert reason(noise_accuracy=[p * BELOW for p in plateau]) is True


@pytest.mark.parametrize(
    ("classes", "ends_at"), [(10, 0.55), (2, 0.9), (100, 0.11)], ids=["ends lower", "two", "many"]
)
def test_bn_gains_from_chance_to_where_it_ends(classes, ends_at):
    target = 1 / classes + RULE["share_of_gain"] * (ends_at - 1 / classes)
    for factor, expected in ((ABOVE, False), (BELOW, True)):
        plateau = [target * factor] * PLAN.drift_steps
        records = stabilises_records(noise_accuracy=plateau)
        for record in records.select("train", lr=NOISE_LR):
            record.result["classes"] = classes
        for record in records.select("train", norm="batch", lr=NOISE_LR):
            record.result["final_accuracy"] = ends_at
        assert part(judge(records), "noise_steps").holds is expected


def test_each_arm_is_read_at_its_own_best_rate():
    """The builder's plain net keeps still wherever it does not learn."""
    records = stabilises_records(steadier=4.0, layers=(2.0, 1.0, 0.5))
    best = {norm: best_arm(records, norm) for norm in BEST}
    assert best == {norm: ("xavier", lr) for norm, lr in BEST.items()}
    ratios = drift_ratios(records, best)
    assert ratios.keys() == set(PLAN.seeds)
    assert all(layers == pytest.approx([8, 4, 2]) for layers in ratios.values())
    assert judge(records).headline.value == pytest.approx(4)


def test_a_rate_at_which_a_seed_diverges_is_not_the_best():
    records = diverge(stabilises_records(), norm="none", lr=BEST["none"], seed=10)
    assert best_arm(records, "none") != ("xavier", BEST["none"])
    assert judge(records).status == "not supported"


def test_no_rate_is_the_best_of_an_arm_that_never_ran():
    assert best_arm(Records(), "none") is None
    assert best_arm(stabilises_records(), "layer") is None


def test_the_accuracy_stands_beside_the_drift():
    judgement = judge(stabilises_records())
    for norm in ("none", "batch", "noisy-none"):
        assert part(judgement, "accuracy", norm=norm).value == pytest.approx(90)


def test_the_drift_at_equal_rates_stands_beside_that_at_the_best():
    """At the best rate of the plain net, BN drifts as the builder says for that rate."""
    lr = BEST["none"]
    judgement = judge(stabilises_records(steadier=4.0))
    assert part(judgement, "drift_at", lr=f"{lr:g}").value == pytest.approx(
        4.0 * (1 + lr) / (1 + BEST["batch"])
    )
    assert sum(one.quantity.endswith("drift_at") for one in judgement.parts) == len(LRS)


def test_no_rate_is_equal_where_the_weights_differ():
    """A residual net without a norm starts from zeroed branches, with BN it does not."""
    found = judge_all("stabilises", stabilises_records(plan=NETWORKS), NETWORKS).by_network
    names = {n: {one.quantity.rpartition(".")[2] for one in v.parts} for n, v in found.items()}
    assert "drift_at" in names["small_vgg"]
    assert "drift_at" not in names["small_resnet"]


def test_the_shift_of_the_gradient_stands_beside_the_drift():
    """As BN over without, where both ran: in the large networks, at a rate and from weights."""
    judgement = judge(stabilises_records(plan=NETWORKS).of("small_vgg"))
    at = {"lr": "0.1", "init": "Xavier"}
    assert part(judgement, "shift_relative", **at).value == pytest.approx(0.5)
    assert part(judgement, "shift_l2", **at).value == pytest.approx(0.5)
    assert part(judgement, "shift_cosine", norm="none", **at).value == pytest.approx(0.8)
    assert part(judgement, "shift_cosine", norm="batch", **at).value == pytest.approx(0.9)


def test_inconclusive_if_the_net_without_bn_always_diverges():
    assert judge(diverge(stabilises_records(), norm="none")).status == "inconclusive"


def test_a_target_that_is_not_reached_counts_as_reached_one_step_too_late():
    judgement = judge(stabilises_records(noise_steps=None))
    expected = (PLAN.drift_steps + 1) / BN_STEPS
    assert part(judgement, "noise_steps").value == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["noisy-batch", "batch"])
def test_a_diverged_run_at_the_rate_of_the_noise_does_not_end_the_judging(norm):
    records = diverge(stabilises_records(), norm=norm, lr=NOISE_LR, seed=10)
    assert part(judge(records), "noise_steps").holds is None


def test_a_net_that_gains_nothing_tells_no_reason():
    records = stabilises_records()
    for norm in ("batch", "noisy-batch"):
        for record in records.select("train", norm=norm, lr=NOISE_LR):
            record.result.update(accuracy=[0.1] * PLAN.drift_steps, final_accuracy=0.1)
    assert part(judge(records), "noise_steps").holds is None
    assert judge(records).status == "inconclusive"


def test_the_cells():
    settings = [cell.settings for cell in cells(PLAN)]
    assert {s["network"] for s in settings} == set(NETWORK)
    rates = {(s["norm"], s["lr"]) for s in settings}
    noisy = {("noisy-batch", NOISE_LR), ("noisy-none", NOISE_LR)}
    assert rates == {(norm, lr) for norm in ("none", "batch") for lr in LRS} | noisy
    assert len(settings) == len(rates) * len(PLAN.seeds)


@pytest.mark.parametrize("plan", [NETWORKS, GHOSTNET, OWN], ids=["two", "GhostNet", "own"])
def test_the_cells_of_larger_networks(plan):
    """Each norm at each rate; the noise beside BN at one rate, from the same weights."""
    plan = replace(plan, lrs=(0.5,))
    settings = [cell.settings for cell in cells(plan) if cell.task == "train"]
    for name in plan.networks:
        known = network(name)
        mine = [s for s in settings if s["network"] == name]
        for norm in plan.norms:
            init = known.inits[-1] if norm == "none" else known.inits[0]
            assert all(s["init"] == init for s in mine if s["norm"] == norm)
            assert 0.5 in {s["lr"] for s in mine if s["norm"] == norm}
        for norm in ("batch", "noisy-batch"):
            at = [s for s in mine if s["norm"] == norm and s["lr"] == known.rate]
            assert {s["init"] for s in at} == {known.inits[0]}
            assert {s["seed"] for s in at} == set(plan.seeds)
        assert noise_rate(stabilises_records(plan=plan).of(name)) == known.rate
