"""A diagnosis as SARIF 2.1.0, which code hosts and editors show beside the code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spiritlevel import __version__
from spiritlevel.doctor.baseline import fingerprints
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import RULES, Rule

__all__ = ["LEVELS", "sarif"]

LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_FINGERPRINT = "spiritlevel/v1"


def sarif(
    model: str,
    findings: Sequence[Finding],
    accepted: Sequence[Finding] = (),
    *,
    asked: Sequence[str] = (),
    source: tuple[Path, int] | None = None,
) -> dict[str, Any]:
    """One run. `accepted` are suppressed; `source` is the line of the function that builds it."""
    both = [(finding, False) for finding in findings] + [(finding, True) for finding in accepted]
    ids = sorted({*asked, *(finding.rule for finding, _ in both)})
    results = []
    marks = fingerprints([*accepted, *findings])  # of two at one place the accepted came first
    marks = [*marks[len(accepted) :], *marks[: len(accepted)]]
    for (finding, suppressed), mark in zip(both, marks, strict=True):
        result = {
            "ruleId": finding.rule,
            "ruleIndex": ids.index(finding.rule),
            "level": LEVELS[finding.severity],
            "message": {"text": f"{finding.message}\n\nFix: {finding.fix}"},
            "locations": [_place(model, finding.module, source)],
            "partialFingerprints": {_FINGERPRINT: mark},
        }
        if suppressed:
            why = "accepted in the baseline"
            result["suppressions"] = [{"kind": "external", "justification": why}]
        results.append(result)
    driver = {
        "name": "spiritlevel",
        "version": __version__,
        "rules": [_described(RULES[id]) for id in ids],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True}],
        "results": results,
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _place(model: str, module: str, source: tuple[Path, int] | None) -> dict[str, Any]:
    name = module or model
    place: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": name, "kind": "module"}],
    }
    if source is not None:
        file, line = source
        inside = file.is_relative_to(Path.cwd())
        shown = quote(file.relative_to(Path.cwd()).as_posix()) if inside else file.as_uri()
        artifact = {"uri": shown} | ({"uriBaseId": "%SRCROOT%"} if inside else {})
        place["physicalLocation"] = {
            "artifactLocation": artifact,
            "region": {"startLine": line},
        }
    return place


def _described(rule: Rule) -> dict[str, Any]:
    # No helpUri: the standard wants an absolute address there, and the pages are beside the code.
    page = f"docs/rules/{rule.id}.md"
    threads = "".join(f"\n- {thread}" for thread in rule.threads)
    return {
        "id": rule.id,
        "name": rule.name.title().replace("-", ""),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": f"{rule.summary}\n\n{rule.why}".strip()},
        "help": {"text": f"{rule.why or rule.summary}\n\nSee {page}{threads}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }
