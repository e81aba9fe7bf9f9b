"""Claim 3: the rule meets each case it distinguishes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from study.synthetic import (
    ABOVE,
    BELOW,
    NETWORKS,
    OWN,
    PLAN,
    PLANS,
    TWO_SEEDS,
    by,
    by_seed,
    diverge,
    fail,
    gradients_records,
    part,
    without,
)

from spiritlevel.study.claims import judge as judge_all
from spiritlevel.study.claims.gradients import INITS, NETWORK, RULE, SMALL, THEORY, cells, judge
from spiritlevel.study.claims.judgement import times
from spiritlevel.study.networks import init_title, network

STEADY, GRADIENT = RULE["steady_within"], RULE["gradient_within"]
AWAY = RULE["runs_away_beyond"]


def mlp(records):
    return judge(records.of("mlp"))


def status(plan=PLAN, **figures):
    """On the plain network, by the plan's depth."""
    return mlp(gradients_records(plan=plan, **figures)).status


CASES = [
    (1.0, 1.0, "supported"),
    (1.0, THEORY, "partly"),
    (2.0, 1.0, "partly"),
    (2.0, THEORY, "not supported"),
    (0.5, 0.8, "not supported"),
]


@pytest.mark.parametrize(("steady", "gradient", "expected"), CASES)
def test_activations_and_gradients(steady, gradient, expected):
    assert status(steady=steady, gradient=gradient) == expected


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("steady", "gradient", "expected"),
    [*CASES, (by_seed(1.0, 1.0, 2.0), 1.0, "inconclusive")],
)
def test_each_verdict_on_the_networks_of_each_plan(plan, steady, gradient, expected):
    records = gradients_records(plan=plan, steady=steady, gradient=gradient)
    assert judge_all("gradients", records, plan).status == expected


@pytest.mark.parametrize(
    ("plain", "residual", "expected"),
    [
        (1.0, 1.0, "supported"),
        (THEORY, 1.0, "partly"),
        (1.0, THEORY, "partly"),
        (THEORY, THEORY, "partly"),
        (by_seed(1.0, THEORY, 1.0), 1.0, "inconclusive"),
    ],
)
def test_plain_and_residual_networks_together(plain, residual, expected):
    """Gradients explode in plain networks with BN, and not in residual ones."""
    records = gradients_records(gradient=by("network", {"mlp": plain, "residual_mlp": residual}))
    judgement = judge_all("gradients", records, PLAN)
    assert judgement.status == expected
    assert tuple(judgement.by_network) == NETWORK


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


def test_whatever_scale_leaves_1_by_much_it_is_in_every_seed():
    """Different scales in different seeds are none."""
    away = by("init", {"he*2": by_seed(2.0, 1.0, 1.0)}, 1.0)
    assert status(runs_away=away) == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "batch"}, {"norm": "none"}, {"network": "mlp"}, {"seed": 11}, {"init": "he*0.5"}],
    ids=str,
)
def test_inconclusive_if_runs_are_missing(change, settings):
    assert mlp(change(gradients_records(), "depth", **settings)).status == "inconclusive"


@pytest.mark.parametrize("change", [without, fail])
def test_inconclusive_for_want_of_residual_nets(change):
    records = change(gradients_records(), "depth", network="residual_mlp", norm="batch")
    judgement = judge_all("gradients", records, PLAN)
    assert judgement.by_network["mlp"].status == "supported"
    assert judgement.status == "inconclusive"


@pytest.mark.parametrize(
    "arm", [{"norm": "batch", "init": "he*2"}, {"norm": "none", "init": "he*2"}], ids=str
)
def test_one_seed_of_a_net_decides_nothing(arm):
    records = gradients_records()
    for seed in PLAN.seeds[1:]:
        records = fail(records, "depth", seed=seed, **arm)
    assert mlp(records).status != "supported"


def test_inconclusive_below_three_seeds():
    assert status(TWO_SEEDS) == "inconclusive"


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


