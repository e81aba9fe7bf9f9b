"""Claim 1: the rule meets each case it distinguishes."""

from __future__ import annotations

import math

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    BEST,
    BN_STEPS,
    PLAN,
    TWO_SEEDS,
    by_seed,
    diverge,
    fail,
    part,
    stabilises_records,
    without,
)

from spiritlevel.study.claims.common import best_rate
from spiritlevel.study.claims.stabilises import LRS, NOISE_LR, RULE, cells, drift_ratios, judge

STEADY, MOVES = RULE["steadier_at_least"], RULE["noise_moves_at_least"]
AS_FAST = math.floor(BN_STEPS * RULE["as_fast_at_most"])
SLOWER = math.ceil(BN_STEPS * RULE["slower_at_least"])


def status(**figures):
    return judge(stabilises_records(**figures)).status


def reason(**figures):
    """What the rule makes of the noise: False, steadiness is not the reason; True, it is."""
    return part(judge(stabilises_records(**figures)), "noise_steps").holds


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
    ids=["one seed disagrees", "mean above", "mean below", "one layer is less steady"],
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
    assert judge(change(stabilises_records(), "drift", **settings)).status == "inconclusive"


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
    for record in records.select("drift", norm=norm):
        record.result["drift"] = [0.0, 0.0, 0.0]
    assert judge(records).status == "inconclusive"


def test_inconclusive_below_three_seeds():
    assert status(plan=TWO_SEEDS) == "inconclusive"


def test_the_bound_of_steadiness():
    assert status(steadier=STEADY * ABOVE) == "partly"
    assert status(steadier=STEADY * BELOW) == "not supported"


def test_no_layer_may_be_less_steady():
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


def test_the_accuracy_to_be_reached():
    plateau = [RULE["accuracy"]] * PLAN.drift_steps
    assert reason(noise_accuracy=[p * ABOVE for p in plateau]) is False
    assert reason(noise_accuracy=[p * BELOW for p in plateau]) is True


def test_each_arm_is_read_at_its_own_best_rate():
    """The builder's plain net keeps still wherever it does not learn."""
    records = stabilises_records(steadier=4.0, layers=(2.0, 1.0, 0.5))
    assert {norm: best_rate(records, "drift", norm) for norm in BEST} == BEST
    ratios = drift_ratios(records, dict(BEST))
    assert ratios.keys() == set(PLAN.seeds)
    assert all(layers == pytest.approx([8, 4, 2]) for layers in ratios.values())
    assert judge(records).headline.value == pytest.approx(4)


def test_a_rate_at_which_a_seed_diverges_is_not_the_best():
    records = diverge(stabilises_records(), norm="none", lr=BEST["none"], seed=10)
    assert best_rate(records, "drift", "none") != BEST["none"]
    assert judge(records).status == "not supported"


def test_the_accuracy_stands_beside_the_drift():
    judgement = judge(stabilises_records())
    for norm in ("none", "batch", "noisy-none"):
        assert part(judgement, "accuracy", norm=norm).value == pytest.approx(90)


def test_inconclusive_if_the_net_without_bn_always_diverges():
    assert judge(diverge(stabilises_records(), norm="none")).status == "inconclusive"


@pytest.mark.parametrize("norm", ["noisy-batch", "batch"])
def test_a_diverged_run_at_the_rate_of_the_noise_does_not_end_the_judging(norm):
    records = diverge(stabilises_records(), norm=norm, lr=NOISE_LR, seed=10)
    assert part(judge(records), "noise_steps").holds is None


def test_the_cells():
    settings = [cell.settings for cell in cells(PLAN)]
    rates = {(s["norm"], s["lr"]) for s in settings}
    noisy = {("noisy-batch", NOISE_LR), ("noisy-none", NOISE_LR)}
    assert rates == {(norm, lr) for norm in ("none", "batch") for lr in LRS} | noisy
    assert len(settings) == len(rates) * len(PLAN.seeds)
