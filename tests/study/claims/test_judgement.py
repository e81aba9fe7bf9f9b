"""What all verdicts have in common, whatever their rule; and how figures are written."""

from __future__ import annotations

import json
import math
import random
from functools import cache

import pytest
import torch
from study.synthetic import (
    BUILDERS,
    NETWORKS,
    PLAN,
    PLANS,
    TWO_SEEDS,
    by,
    by_seed,
    diverge,
    fail,
    part,
    without,
)

from spiritlevel.data import Images
from spiritlevel.study.claims import CLAIMS, STATUSES, judge, networks, rules
from spiritlevel.study.claims.judgement import (
    Judgement,
    Part,
    agree,
    combine,
    number,
    setting,
    times,
)
from spiritlevel.study.config import PRESETS
from spiritlevel.study.records import Record, Records
from spiritlevel.study.run import all_cells
from spiritlevel.study.stats import Interval
from spiritlevel.study.tasks import TASKS

# A figure of each rule that differs from seed to seed, so that an order would show; and losses that
# differ from rate to rate, so that another arm would.
LOSSES = by("lr", {0.01: 0.29, 0.03: 0.23, 0.1: 0.17, 0.3: 0.13, 1.0: 0.19}, 0.31)
UNEVEN = {
    "stabilises": {"steadier": by_seed(3.3, 4.1, 5.7), "noise_moves": by_seed(7.1, 8.3, 9.9)},
    "converges": {"loss": lambda s: LOSSES(s) + s["seed"] / 1e3},
    "gradients": {
        "steady": by_seed(0.99, 1.01, 1.003),
        "gradient": by_seed(1.21, 1.19, 1.22),
        "loss": LOSSES,
    },
    "regularises": {"slope": by_seed(-0.9, -1.1, -1.03), "rivals": 0.0123},
    "decouples": {"relative": by_seed(0.31, 0.47, 0.59), "error": by_seed(1e-15, 3e-16, 7e-16)},
}
everywhere = pytest.mark.parametrize("claim", BUILDERS)
of_each_plan = pytest.mark.parametrize("plan", [PLAN, NETWORKS], ids=["quick", "networks"])


def uneven(claim: str, plan=PLAN) -> Records:
    return BUILDERS[claim](plan=plan, **UNEVEN[claim])


def test_every_claim_is_met():
    assert list(BUILDERS) == list(CLAIMS) == list(UNEVEN)


@everywhere
@of_each_plan
def test_no_records_no_verdict(claim, plan):
    judgement = judge(claim, Records(), plan)
    assert judgement.status == "inconclusive"
    assert judgement.claim == claim
    assert judgement.headline.value is None
    assert judgement.headline.holds is None


@everywhere
def test_no_verdict_from_two_seeds(claim):
    assert judge(claim, BUILDERS[claim](), PLAN).status != "inconclusive"
    assert judge(claim, BUILDERS[claim](plan=TWO_SEEDS), TWO_SEEDS).status == "inconclusive"


@everywhere
@of_each_plan
@pytest.mark.parametrize("shuffle", range(2))
def test_the_order_of_records_does_not_matter(claim, plan, shuffle):
    """But for where they stand."""
    records = list(uneven(claim, plan))
    expected = figures(judge(claim, Records(records), plan))
    random.Random(shuffle).shuffle(records)
    assert figures(judge(claim, Records(records), plan)) == expected


def figures(judgement: Judgement) -> list:
    """All that a judgement says, of every network."""
    told = [judgement.status, dict(judgement.words), judgement.to_json()]
    for one in judgement.parts:
        told.append((one.quantity, dict(one.words), one.value, one.interval, one.n, one.holds))
    return told + [figures(one) for one in judgement.by_network.values()]


@everywhere
def test_records_of_faults_are_as_good_as_none(claim):
    """A fault anywhere leaves the judgement as it is with no record there."""
    records = uneven(claim)
    for task in {record.task for record in records}:
        for chosen in ({}, {"seed": 11}, {"norm": "none"}, {"norm": "batch"}):
            missing, faulty = (
                figures(judge(claim, change(records, task, **chosen), PLAN))
                for change in (without, fail)
            )
            assert faulty == missing