def test_small_weights_are_not_of_the_rule():
    """They are a residual net's best chance without a norm; with one they are shown."""
    other = by("init", {SMALL: 3.0}, 1.0)
    assert status(steady=other, gradient=other) == "supported"


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
    judgement = mlp(gradients_records(gradient=None))
    assert judgement.headline.value is None
    assert judgement.words["gradient"] == "–"


def test_a_network_of_too_few_layers_prevents_nothing_and_fails_nothing():
    """Of four weight layers, two are left out at the front and one behind: one has no slope."""
    records = gradients_records(plan=OWN, steady=None, gradient=None, runs_away=None)
    for record in records.select("depth"):
        record.result.update(layers=list("abcd"), activation_std=[1.0] * 4)
        record.result.update(activation_growth=None, gradient_growth=None)
    assert judge_all("gradients", records, OWN).status == "inconclusive"


def test_the_figures_are_those_of_the_arms_they_name():
    records = gradients_records(
        steady=by("network", {"mlp": 0.99}, 1.01),
        gradient=by("network", {"mlp": 1.21}, 1.03),
        runs_away=1.9,
    )
    judgement = mlp(records)
    assert judgement.headline.value == pytest.approx(1.21)
    assert part(judgement, "activation_batch", init="He").value == pytest.approx(0.99)
    assert part(judgement, "activation_none", init="He × 2").value == pytest.approx(1.9)
    other = part(judgement, "dependence", activation="tanh")
    assert other.value == pytest.approx(3)
    assert judgement.words["over_depth"] == times(judgement.headline.value ** (PLAN.depth - 1))
    residual = judge(records.of("residual_mlp"))
    assert residual.headline.value == pytest.approx(1.03)
    assert part(residual, "activation_batch", init="He").value == pytest.approx(1.01)


def test_the_rule_reads_the_deepest_network():
    """In shallower ones, and in other batches, the builder's factors are 3, with a norm or none."""
    judgement = judge(gradients_records(plan=NETWORKS).of("small_vgg"))
    assert judgement.status == "supported"
    assert part(judgement, "activation_none", init="He").value == pytest.approx(1)
    assert judgement.words["depth"] == str(network("small_vgg").deep["depth"] + 1)


def test_nets_that_diverge_are_shown_as_infinite():
    judgement = mlp(diverge(gradients_records(), "train", network="mlp", norm="none"))
    assert part(judgement, "trained", norm="none").value == math.inf
    assert part(judgement, "trained", norm="batch").value == pytest.approx(0.2)


def test_each_norm_is_shown_at_the_rate_at_which_it_ends_lowest():
    loss = by("norm", {"batch": by("lr", {0.1: 0.1}, 0.3)}, by("lr", {0.03: 0.2}, 0.4))
    judgement = judge(gradients_records(loss=loss).of("residual_mlp"))
    for norm, lr, init, value in (("batch", "0.1", "he", 0.1), ("none", "0.03", SMALL, 0.2)):
        found = part(judgement, "trained", norm=norm)
        assert (found.words["lr"], found.words["init"]) == (lr, init_title(init))
        assert found.value == pytest.approx(value)


def test_the_theory_is_that_of_relu():
    """Yang et al. 2019: ||gradient||^2 grows by pi / (pi - 1), 1.467, per layer."""
    assert pytest.approx(1.467, abs=5e-4) == THEORY**2


def test_the_cells_of_the_rule_are_every_scale_with_and_without():
    for plan in PLANS.values():
        names = plan.networks or NETWORK
        for name in names:
            mine = [c.settings for c in cells(plan) if c.settings["network"] == name]
            for seed in plan.seeds:
                arms = {(s["norm"], s["init"]) for s in mine if s["seed"] == seed}
                assert arms >= {(norm, init) for norm in ("none", "batch") for init in INITS}


def test_the_deep_residual_net_without_a_norm_trains_from_small_weights():
    found = {
        (c.settings["network"], c.settings["norm"]): c.settings["init"]
        for c in cells(replace(PLAN, seeds=(10,)))
        if c.task == "train"
    }
    assert found.pop(("residual_mlp", "none")) == SMALL
    assert set(found.values()) == {"he"}
