"""Records into the story that `report` draws: verdicts, figures, examples, and provenance."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spiritlevel.catalogue import joined, say
from spiritlevel.report.story import Claim, Headline, Live, Story
from spiritlevel.report.story import Part as StoryPart
from spiritlevel.report.words import Text, plain
from spiritlevel.study.claims import CLAIMS, Judgement, Part, networks
from spiritlevel.study.claims.judgement import UNASKED, number, setting
from spiritlevel.study.config import Plan
from spiritlevel.study.examples import examples
from spiritlevel.study.figures import claim_figures
from spiritlevel.study.networks import title
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
    live: Live | None = None,
) -> Story:
    """All that the page says, from a run's files alone."""
    plan = Plan.from_json(config["plan"])
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
        "claims": [_claim(verdict, records, plan) for verdict in verdicts.values()],
        "examples": examples(records),
        "records": [
            {"key": r.key, "seconds": r.seconds, "failed": r.error is not None} for r in records
        ],
        "live": live,
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


def _claim(verdict: Judgement, records: Records, plan: Plan) -> Claim:
    claim = verdict.claim
    rule = {name: setting(value) for name, value in CLAIMS[claim].RULE.items()}
    found: Claim = {
        "id": claim,
        "title": f"claims.{claim}.title",
        "status": verdict.status,
        "headline": _headline(verdict.headline),
        "sentences": _sentences(verdict, plan),
        "literature": f"claims.{claim}.literature",
        "rule": [f"claims.{claim}.rule", rule],
        "parts": list(_parts(verdict)),
        "figures": claim_figures(claim, records, plan),
    }
    if verdict.by_network:
        found["networks"] = [
            {
                "name": ["page.plain", {"text": title(name)}],
                "status": one.status,
                "headline": _headline(one.headline),
            }
            for name, one in verdict.by_network.items()
        ]
    return found


def _headline(part: Part) -> Headline:
    return {
        "quantity": _quantity(part),
        "value": part.text,
        "interval": interval_text(part),
        "level": say("joints.percent", n=95),
        "n": part.n,
        "records": list(part.records),
    }


def _parts(verdict: Judgement) -> Iterator[StoryPart]:
    """The quantities of each network, which is named where there are several."""
    for name, one in (verdict.by_network or {"": verdict}).items():
        for part in one.parts:
            quantity = _quantity(part)
            if name:
                quantity = ["networks.of", {"network": title(name), "what": plain(quantity)}]
            told: StoryPart = {
                "quantity": quantity,
                "value": part.text,
                "interval": interval_text(part),
                "n": part.n,
                "source": part.source,
                "records": list(part.records),
            }
            yield told if part.holds is UNASKED else told | {"holds": part.holds}


def _sentences(verdict: Judgement, plan: Plan) -> list[Text]:
    """What was done, what was found on each network, what that means."""
    claim = verdict.claim
    several = verdict.by_network or {networks(claim, plan)[0]: verdict}
    done = "measured_on" if plan.networks else "measured"
    words = dict(verdict.words) | {"networks": joined("list", list(map(title, several)))}
    sentences: list[Text] = [[f"claims.{claim}.{done}", words]]
    for name, one in several.items():
        if one.headline.value is None:
            found: Text = "claims.not_measured"
        else:
            found = [f"claims.{claim}.found", dict(one.words)]
        if verdict.by_network:
            found = ["networks.on", {"network": title(name), "found": plain(found)}]
        sentences.append(found)
    return [*sentences, _meaning(verdict)]


def _meaning(verdict: Judgement) -> Text:
    if verdict.missing:
        return ["claims.incomplete", {"missing": str(verdict.missing)}]
    decided = {one.status for one in verdict.by_network.values()} - {"inconclusive"}
    if len(decided) > 1:
        return "claims.differ"
    return f"claims.{verdict.claim}.meaning.{verdict.status.replace(' ', '_')}"


def _quantity(part: Part) -> Text:
    return [part.quantity, dict(part.words)] if part.words else part.quantity


def interval_text(part: Part) -> str | None:
    """Such as 1.21 to 3.40×, in the digits and unit of the part."""
    if part.interval is None:
        return None
    low = number(part.interval.low, digits=part.digits)
    return say("reader.spread", low=low, high=number(part.interval.high, part.unit, part.digits))