@everywhere
def test_a_cell_done_again_counts_as_it_ended_last(claim):
    records = uneven(claim)
    again = Records([*fail(records), *records])
    assert judge(claim, again, PLAN) == judge(claim, records, PLAN)


@everywhere
@of_each_plan
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_whatever_is_missing_there_is_a_verdict(claim, plan, share):
    records = uneven(claim, plan)
    for seed in range(5):
        draw = random.Random(seed)
        some = Records(record for record in records if draw.random() > share)
        assert judge(claim, some, plan).status in STATUSES


@everywhere
@of_each_plan
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_whatever_diverges_there_is_a_verdict(claim, plan, share):
    records = uneven(claim, plan)
    diverged = {record.key: record for record in diverge(records)}
    for seed in range(5):
        draw = random.Random(seed)
        some = [diverged[r.key] if draw.random() < share else r for r in records]
        assert judge(claim, Records(some), plan).status in STATUSES


@everywhere
@of_each_plan
def test_nothing_holds_if_everything_diverged(claim, plan):
    judgement = judge(claim, diverge(uneven(claim, plan)), plan)
    assert judgement.status in ("not supported", "inconclusive")


@everywhere
def test_records_of_other_claims_do_not_matter(claim):
    everything = Records(r for name in BUILDERS for r in uneven(name) if name != claim)
    for record in uneven(claim):
        everything.add(record)
    expected = figures(judge(claim, uneven(claim), PLAN))
    assert figures(judge(claim, everything, PLAN)) == expected


@everywhere
def test_judging_changes_no_record(claim):
    records = uneven(claim)
    before = [record.to_json() for record in records]
    judge(claim, records, PLAN)
    assert [record.to_json() for record in records] == before


@everywhere
@of_each_plan
def test_a_judgement_is_strict_json(claim, plan):
    for records in (uneven(claim, plan), Records()):
        judgement = judge(claim, records, plan)
        found = judgement.to_json()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["verdict"] in STATUSES
        assert found["quantity"].startswith(f"claims.{claim}.")
        assert (found["interval"] is None) == (found["value"] is None)
        assert found.get("networks", {}) == {
            name: one.to_json() for name, one in judgement.by_network.items()
        }
        assert ("networks" in found) == (len(networks(claim, plan)) > 1)


@everywhere
def test_every_part_has_a_source(claim):
    assert all(part.source for part in judge(claim, uneven(claim), PLAN).parts)


# Of each network, and over all of them.


@everywhere
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_claim_is_judged_on_each_network_by_itself(claim, plan):
    records = uneven(claim, plan)
    judgement = judge(claim, records, plan)
    names = networks(claim, plan)
    assert names == (plan.networks or CLAIMS[claim].NETWORK)
    alone = {name: CLAIMS[claim].judge(records.of(name)) for name in names}
    if len(names) == 1:
        assert judgement.by_network == {}
        assert judgement.status == alone[names[0]].status
        assert judgement.headline == alone[names[0]].headline
    else:
        assert judgement.by_network == alone
        assert judgement.headline == alone[names[0]].headline


@everywhere
def test_what_happens_on_one_network_stays_there(claim):
    records = uneven(claim, NETWORKS)
    before = judge(claim, records, NETWORKS).by_network
    after = judge(claim, diverge(records, network="small_resnet"), NETWORKS).by_network
    assert figures(after["small_vgg"]) == figures(before["small_vgg"])
    assert figures(after["small_resnet"]) != figures(before["small_resnet"])


