"""The page of a diagnosis: how much of the gap is BN, what was found, and what was not asked.

>>> from spiritlevel.report import diagnosis_page
>>> path = diagnosis_page.write(diagnosis, Path("check.html"))  # doctest: +SKIP

A diagnosis is a plain dict, as `Diagnosis.to_json()` writes it. No script runs on its page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spiritlevel.catalogue import sentence
from spiritlevel.errors import UsageError
from spiritlevel.files import write_whole
from spiritlevel.report import shell
from spiritlevel.report.gap import answer, bars, layer_bars, metric_name
from spiritlevel.report.numbers import told
from spiritlevel.report.words import Text, needed

__all__ = ["render", "write"]

SEVERITIES = ("error", "warning", "info")
# Of more layers the first ones tell it; the others are folded away.
LAYERS = 10


def render(diagnosis: Mapping[str, Any]) -> str:
    """The whole page as HTML. Raises UsageError for a severity that is not known."""
    findings = [_whole(one) for one in diagnosis.get("findings") or []]
    by_severity = {
        severity: [one for one in findings if one["severity"] == severity]
        for severity in SEVERITIES
    }
    skipped = _by_reason(diagnosis.get("skipped") or {})
    accepted = _accepted(diagnosis.get("accepted") or 0)
    asked = list(map(str, diagnosis.get("asked") or []))
    gap = diagnosis.get("gap")
    return (
        shell.environment({"told": told})
        .get_template("diagnosis.html.j2")
        .render(
            model=str(diagnosis.get("model") or sentence("diagnosis_page.this_model")),
            ok=bool(diagnosis.get("ok", True)),
            counts=[
                (name, _count(name, len(found))) for name, found in by_severity.items() if found
            ],
            by_severity={name: found for name, found in by_severity.items() if found},
            gap=_gap(gap) if gap else None,
            accepted=accepted,
            asked=asked,
            skipped=skipped,
            skipped_many=sum(map(len, skipped.values())),
            notes=list(map(str, diagnosis.get("notes") or [])),
            version=str(diagnosis.get("spiritlevel") or version("spiritlevel")),
            css=shell.styles("page", "doctor"),
            policy=shell.policy([]),
        )
    )


def write(diagnosis: Mapping[str, Any], path: Path) -> Path:
    """Render to `path`, which holds the old page or the whole new one at every moment."""
    write_whole(path, render(diagnosis))
    return path


def _whole(finding: Mapping[str, Any]) -> dict[str, Any]:
    """The finding with nothing missing that the page asks for."""
    severity = finding["severity"]
    if severity not in SEVERITIES:
        raise UsageError(
            f"got the severity {severity!r} of finding {finding.get('rule')}, "
            f"wanted {', '.join(SEVERITIES)}"
        )
    module = str(finding.get("module") or "")
    return {
        "rule": str(finding["rule"]),
        "name": str(finding.get("name") or ""),
        "severity": severity,
        "module": module or sentence("diagnosis_page.model_itself"),
        "is_path": bool(module),
        "message": str(finding["message"]),
        "evidence": dict(finding.get("evidence") or {}),
        "fix": str(finding.get("fix") or ""),
    }


def _count(severity: str, many: int) -> Text:
    """Such as 1 error, 3 warnings."""
    which = "1" if many == 1 else "n"
    return [f"diagnosis_page.severity_{severity}_{which}", {"n": many}]


def _gap(gap: Mapping[str, Any]) -> dict[str, Any]:
    metric, layers = metric_name(str(gap["metric"])), layer_bars(gap)
    better = "higher" if gap["metric"] == "accuracy" else "lower"
    return {
        "answer": answer(gap),
        "metric": metric[:1].upper() + metric[1:],
        "samples": gap["samples"],
        "better": f"diagnosis_page.{better}_better",
        "bars": bars(gap),
        "layers": layers[:LAYERS],
        "more": layers[LAYERS:],
        "notes": list(map(str, gap.get("notes") or [])),
    }


def _by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    """The rules that were not asked, by what they want."""
    found: dict[str, list[str]] = {}
    for rule, why in skipped.items():
        found.setdefault(needed(str(why)), []).append(str(rule))
    return found


def _accepted(accepted: int | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many findings a baseline has accepted, and which, if that was told."""
    if isinstance(accepted, int):
        return {"many": accepted, "findings": []}
    return {"many": len(accepted), "findings": [_whole(one) for one in accepted]}
