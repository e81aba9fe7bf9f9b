"""What a check found, and what can be done with it."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spiritlevel import __version__
from spiritlevel.catalogue import columns, joined, listed, say, speaking
from spiritlevel.doctor.baseline import fingerprints
from spiritlevel.doctor.finding import SEVERITIES, Finding, Severity
from spiritlevel.doctor.rule import RULES
from spiritlevel.doctor.sarif import sarif
from spiritlevel.report.diagnosis_cell import diagnosis_html
from spiritlevel.report.diagnosis_page import render
from spiritlevel.report.words import needed

__all__ = ["Diagnosis", "told"]

_WIDTH = 88


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """The findings of one check: the gravest first, then by rule, then as the model has them."""

    model: str
    """Its class, or the name that the command line was given."""
    findings: tuple[Finding, ...]
    asked: tuple[str, ...] = ()
    """The ids of the rules that were asked."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Rule -> what it needs and was not given."""
    gap: Any = None
    """`probe.gap.Gap`: how much of the gap between training and eval is BN; None: no targets."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how it was measured, and what `apply` did."""
    accepted: tuple[Finding, ...] = ()
    """Findings that a baseline has accepted; they count for nothing."""
    _fix: Callable[[Diagnosis], Diagnosis] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error and no warning."""
        return not self.reaches("warning")

    @property
    def worst(self) -> Severity | None:
        """The gravest severity that was found."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in found), None)

    def reaches(self, severity: Severity) -> bool:
        """Whether there is a finding of this severity, or of a graver one."""
        return self.worst in SEVERITIES[: SEVERITIES.index(severity) + 1]

    def apply(self) -> Diagnosis:
        """Do what can be done mechanically, in place on the model, and check it again.

        `model.spiritlevel_log` and the new diagnosis' notes tell what was done, and which findings
        are left to you.
        """
        if self._fix is None:
            raise AssertionError("made without a model")
        return self._fix(self)

    def accept(self, known: Collection[str]) -> Diagnosis:
        """The same, with the findings of these fingerprints accepted."""
        marked = list(zip(self.findings, fingerprints(self.findings), strict=True))
        new = tuple(finding for finding, mark in marked if mark not in known)
        old = tuple(finding for finding, mark in marked if mark in known)
        return replace(self, findings=new, accepted=(*self.accepted, *old))

    # ---- as text ---------------------------------------------------------------------------------

    def summary(self) -> str:
        """Such as: 1 error, 2 warnings; 41 rules asked, 12 not: they need data or a probe."""
        counts = [
            _counted(severity, n)
            for severity in SEVERITIES
            if (n := sum(finding.severity == severity for finding in self.findings))
        ]
        found = joined("list", counts) or say("diagnosis.nothing")
        if self.accepted:
            found = say("diagnosis.accepted", found=found, n=len(self.accepted))
        asked = _counted("asked", len(self.asked))
        if many := len(self.skipped):
            asked = say("diagnosis.skipped", asked=asked, n=many, needs=self.lacking())
        return say("diagnosis.summary", found=found, asked=asked)

    def lacking(self) -> str:
        """What the rules that were not asked need, such as: data, targets or a probe; or ""."""
        needs = list(map(needed, dict.fromkeys(self.skipped.values())))
        if say("needs.data") in needs:
            either, alone = say("needs.example"), say("needs.example_else")
            needs = [alone if need == either else need for need in needs]
        return listed(needs, "either") if needs else ""

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.gap is not None:
            yield from self.gap.lines()
            yield ""
        for finding in self.findings:
            yield from told(finding)
            yield ""
        for note in self.notes:
            yield from textwrap.wrap(note, _WIDTH) or [""]
        yield f"{self.model}: {self.summary()}"

    def __repr__(self) -> str:
        return f"<Diagnosis of {self.model}: {self.summary()}>"

    def _repr_html_(self) -> str:
        """The gap and the findings, in a notebook."""
        return diagnosis_html(self.to_dict(), self.summary())

    # ---- as files --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts; what is not finite is a text, as JSON has no word for it."""
        parts = {
            "version": 1,
            "model": self.model,
            "spiritlevel": __version__,
            "ok": self.ok,
            "gap": None if self.gap is None else self.gap.to_dict(),
            "findings": [_as_dict(finding) for finding in self.findings],
            "accepted": [_as_dict(finding) for finding in self.accepted],
            "asked": list(self.asked),
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = _plain(parts)
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_sarif(self, source: tuple[Path, int] | None = None) -> str:
        """SARIF 2.1.0; `source` is the file and line of the code that builds the model."""
        log = sarif(self.model, self.findings, self.accepted, asked=self.asked, source=source)
        return json.dumps(log, indent=2, allow_nan=False)

    def to_html(self, *, lang: str | None = None) -> str:
        """One page that needs nothing else; `lang` is its language, "en" or "zh"."""
        with speaking(lang):
            return render(self.to_dict())


def told(finding: Finding) -> Iterator[str]:
    """In lines: what and where, the message, what to do."""
    name = RULES[finding.rule].name
    grave, place = (
        say(f"diagnosis.{finding.severity}"),
        finding.module or say("terminal.check.whole"),
    )
    where = say("diagnosis.at", rule=finding.rule, name=name, place=place)
    yield f"{grave}{' ' * (9 - columns(grave))}{where}"
    for text in (finding.message, say("diagnosis.fix", fix=finding.fix) if finding.fix else ""):
        yield from _wrapped(text)


def _counted(what: str, many: int) -> str:
    return say(f"diagnosis.{what}_{'1' if many == 1 else 'n'}", n=many)


def _wrapped(text: str) -> Iterator[str]:
    """Line by line, for a fix may be a snippet."""
    for line in text.splitlines():
        indent = " " * (9 + len(line) - len(line.lstrip()))
        yield from textwrap.wrap(
            line.strip(),
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "name": RULES[finding.rule].name,
        "severity": finding.severity,
        "module": finding.module,
        "message": finding.message,
        "evidence": dict(finding.evidence),
        "fix": finding.fix,
    }


def _plain(value: Any) -> Any:
    """Made of what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their numbers
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
