"""docs/rules/ is what `python tools/rules.py` makes of today's rules, bugs and twins."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/rules"
_PATH = list(sys.path)
_spec = importlib.util.spec_from_file_location("rules_tool", ROOT / "tools/rules.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
sys.path[:] = [*_PATH, *(path for path in sys.path if path not in _PATH)]  # ours come last

CASES, RULES = tool.CASES, tool.RULES
OVERVIEW = (PAGES / "README.md").read_text()
RECORD = json.loads((PAGES / "cases.json").read_text())


def test_every_rule_has_a_page_and_every_page_a_rule():
    assert sorted(path.stem for path in PAGES.glob("SL*.md")) == sorted(RULES)
    assert set(re.findall(r"\[(SL\d+)\]\(", OVERVIEW)) == set(RULES)


@pytest.mark.parametrize("id", sorted(RULES))
def test_a_page_has_todays_rule_bugs_and_cures(id):
    page, rule = (PAGES / f"{id}.md").read_text(), RULES[id]
    for part in (id, rule.name, rule.severity, rule.summary, rule.why):
        assert part in page
    for thread in rule.threads:
        assert tool.link(thread) in page
    for entry in (entry for entry in CASES if entry.rule == id):
        assert tool.source(entry.bug) in page, f"{entry.name}: run python tools/rules.py"
        assert tool.source(entry.clean) in page, f"{entry.name}: run python tools/rules.py"
        assert re.search(rf"^(error|warning|info) +{id} {rule.name}, at ", page, re.M)


def test_the_record_has_every_case_all_found_and_no_false_alarm():
    assert [(each["rule"], each["case"]) for each in RECORD] == [(e.rule, e.name) for e in CASES]
    assert [each["case"] for each in RECORD if not each["hit"]] == []
    assert [each["alarms"] for each in RECORD if each["alarms"]] == []


def test_the_table_is_made_of_the_record():
    for line in tool.table(RECORD):
        assert line in OVERVIEW


def test_what_is_left_out_has_its_reason():
    for reason in (*tool.LEFT_OUT.values(), *tool.PARTLY.values()):
        assert reason in OVERVIEW


def test_a_snippet_comes_with_what_it_uses_of_its_file():
    sources = [tool.source(build) for entry in CASES for build in (entry.bug, entry.clean)]
    own = {
        name
        for path in (ROOT / "tests/doctor").glob("cases_*.py")
        for name in re.findall(r"^class (\w+)", path.read_text(), re.M)
    }
    for text in sources:
        for name in re.findall(r"\b([A-Z]\w+)\(", text):
            if name in own:
                assert f"class {name}(" in text


def test_links_lead_somewhere():
    for page in PAGES.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
