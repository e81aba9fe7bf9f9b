"""docs/scale.md: its tables are of its record, and the record bears its formula out."""

import json

import pytest
from tool_at import ROOT, tool

PAGE = ROOT / "docs" / "scale.md"


def test_its_tables_are_of_its_record():
    text = PAGE.read_text(encoding="utf-8")
    assert tool("measured").scaled(text) == text
    assert "## Measured" in text


def test_what_was_sent_is_what_the_formula_says():
    record = json.loads((ROOT / "docs" / "bench" / "scale.json").read_text())
    one, two = record["cases"]
    assert sum(one["formula"].values()) == 0
    seen, formula = two["bytes_a_process"], two["formula"]
    assert seen["batch"] == pytest.approx(formula["gradients"], rel=0.1)
    assert seen["sync"] == pytest.approx(sum(formula.values()), rel=0.1)
