"""The verdicts as rows of text, for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from spiritlevel.catalogue import say
from spiritlevel.study.claims import Judgement
from spiritlevel.study.networks import title
from spiritlevel.study.story import interval_text

__all__ = ["HEADS", "Row", "verdict_rows"]

HEADS = ("claim", "verdict", "figure", "interval")
"""Keys under `[terminal]`."""
_MARKS = {"supported": "✓", "partly": "◐", "not supported": "✗", "inconclusive": "?"}


@dataclass(frozen=True)
class Row:
    """A claim, or beneath it one of the networks it was judged on."""

    title: str
    quantity: str
    """What the figure is; empty for a network, whose claim has said it."""
    status: str
    verdict: str
    """The status in words."""
    mark: str
    figure: str
    interval: str


def verdict_rows(verdicts: Mapping[str, Judgement]) -> Iterator[Row]:
    """Claim by claim. Over several networks a claim has a verdict, and each network its figure."""
    for claim, verdict in verdicts.items():
        quantity = say(verdict.headline.quantity, **verdict.headline.words)
        yield _row(
            say(f"terminal.claims.{claim}"), quantity, verdict, figures=not verdict.by_network
        )
        for network, one in verdict.by_network.items():
            yield _row(title(network), "", one)


def _row(title: str, quantity: str, verdict: Judgement, *, figures: bool = True) -> Row:
    headline, mark = verdict.headline, _MARKS[verdict.status]
    told = say(f"terminal.verdicts.{verdict.status.replace(' ', '_')}")
    if not figures:
        return Row(title, quantity, verdict.status, told, mark, "", "")
    interval = interval_text(headline) or "–"
    return Row(title, quantity, verdict.status, told, mark, headline.text, interval)
