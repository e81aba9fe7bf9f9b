"""Records into the page's story: whatever of a run there is, a page can be drawn."""

from __future__ import annotations

import json

import pytest
from study.synthetic import gradients_records

from spiritlevel.data import load
from spiritlevel.study import Study, environment
from spiritlevel.study.claims import CLAIMS
from spiritlevel.study.config import PRESETS
from spiritlevel.study.engine import run_cells
from spiritlevel.study.examples import example_cells, example_lines
from spiritlevel.study.records import Records, write_json
from spiritlevel.study.run import begin
from spiritlevel.study.story import _sentences


@pytest.fixture
def begun(tmp_path):
    """A run that was stopped before its first cell."""
    run = begin(PRESETS["smoke"], tmp_path / "run", "spiritlevel study --preset smoke")
    write_json(run.folder / "environment.json", environment.describe(jobs=1, threads=1))
    return run.folder


def test_a_run_without_records_has_a_page_and_no_verdict(begun):
    study = Study.load(begun)
    assert {verdict.status for verdict in study.verdicts.values()} == {"inconclusive"}
    page = study.report().read_text()
    assert page.count("Inconclusive") >= 5
    assert "Not measured in this run." in page


def test_rules_that_changed_since_the_run_are_noticed(begun):
    assert not Study.load(begun).rules_changed
    config = json.loads((begun / "config.json").read_text())
    config["rules"]["converges"]["trained_below"] = 0.9
    write_json(begun / "config.json", config)
    assert Study.load(begun).rules_changed


def test_the_rules_on_the_page_are_those_of_the_code(begun):
    page = Study.load(begun).report().read_text()
    assert (
        f"mean ratio of steps is at least {CLAIMS['converges'].RULE['step_ratio_at_least']}" in page
    )


def test_example_lines_say_what_was_measured_and_what_was_not():
    lines = example_lines(Records())
    assert lines[0] == "(a) 1, 3, 5: mean 3, variance 2.6667, normalized -1.2247, 0, 1.2247"
    assert lines[1:] == [f"({letter}) not measured in this run" for letter in "bcd"]


def test_example_lines_come_from_the_records(tmp_path):
    cells = [c for c in example_cells(PRESETS["smoke"]) if c.task != "example-bell"]
    found = run_cells(
        cells, load("digits"), jobs=1, threads=1, cost=lambda _: 0.0, scratch=tmp_path
    )
    records = Records(found)
    (result,) = records.by_seed("example-shift").values()
    assert f"move {result['without']['mean_swing']:.3f} deviations" in example_lines(records)[1]


def test_no_verdict_from_fewer_runs_than_were_planned(begun):
    """The rest would do for the rule; what was registered decides."""
    write_records(begun, gradients_records(plan=PRESETS["quick"]))
    assert Study.load(begun).verdicts["gradients"].status == "supported"
    records = [r for r in gradients_records(plan=PRESETS["quick"]) if r.settings.get("lr") != 0.1]
    missing = len(list(CLAIMS["gradients"].cells(PRESETS["quick"]))) - len(records)
    write_records(begun, records)
    verdict = Study.load(begun).verdicts["gradients"]
    assert verdict.status == "inconclusive"
    assert _sentences(verdict)[-1] == ["claims.incomplete", {"missing": str(missing)}]


def write_records(folder, records):
    config = json.loads((folder / "config.json").read_text())
    config["plan"] = PRESETS["quick"].to_json()
    write_json(folder / "config.json", config)
    lines = [record.to_json() for record in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
