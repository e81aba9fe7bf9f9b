"""Rows of verdicts: over several networks, each has its figure and the claim only its verdict."""

from __future__ import annotations

from spiritlevel.study.claims.judgement import Judgement, Part, combine
from spiritlevel.study.networks import title
from spiritlevel.study.stats import Interval
from spiritlevel.study.table import verdict_rows

QUANTITY = "terminal.claims.converges"  # any sentence without placeholders


def judged(status: str, value: float | None) -> Judgement:
    interval = None if value is None else Interval(value, value - 1, value + 1, 3)
    headline = Part(QUANTITY, value, "here", interval=interval, n=3, unit="×")
    return Judgement("converges", status, headline, (headline,), {})


def test_on_one_network_a_claim_has_its_figure():
    (row,) = verdict_rows({"converges": judged("supported", 3.0)})
    assert (row.mark, row.status, row.figure) == ("✓", "supported", "3.00×")
    assert row.interval == "2.00 to 4.00×"
    assert row.quantity


def test_without_an_interval_there_is_a_dash():
    (row,) = verdict_rows({"converges": judged("inconclusive", None)})
    assert row.interval == "–"


def test_on_several_networks_each_has_its_figure():
    verdicts = {"small_vgg": judged("supported", 3.0), "my:net": judged("not supported", 1.0)}
    claim, first, second = verdict_rows({"converges": combine(verdicts)})
    assert (claim.status, claim.figure, claim.interval) == ("partly", "", "")
    assert (first.title, first.status, first.figure) == (title("small_vgg"), "supported", "3.00×")
    assert (second.title, second.mark, second.interval) == ("my:net", "✗", "0 to 2.00×")
    assert claim.quantity
    assert not first.quantity
