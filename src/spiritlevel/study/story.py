"""Records into the story that `report` draws: verdicts, figures, examples, and provenance."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spiritlevel.report.story import Claim, Story
from spiritlevel.report.words import Text
from spiritlevel.study.claims import CLAIMS, Judgement, Part
from spiritlevel.study.claims.judgement import number, setting
from spiritlevel.study.examples import examples
from spiritlevel.study.figures import FIGURES
from spiritlevel.study.records import Records

__all__ = ["build_story", "interval_text"]


def build_story(
    config: dict[str, Any],
    environment: dict[str, str],
    records: Records,
    verdicts: dict[str, Judgement],
    *,
    folder: Path,
    rules_changed: bool,
    missing: int,
) -> Story:
    """All that the page says, from a run's files alone."""
    return {
        "run": {
            "name": folder.name,
            "preset": config["plan"]["preset"],
            "date": datetime.fromisoformat(config["began"]).astimezone(UTC).date().isoformat(),
            "seconds": records.seconds(),
            "cells": len(records),
            "failed": len(records.failed()),
            "version": config["version"],
            "command": config["command"],
            "rules_changed": rules_changed,
            "missing": missing,
            "planned": config["cells"],
        },
        "data": {name: config["data"][name] for name in _DATA},  # type: ignore[typeddict-item]
        "environment": environment,
        "claims": [_claim(verdict, records) for verdict in verdicts.values()],
        "examples": examples(records),
    }


_DATA = (
    "name",
    "origin",
    "licence",
    "notes",
    "counts",
    "classes",
    "size",
    "channels",
    "fingerprint",
)


def _claim(verdict: Judgement, records: Records) -> Claim:
    claim, headline = verdict.claim, verdict.headline
    rule = {name: setting(value) for name, value in CLAIMS[claim].RULE.items()}
    return {
        "id": claim,
        "title": f"claims.{claim}.title",
        "status": verdict.status,
        "headline": {
            "quantity": _quantity(headline),
            "value": headline.text,
            "interval": interval_text(headline),
            "level": "95 %",
            "n": headline.n,
        },
        "sentences": _sentences(verdict),
        "literature": f"claims.{claim}.literature",
        "rule": [f"claims.{claim}.rule", rule],
        "parts": [
            {
                "quantity": _quantity(part),
                "value": part.text,
                "interval": interval_text(part),
                "n": part.n,
                "holds": part.holds,
                "source": part.source,
            }
            for part in verdict.parts
        ],
        "figures": list(FIGURES[claim](records)),
    }


def _sentences(verdict: Judgement) -> list[Text]:
    """What was done, what was found, what that means."""
    claim, words = verdict.claim, dict(verdict.words)
    measured = verdict.headline.value is not None
    return [
        [f"claims.{claim}.measured", words],
        [f"claims.{claim}.found", words] if measured else "claims.not_measured",
        ["claims.incomplete", {"missing": str(verdict.missing)}]
        if verdict.missing
        else f"claims.{claim}.meaning.{verdict.status.replace(' ', '_')}",
    ]


def _quantity(part: Part) -> Text:
    return [part.quantity, dict(part.words)] if part.words else part.quantity


def interval_text(part: Part) -> str | None:
    """Such as 1.21 to 3.40×, in the digits and unit of the part."""
    if part.interval is None:
        return None
    low = number(part.interval.low, digits=part.digits)
    return f"{low} to {number(part.interval.high, part.unit, part.digits)}"
