"""Each rule finds its bugs, at the module, and nothing is found in what is right."""

from __future__ import annotations

import pytest
from outcomes import CASES, diagnosed, false_alarms, is_hit

from spiritlevel.doctor.check import RULES

HERE = [entry for entry in CASES if entry.ranks == 1]
"""The others are run by test_ranks.py, in several processes."""
_table: dict[str, list[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    """Hits and false alarms by rule, printed at the end; `pytest -s` shows it."""
    yield
    print("\nrule   bugs  hits  false alarms")
    for rule, (bugs, hits, alarms) in sorted(_table.items()):
        print(f"{rule:<6} {bugs:>4} {hits:>5} {alarms:>13}")


@pytest.mark.parametrize("entry", HERE, ids=lambda entry: f"{entry.rule}-{entry.name}")
def test_the_bug_is_found_and_the_twin_is_clean(entry):
    counts = _table.setdefault(entry.rule, [0, 0, 0])
    bug, twin = diagnosed(entry.bug), diagnosed(entry.clean)
    alarms = false_alarms(entry, twin)
    counts[0] += 1
    counts[1] += is_hit(entry, bug)
    counts[2] += bool(alarms)
    assert is_hit(entry, bug), bug
    assert alarms == []
    for finding in bug.findings:  # each tells its numbers, and what to do
        assert finding.evidence
        assert finding.message
        assert finding.fix


def test_every_rule_has_a_bug_and_each_bug_a_twin():
    assert sorted({entry.rule for entry in CASES}) == sorted(RULES)
    assert [entry.name for entry in CASES if entry.clean is None] == []


def test_no_two_bugs_have_the_same_name():
    names = [entry.name for entry in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("id", sorted(RULES))
def test_a_rule_says_why(id):
    rule = RULES[id]
    assert rule.summary.endswith(".")
    assert len(rule.summary) <= 100
    assert rule.why
    assert rule.name == rule.name.lower().replace(" ", "-")
