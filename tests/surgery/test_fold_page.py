"""docs/fold.md is what `python tools/folded.py` makes of today's cases and of its records."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from peers_fold import rows

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("folded_tool", ROOT / "tools/folded.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

RECORDS = json.loads((ROOT / "docs/fold.json").read_text())


def test_the_page_is_made_of_todays_cases_and_the_records():
    assert (ROOT / "docs/fold.md").read_text() == tool.page(list(RECORDS.values()))


def test_ours_is_never_wrong_where_torchs_own_are():
    found = list(rows())
    ours = [row[3] for row in found]
    assert set(ours) == {"right", "left"}
    for column in (1, 2):
        assert "**wrong**" in {row[column] for row in found}
    assert any(row[1].startswith("raises") for row in found)


def test_architectures_of_others_are_right_or_refused_by_name():
    assert len(RECORDS) >= 25
    assert {row["verdict"] for row in RECORDS.values()} <= {"right", "right, some left", "refused"}
    assert all(row["why"] for row in RECORDS.values() if row["verdict"] == "refused")