def verdict(status, quantity="drift"):
    headline = Part(f"claims.stabilises.{quantity}", 2.0, "made up")
    return Judgement("stabilises", status, headline, (headline,), {"ratio": quantity})


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["partly", "partly", "partly"], "partly"),
        (["not supported", "not supported"], "not supported"),
        (["inconclusive", "inconclusive"], "inconclusive"),
        (["supported", "not supported"], "partly"),
        (["supported", "partly", "supported"], "partly"),
        (["not supported", "partly"], "partly"),
        (["supported", "inconclusive"], "inconclusive"),
        (["inconclusive", "not supported"], "inconclusive"),
        (["inconclusive", "supported", "supported"], "supported"),
        (["not supported", "inconclusive", "not supported"], "not supported"),
        (["inconclusive", "not supported", "supported"], "partly"),
        (["supported", "inconclusive", "inconclusive"], "inconclusive"),
    ],
    ids=" and ".join,
)
def test_networks_together(statuses, expected):
    verdicts = {f"net{n}": verdict(status, f"q{n}") for n, status in enumerate(statuses)}
    found = combine(verdicts)
    assert found.status == expected
    assert found.by_network == verdicts
    decided = [n for n, status in enumerate(statuses) if status != "inconclusive"]
    speaks = decided[0] if decided else 0
    assert found.headline == verdicts[f"net{speaks}"].headline
    assert found.words == {"ratio": f"q{speaks}"}
    assert list(found.to_json()["networks"]) == list(verdicts)
    assert found.to_json()["networks"]["net1"]["verdict"] == statuses[1]
    assert found.to_json()["networks"]["net1"]["quantity"] == "claims.stabilises.q1"


@pytest.mark.parametrize("status", STATUSES)
def test_one_network_speaks_for_itself(status):
    found = combine({"net": verdict(status)})
    assert found == verdict(status)
    assert "networks" not in found.to_json()


def test_a_verdict_has_the_figure_of_a_network_that_decided():
    nothing = Part("claims.stabilises.drift", None, "made up")
    undecided = Judgement("stabilises", "inconclusive", nothing, (nothing,), {})
    found = combine({"a": undecided, "b": verdict("supported"), "c": verdict("supported")})
    assert found.status == "supported"
    assert found.headline.value == 2.0


# Where a figure comes from.

READ_OFF_THE_GRID = ("claims.converges.rate", "claims.converges.largest")
"""They change only where a run no longer trains: see the tests of claim 2."""
MADE_OF_HALF = ("claims.stabilises.shift_cosine",)
"""Of one norm, though they stand on the runs of both."""


def otherwise(record: Record) -> Record:
    """The record with every figure ten times as large; but its final loss, by which the best rate
    is chosen, a little worse only.
    """
    result = _tenfold(record.result)
    for name in ("classes", "diverged_at"):
        if name in result:
            result[name] = record.result[name]
    if record.result.get("final_loss") is not None:
        result["final_loss"] = record.result["final_loss"] * 1.005
    return Record(record.key, record.task, record.settings, result)


