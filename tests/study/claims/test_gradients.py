"""Claim 3: the rule meets each case it distinguishes."""

from __future__ import annotations

import math

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    PLAN,
    TWO_SEEDS,
    by,
    by_seed,
    diverge,
    fail,
    gradients_records,
    part,
    without,
)

from spiritlevel.study.claims.gradients import INITS, RULE, THEORY, judge
from spiritlevel.study.claims.judgement import times

STEADY, GRADIENT = RULE["steady_within"], RULE["gradient_within"]
RESIDUAL, AWAY = RULE["residual_within"], RULE["runs_away_beyond"]


def status(**figures):
    return judge(gradients_records(**figures)).status


@pytest.mark.parametrize(
    ("steady", "gradient", "residual", "expected"),
    [
        (1.0, 1.0, 1.0, "supported"),
        (1.0, 1.0, 1.4, "partly"),
        (1.0, THEORY, 1.03, "partly"),
        (2.0, 1.0, 1.0, "partly"),
        (2.0, THEORY, 1.0, "not supported"),
        (0.5, 0.8, 1.4, "not supported"),
    ],
)
def test_activations_then_gradients_plain_and_residual(steady, gradient, residual, expected):
    assert status(steady=steady, gradient=gradient, residual=residual) == expected


@pytest.mark.parametrize(
    "figures",
    [
        {"runs_away": 1.0},
        {"runs_away": by_seed(2.0, 2.0, 1.0)},
        {"steady": by_seed(1.0, 1.0, 2.0)},
        {"gradient": by_seed(1.0, THEORY, 1.0)},
    ],
    ids=["nothing to prevent", "not in one seed", "activations differ", "gradients differ"],
)
def test_inconclusive_if_the_control_shows_nothing_or_seeds_disagree(figures):
    assert status(**figures) == "inconclusive"


def test_residual_nets_that_disagree_support_nothing():
    assert status(residual=by_seed(1.0, 1.0, 1.4)) == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "batch"}, {"norm": "none"}, {"model": "mlp"}, {"seed": 11}, {"init": "he*0.5"}],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, settings):
    assert judge(change(gradients_records(), "depth", **settings)).status == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
def test_inconclusive_for_want_of_residual_nets(change):
    records = change(gradients_records(), "depth", model="residual_mlp", norm="batch")
    assert judge(records).status == "inconclusive"


@pytest.mark.parametrize(
    "arm",
    [
        {"model": "mlp", "norm": "batch", "init": "he*2"},
        {"model": "mlp", "norm": "none", "init": "he*2"},
        {"model": "residual_mlp", "norm": "batch"},
    ],
    ids=["BN", "control", "residual"],
)
def test_one_seed_of_a_net_decides_nothing(arm):
    records = gradients_records()
    for seed in PLAN.seeds[1:]:
        records = fail(records, "depth", seed=seed, **arm)
    assert judge(records).status != "supported"


def test_inconclusive_below_three_seeds():
    assert status(plan=TWO_SEEDS) == "inconclusive"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("init", INITS)
def test_the_bound_of_steady_activations(sign, init):
    inside, outside = (by("init", {init: 1 + sign * STEADY * f}, 1.0) for f in (BELOW, ABOVE))
    assert status(steady=inside) == "supported"
    assert status(steady=outside) == "partly"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("init", INITS)
def test_the_bound_of_steady_gradients(sign, init):
    inside, outside = (by("init", {init: 1 + sign * GRADIENT * f}, 1.0) for f in (BELOW, ABOVE))
    assert status(gradient=inside) == "supported"
    assert status(gradient=outside) == "partly"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_of_residual_gradients(sign):
    assert status(residual=1 + sign * RESIDUAL * BELOW) == "supported"
    assert status(residual=1 + sign * RESIDUAL * ABOVE) == "partly"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_of_running_away(sign):
    assert status(runs_away=1 + sign * AWAY * ABOVE) == "supported"
    assert status(runs_away=1 + sign * AWAY * BELOW) == "inconclusive"


def test_one_seed_outside_makes_seeds_disagree():
    assert status(steady=by_seed(1.0, 1.0, 1 + STEADY * ABOVE)) == "inconclusive"
    assert status(steady=by_seed(1.0, 1.0, 1 + STEADY * BELOW)) == "supported"


def test_underflow_without_bn_is_running_away():
    """No slope can be read where activations became zero."""
    assert status(runs_away=None) == "supported"


def test_no_slope_with_bn_is_not_steady():
    assert status(steady=None) == "partly"
    assert status(steady=None, gradient=None) == "not supported"
    judgement = judge(gradients_records(gradient=None))
    assert judgement.headline.value is None
    assert judgement.words["gradient"] == "–"


def test_the_figures_are_those_of_the_arms_they_name():
    judgement = judge(gradients_records(steady=0.99, gradient=1.21, residual=1.03, runs_away=1.9))
    assert judgement.headline.value == pytest.approx(1.21)
    assert part(judgement, "activation_mlp_batch", init="he").value == pytest.approx(0.99)
    assert part(judgement, "gradient_residual_mlp_batch").value == pytest.approx(1.03)
    assert part(judgement, "activation_mlp_none", init="he*2").value == pytest.approx(1.9)
    other = part(judgement, "dependence", activation="tanh")
    assert other.value == pytest.approx(3)
    assert judgement.words["over_depth"] == times(judgement.headline.value ** (PLAN.depth - 1))


def test_deep_nets_that_diverge_are_shown_as_infinite():
    records = diverge(gradients_records(), "deep", model="mlp", norm="none")
    assert part(judge(records), "deep_mlp", norm="none").value == math.inf
    assert part(judge(records), "deep_mlp", norm="batch").value == pytest.approx(0.2)


def test_the_theory_is_that_of_relu():
    """Yang et al. 2019: ||gradient||^2 grows by pi / (pi - 1), 1.467, per layer."""
    assert pytest.approx(1.467, abs=5e-4) == THEORY**2
