"""Each rule finds its bugs, at the module, and nothing is found in what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outcomes import CASES, diagnosed, false_alarms, is_hit

from spiritlevel.doctor.check import RULES

HERE = [entry for entry in CASES if entry.ranks == 1]
"""The others are run by test_ranks.py, in several processes."""
MEASURED = Path(__file__).parents[2] / "docs/rules/cases.json"
GRAVEST_ELSEWHERE = {"SL314": "test_on_data.py, with a world of two processes"}
_table: dict[str, list[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    """Hits and false alarms by rule, printed at the end; `pytest -s` shows it.

    Beside them torch-audit's, as tools/rules.py has last measured them.
    """
    yield
    beside = of_torch_audit()
    print("\nrule   bugs  hits  false alarms   torch-audit: told apart  false alarms")
    for rule, (bugs, hits, alarms) in sorted(_table.items()):
        theirs = [beside[rule][key] if rule in beside else "-" for key in (0, 1)]
        print(f"{rule:<6} {bugs:>4} {hits:>5} {alarms:>13} {theirs[0]:>25} {theirs[1]:>13}")


def of_torch_audit():
    """By rule: of how many bugs it says what it does not say of the twin; how many twins it warns
    of."""
    found = {}
    for each in json.loads(MEASURED.read_text()):
        told = each["torch_audit"]
        if told is not None:
            apart, alarms = found.get(each["rule"], (0, 0))
            found[each["rule"]] = apart + told["apart"], alarms + bool(told["twin"])
    return found


def test_torch_audit_was_run_on_the_same_bugs():
    counts = of_torch_audit()
    assert counts
    assert counts.keys() <= RULES.keys()


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
    own = [f for f in bug.findings if (f.rule, f.module) == (entry.rule, entry.module)]
    assert {f.severity for f in own} == {entry.severity or RULES[entry.rule].severity}, own
    for finding in bug.findings:  # each tells its numbers, and what to do
        assert has_number(finding.evidence), finding
        assert finding.message
        assert finding.fix


def has_number(evidence):
    """The names of layers are no measurement."""
    return any(isinstance(v, int | float) and not isinstance(v, bool) for v in evidence.values())


def test_each_rule_has_a_case_of_its_own_severity():
    own = {entry.rule for entry in CASES if entry.severity in (None, RULES[entry.rule].severity)}
    assert own | GRAVEST_ELSEWHERE.keys() == set(RULES)


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