def _tenfold(value):
    if isinstance(value, dict):
        return {name: _tenfold(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_tenfold(inner) for inner in value]
    return value * 10 if isinstance(value, float) else value


def traced(judgement: Judgement, left_out: tuple[str, ...]) -> dict:
    """Quantity and words -> (figure, records) of every part that is traced."""
    return {
        (one.quantity, *sorted(one.words.items())): ((one.value, one.interval), set(one.records))
        for one in judgement.parts
        if one.quantity not in left_out
    }


@everywhere
@pytest.mark.parametrize(
    ("plan", "place"), [(PLAN, 0), (NETWORKS, 1)], ids=["quick", "second of networks"]
)
def test_a_part_names_the_records_that_its_figure_was_made_of(claim, plan, place):
    """Change a record: the figures change of the parts that name it, and of no others."""
    records = list(uneven(claim, plan))
    name = networks(claim, plan)[place]

    def figures_of(changed: dict[int, Record]) -> dict:
        some = Records(changed.get(place, record) for place, record in enumerate(records))
        judgement = CLAIMS[claim].judge(some.of(name))
        return traced(judgement, READ_OFF_THE_GRID + MADE_OF_HALF)

    before = figures_of({})
    assert all(read for _, read in before.values())
    seed = PLAN.seeds[0]
    for at, record in enumerate(records):
        if record.settings["seed"] == seed:
            after = figures_of({at: otherwise(record)})
            changed = {key for key, (figure, _) in before.items() if after[key][0] != figure}
            assert changed == {key for key, (_, read) in before.items() if at in read}, record.key


def test_a_cosine_names_the_runs_of_its_norm():
    records = uneven("stabilises", NETWORKS)
    judgement = judge("stabilises", records, NETWORKS).by_network["small_vgg"]
    for norm in ("none", "batch"):
        found = part(judgement, "shift_cosine", lr="0.03", norm=norm)
        assert {list(records)[n].settings["norm"] for n in found.records} == {norm}


@everywhere
def test_the_records_of_a_part_are_of_its_network(claim):
    records = list(uneven(claim, NETWORKS))
    for name, one in judge(claim, Records(records), NETWORKS).by_network.items():
        for found in one.parts:
            assert {records[n].settings.get("network", name) for n in found.records} <= {name}


# The rules, and the records that they read.


def test_the_rules_are_written_down_as_they_are():
    assert rules() == {claim: module.RULE for claim, module in CLAIMS.items()}
    rules()["stabilises"].clear()
    assert rules()["stabilises"]
    assert json.loads(json.dumps(rules(), allow_nan=False)) == rules()


@cache  # not a fixture of the module: that would run before torch is held to one thread
def real() -> dict[str, dict]:
    """What each task really returns, at the smallest sizes."""
    x = torch.randint(256, (80, 1, 8, 8), dtype=torch.uint8)
    y = torch.arange(80) % 10
    names = tuple("0123456789")
    images = Images("made", x, y, x, y, classes=names, origin="made", licence="none", notes=())
    small = {"steps": 2, "draws": 2, "sizes": (2, 4), "images": 8, "every": 1, "width": 8}
    found = {}
    for cell in all_cells(PRESETS["smoke"]):
        if cell.task not in found and not cell.task.startswith("example"):
            changed = {name: value for name, value in small.items() if name in cell.settings}
            changed["batch_size"] = min(32, changed.get("images", 32))
            result = TASKS[cell.task](cell.settings | changed, images)
            written = Record(cell.key, cell.task, cell.settings, result).to_json()
            found[cell.task] = json.loads(written)["result"]
    return found


@everywhere
def test_the_made_up_records_hold_nothing_that_real_ones_lack(claim):
    records = BUILDERS[claim](plan=NETWORKS)
    for record in (*BUILDERS[claim](), *records, *diverge(records)):
        if record.result is not None:
            assert _names(record.result) <= _names(real()[record.task])


@everywhere
@pytest.mark.parametrize("preset", PRESETS)
def test_a_rule_reads_nothing_that_real_records_lack(claim, preset):
    plan = PRESETS[preset]
    cells = CLAIMS[claim].cells(plan)
    records = Records(Record(c.key, c.task, c.settings, real()[c.task]) for c in cells)
    assert judge(claim, records, plan).status in STATUSES


def _names(result: dict, path: str = "") -> set[str]:
    """All keys, at any depth."""
    names = {path + name for name in result}
    for name, value in result.items():
        if isinstance(value, dict):
            names |= _names(value, f"{path}{name}/")
    return names


# What a judgement is made of.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([True], True),
        ([False, False], False),
        ([True, False, True], None),
        ([True, True], True),
    ],
)
def test_agree(values, expected):
    assert agree(values) is expected


def test_a_part_takes_its_figure_from_the_interval():
    found = Part.of("claims.a.b", Interval(2.0, 1.0, 3.0, 5), "Somebody 2000", holds=True)
    assert (found.value, found.n, found.holds) == (2.0, 5, True)
    nothing = Part.of("claims.a.b", None, "Somebody 2000")
    assert (nothing.value, nothing.n, nothing.interval) == (None, 0, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.0, "0"),
        (1.2345, "1.23"),
        (-0.01934, "−0.0193"),
        (123.4, "123"),
        (99999.0, "99999"),
        (123456.0, "1.2e5"),
        (0.00012, "1.2e−4"),
        (-1e-15, "−1.0e−15"),
        (Interval(2.5, 1.0, 3.0, 3), "2.50"),
        (99.94, "99.9"),
        (99.96, "100"),
    ],
)
def test_number(value, expected):
    assert number(value) == expected


def test_times_and_setting():
    assert times(2.0) == "2.00×"
    assert times(None) == "–"
    assert [setting(v) for v in (0.1, 3.0, 1e-6, None)] == ["0.1", "3", "1e−6", "–"]


def test_part_of_the_helper_finds_exactly_one():
    judgement = judge("stabilises", uneven("stabilises"), PLAN)
    with pytest.raises(AssertionError):
        part(judgement, "accuracy")
