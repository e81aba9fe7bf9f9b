"""SARIF: its shape is that of the published schema of 2.1.0."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from spiritlevel.doctor.check import RULES
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.doctor.finding import Finding


def closed(required: list[str], **properties) -> dict:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def many(items: dict, least: int = 0) -> dict:
    return {"type": "array", "items": items, "minItems": least}


# What the standard's schema says of the objects that are used, and of no other property.
TEXT = {"type": "string"}
MESSAGE = closed(["text"], text=TEXT)
LEVEL = {"enum": ["none", "note", "warning", "error"]}
DESCRIPTOR = closed(
    ["id"],
    id=TEXT,
    name=TEXT,
    shortDescription=MESSAGE,
    fullDescription=MESSAGE,
    help=MESSAGE,
    defaultConfiguration=closed([], level=LEVEL),
)
ARTIFACT = closed([], uri=TEXT, uriBaseId=TEXT)
PHYSICAL = closed(
    ["artifactLocation"],
    artifactLocation=ARTIFACT,
    region=closed([], startLine={"type": "integer", "minimum": 1}),
)
LOGICAL = closed([], fullyQualifiedName=TEXT, kind=TEXT)
RESULT = closed(
    ["message"],
    ruleId=TEXT,
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    message=MESSAGE,
    locations=many(closed([], logicalLocations=many(LOGICAL), physicalLocation=PHYSICAL)),
    partialFingerprints={"type": "object", "additionalProperties": TEXT},
    suppressions=many(
        closed(["kind"], kind={"enum": ["inSource", "external"]}, justification=TEXT)
    ),
)
DRIVER = closed(["name"], name=TEXT, version=TEXT, rules=many(DESCRIPTOR))
RUN = closed(
    ["tool"],
    tool=closed(["driver"], driver=DRIVER),
    invocations=many(closed(["executionSuccessful"], executionSuccessful={"type": "boolean"})),
    results=many(RESULT),
)
LOG = {
    **closed(["version", "runs"], version={"const": "2.1.0"}, runs=many(RUN)),
    "patternProperties": {r"^\$schema$": TEXT},
}

FOUND = Diagnosis(
    "my.models:build",
    (
        Finding("SL205", "error", "a.b", "was -1", {"least": -1.0}, "do this"),
        Finding("SL210", "warning", "c", "was 3.5", {}, "round it"),
        Finding("SL202", "info", "", "has none", {}, "see to it"),
    ),
    asked=("SL202", "SL203", "SL205", "SL210"),
    accepted=(Finding("SL205", "error", "d", "was -1", {}, "do this"),),
)


def log(source: tuple[Path, int] | None = None) -> dict:
    return json.loads(FOUND.to_sarif(source))


@pytest.mark.parametrize("source", [None, (Path.cwd() / "my" / "models.py", 12)])
def test_it_has_the_shape_of_the_schema(source):
    jsonschema.validate(log(source), LOG)


def test_nothing_found_has_it_too():
    jsonschema.validate(json.loads(Diagnosis("net", ()).to_sarif()), LOG)


def test_results_point_at_their_rules():
    (run,) = log()["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["SL202", "SL203", "SL205", "SL210"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]


def test_levels_and_places():
    results = log()["runs"][0]["results"]
    assert [result["level"] for result in results] == ["error", "warning", "note", "error"]
    places = [result["locations"][0]["logicalLocations"][0] for result in results]
    assert [place["fullyQualifiedName"] for place in places] == ["a.b", "c", "my.models:build", "d"]
    assert {place["kind"] for place in places} == {"module"}
    assert "physicalLocation" not in results[0]["locations"][0]


def test_the_message_has_numbers_and_fix():
    assert log()["runs"][0]["results"][0]["message"]["text"] == "was -1\n\nFix: do this"


def test_a_rule_is_described():
    (described, *_) = log()["runs"][0]["tool"]["driver"]["rules"]
    rule = RULES["SL202"]
    assert described["name"] == "NoRunningStatistics"
    assert described["shortDescription"]["text"] == rule.summary
    assert rule.summary in described["fullDescription"]["text"]
    assert "docs/rules/SL202.md" in described["help"]["text"]
    assert described["defaultConfiguration"]["level"] == "note"


def test_what_a_baseline_accepted_is_suppressed():
    results = log()["runs"][0]["results"]
    assert ["suppressions" in result for result in results] == [False, False, False, True]


def test_fingerprints_are_the_baselines():
    results = log()["runs"][0]["results"]
    marks = [result["partialFingerprints"]["spiritlevel/v1"] for result in results]
    assert len(set(marks)) == 4


def test_the_code_that_builds_the_model_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = log((tmp_path / "my models.py", 7))["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20models.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }


def test_code_from_elsewhere_has_its_whole_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = log((Path("/elsewhere/net.py"), 7))["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"] == {"uri": "file:///elsewhere/net.py"}


def test_of_two_findings_at_one_place_the_new_one_has_its_own_mark():
    from spiritlevel.doctor.baseline import fingerprints
    from spiritlevel.doctor.diagnosis import Diagnosis
    from spiritlevel.doctor.finding import Finding

    pair = (Finding("SL205", "error", "a", "one"), Finding("SL205", "error", "a", "two"))
    first, second = fingerprints(pair)
    told = json.loads(Diagnosis("m", pair, asked=("SL205",)).accept({first}).to_sarif())
    results = told["runs"][0]["results"]
    marks = [(*each["partialFingerprints"].values(), "suppressions" in each) for each in results]
    assert marks == [(second, False), (first, True)]
