"""docs/performance.md: its tables are of its records, its picture of the model."""

import re
from xml.etree import ElementTree

from tool_at import ROOT, tool

PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.svg"


def test_its_tables_are_of_its_records():
    text = PAGE.read_text(encoding="utf-8")
    assert tool("performance").performed(text) == text
    assert text.count("\n## Measured\n") == 1


def test_its_picture_is_of_the_model():
    assert tool("performance").picture() == PICTURE.read_text(encoding="utf-8")
    ElementTree.parse(PICTURE)


def test_the_sums_of_its_first_table_are_those_of_the_picture():
    text = PAGE.read_text(encoding="utf-8")
    sums = re.findall(r"\*\*(?:(\d) )?x \+ (\d+) h\*\*", text)
    (_, plain), (_, ours), (x, plain_back), (_, ours_back) = sums
    assert (1 + int(x), int(plain) + int(plain_back)) == tool("performance").PLAIN
    assert (1 + int(x), int(ours) + int(ours_back)) == tool("performance").OURS
