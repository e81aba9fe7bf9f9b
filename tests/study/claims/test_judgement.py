"""What all verdicts have in common, whatever their rule; and how figures are written."""

from __future__ import annotations

import json
import math
import random
from functools import cache

import pytest
import torch
from study.synthetic import BUILDERS, TWO_SEEDS, by_seed, diverge, fail, part, without

from spiritlevel.data import Images
from spiritlevel.study.claims import CLAIMS, STATUSES, rules
from spiritlevel.study.claims.judgement import Part, agree, number, setting, times
from spiritlevel.study.config import PRESETS
from spiritlevel.study.records import Record, Records
from spiritlevel.study.run import all_cells
from spiritlevel.study.stats import Interval
from spiritlevel.study.tasks import TASKS

# A figure of each rule that differs from seed to seed, so that an order would show.
UNEVEN = {
    "stabilises": {"steadier": by_seed(3.3, 4.1, 5.7), "noise_moves": by_seed(7.1, 8.3, 9.9)},
    "converges": {"loss": by_seed(0.21, 0.13, 0.17)},
    "gradients": {"steady": by_seed(0.99, 1.01, 1.003), "gradient": by_seed(1.21, 1.19, 1.22)},
    "regularises": {"slope": by_seed(-0.9, -1.1, -1.03), "rivals": 0.0123},
    "decouples": {"relative": by_seed(0.31, 0.47, 0.59), "error": by_seed(1e-15, 3e-16, 7e-16)},
}
everywhere = pytest.mark.parametrize("claim", BUILDERS)


def judge(claim: str, records: Records):
    return CLAIMS[claim].judge(records)


def uneven(claim: str) -> Records:
    return BUILDERS[claim](**UNEVEN[claim])


def test_every_claim_is_met():
    assert list(BUILDERS) == list(CLAIMS) == list(UNEVEN)


@everywhere
def test_no_records_no_verdict(claim):
    judgement = judge(claim, Records())
    assert judgement.status == "inconclusive"
    assert judgement.claim == claim
    assert judgement.headline.value is None
    assert judgement.headline.holds is None


@everywhere
def test_no_verdict_from_two_seeds(claim):
    assert judge(claim, BUILDERS[claim]()).status != "inconclusive"
    assert judge(claim, BUILDERS[claim](plan=TWO_SEEDS)).status == "inconclusive"


@everywhere
@pytest.mark.parametrize("shuffle", range(3))
def test_the_order_of_records_does_not_matter(claim, shuffle):
    records = list(uneven(claim))
    expected = judge(claim, Records(records))
    random.Random(shuffle).shuffle(records)
    assert judge(claim, Records(records)) == expected


@everywhere
def test_records_of_faults_are_as_good_as_none(claim):
    """A fault anywhere leaves the judgement as it is with no record there."""
    records = uneven(claim)
    for task in {record.task for record in records}:
        for chosen in ({}, {"seed": 11}, {"norm": "none"}, {"norm": "batch"}):
            missing, faulty = (judge(claim, f(records, task, **chosen)) for f in (without, fail))
            assert faulty == missing


@everywhere
def test_a_cell_done_again_counts_as_it_ended_last(claim):
    records = uneven(claim)
    again = Records([*fail(records), *records])
    assert judge(claim, again) == judge(claim, records)


@everywhere
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_whatever_is_missing_there_is_a_verdict(claim, share):
    for seed in range(10):
        draw = random.Random(seed)
        some = Records(record for record in uneven(claim) if draw.random() > share)
        assert judge(claim, some).status in STATUSES


@everywhere
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_whatever_diverges_there_is_a_verdict(claim, share):
    for seed in range(10):
        draw = random.Random(seed)
        diverged = {record.key: record for record in diverge(uneven(claim))}
        some = [diverged[r.key] if draw.random() < share else r for r in uneven(claim)]
        assert judge(claim, Records(some)).status in STATUSES


@everywhere
def test_nothing_holds_if_everything_diverged(claim):
    judgement = judge(claim, diverge(uneven(claim)))
    assert judgement.status in ("not supported", "inconclusive")


@everywhere
def test_records_of_other_claims_do_not_matter_to_the_status(claim):
    everything = Records(r for name in BUILDERS for r in uneven(name) if name != claim)
    for record in uneven(claim):
        everything.add(record)
    assert judge(claim, everything).status == judge(claim, uneven(claim)).status


@everywhere
def test_judging_changes_no_record(claim):
    records = uneven(claim)
    before = [record.to_json() for record in records]
    judge(claim, records)
    assert [record.to_json() for record in records] == before


@everywhere
def test_a_judgement_is_strict_json(claim):
    for records in (uneven(claim), Records()):
        found = judge(claim, records).to_json()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["verdict"] in STATUSES
        assert found["quantity"].startswith(f"claims.{claim}.")
        assert (found["interval"] is None) == (found["value"] is None)


@everywhere
def test_every_part_has_a_source(claim):
    assert all(part.source for part in judge(claim, uneven(claim)).parts)


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
    records = BUILDERS[claim]()
    for record in (*records, *diverge(records)):
        if record.result is not None:
            assert _names(record.result) <= _names(real()[record.task])


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
    judgement = judge("stabilises", uneven("stabilises"))
    with pytest.raises(AssertionError):
        part(judgement, "accuracy")
