"""Findings that were accepted, and what is new since."""

from __future__ import annotations

import json

import pytest

import spiritlevel.doctor.check  # noqa: F401  the rules, by whose names findings are told
from spiritlevel.doctor import baseline
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.doctor.finding import Finding
from spiritlevel.errors import UsageError


def finding(rule: str = "SL205", module: str = "a", message: str = "was -1") -> Finding:
    return Finding(rule, "error", module, message, {}, "do this")


def test_a_fingerprint_is_of_rule_and_module_not_of_the_numbers():
    one, other = (baseline.fingerprints([finding(message=text)]) for text in ("was -1", "was -2"))
    assert one == other
    assert len(one[0]) == 16
    assert baseline.fingerprints([finding(module="b")]) != one
    assert baseline.fingerprints([finding("SL204")]) != one


def test_a_second_finding_at_a_module_has_its_own():
    marks = baseline.fingerprints([finding(), finding(), finding()])
    assert len(set(marks)) == 3
    assert marks[0] == baseline.fingerprints([finding()])[0]


def test_what_was_accepted_is_no_longer_found(tmp_path):
    file = tmp_path / "accepted.json"
    baseline.write(file, "net", [finding(), finding(module="b")])
    found = Diagnosis("net", (finding(message="was -9"), finding(module="c")))
    found = found.accept(baseline.accepted(file, "net"))
    assert [each.module for each in found.findings] == ["c"]
    assert [each.module for each in found.accepted] == ["a"]
    assert "1 accepted" in str(found)


def test_one_more_at_an_accepted_module_is_new(tmp_path):
    file = tmp_path / "accepted.json"
    baseline.write(file, "net", [finding()])
    found = Diagnosis("net", (finding(), finding())).accept(baseline.accepted(file, "net"))
    assert (len(found.findings), len(found.accepted)) == (1, 1)


def test_all_accepted_is_ok(tmp_path):
    file = tmp_path / "accepted.json"
    baseline.write(file, "net", [finding()])
    found = Diagnosis("net", (finding(),)).accept(baseline.accepted(file, "net"))
    assert found.ok
    assert json.loads(found.to_json())["accepted"][0]["module"] == "a"


def test_each_model_has_its_own(tmp_path):
    file = tmp_path / "accepted.json"
    baseline.write(file, "one", [finding()])
    baseline.write(file, "other", [finding(module="b")])
    baseline.write(file, "one", [])
    assert baseline.accepted(file, "one") == set()
    assert len(baseline.accepted(file, "other")) == 1
    assert baseline.accepted(file, "third") == set()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "got No such file or directory while reading baseline"),
        ("{", "which is no JSON"),
        ("[]", "without version 1"),
        ('{"version": 2}', "without version 1"),
        ('{"version": 1, "models": {"a": [3]}}', "no lists of findings"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, text, told):
    file = tmp_path / "accepted.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=told):
        baseline.accepted(file, "net")


def test_a_broken_file_is_not_written_over(tmp_path):
    file = tmp_path / "accepted.json"
    file.write_text("my notes")
    with pytest.raises(UsageError, match="which is no JSON"):
        baseline.write(file, "net", [])
    assert file.read_text() == "my notes"
