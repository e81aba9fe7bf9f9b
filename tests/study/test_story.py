"""Records into the page's story: whatever of a run there is, a page can be drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from study.synthetic import (
    NETWORKS,
    PLAN,
    converges_records,
    gradients_records,
    without,
)

from spiritlevel.data import load
from spiritlevel.report.words import plain
from spiritlevel.study import Study, environment
from spiritlevel.study.claims import CLAIMS, judge
from spiritlevel.study.config import PRESETS
from spiritlevel.study.engine import run_cells
from spiritlevel.study.examples import example_cells, example_lines, examples
from spiritlevel.study.networks import title
from spiritlevel.study.records import Records, write_json
from spiritlevel.study.run import begin
from spiritlevel.study.story import _parts, _sentences, build_story


@pytest.fixture
def begun(tmp_path):
    """A run that was stopped before its first cell."""
    return begin_in(tmp_path / "run", PRESETS["smoke"])


def begin_in(folder, plan):
    run = begin(plan, folder, "spiritlevel study --preset smoke")
    write_json(
        run.folder / "environment.json", environment.describe(jobs=1, threads=1, kernels="aten")
    )
    return run.folder


def test_a_run_without_records_has_a_page_and_no_verdict(begun):
    study = Study.load(begun)
    assert {verdict.status for verdict in study.verdicts.values()} == {"inconclusive"}
    page = study.report().read_text()
    assert page.count("Inconclusive") >= 5
    assert "Not measured in this run." in page


def test_a_run_of_networks_without_records_tells_of_each(tmp_path):
    plan = replace(PRESETS["smoke"], networks=("small_vgg", "my.models:build"))
    study = Study.load(begin_in(tmp_path / "run", plan))
    story = build_story(
        study.config,
        {},
        study.records,
        study.verdicts,
        folder=study.folder,
        rules_changed=False,
        missing=len(study.missing),
    )
    for claim in story["claims"]:
        assert [plain(one["name"]) for one in claim["networks"]] == ["VGG-like", "my.models:build"]
        assert {one["status"] for one in claim["networks"]} == {"inconclusive"}
        assert "VGG-like, my.models:build" in plain(claim["sentences"][0])
    assert "my.models:build" in study.report().read_text()


def test_rules_that_changed_since_the_run_are_noticed(begun):
    assert not Study.load(begun).rules_changed
    config = json.loads((begun / "config.json").read_text())
    config["rules"]["converges"]["share_of_way"] = 0.9
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


def test_whatever_an_example_draws_names_its_records(tmp_path):
    cells = example_cells(PRESETS["smoke"])
    found = run_cells(
        cells, load("digits"), jobs=1, threads=1, cost=lambda _: 0.0, scratch=tmp_path
    )
    records = Records(found)
    for example in examples(records):
        for drawn in example["figures"]:
            tasks = {list(records)[number].task for number in drawn["records"]}
            assert tasks == {f"example-{example['id']}"}
    assert sum(bool(example["figures"]) for example in examples(records)) == 3


def test_no_verdict_from_fewer_runs_than_were_planned(begun):
    """The rest would do for the rule; what was registered decides."""
    write_records(begun, gradients_records(plan=PRESETS["quick"]))
    assert Study.load(begun).verdicts["gradients"].status == "supported"
    records = [r for r in gradients_records(plan=PRESETS["quick"]) if r.settings.get("lr") != 0.1]
    missing = len(list(CLAIMS["gradients"].cells(PRESETS["quick"]))) - len(records)
    write_records(begun, records)
    verdict = Study.load(begun).verdicts["gradients"]
    assert verdict.status == "inconclusive"
    sentences = _sentences(verdict, PRESETS["quick"])
    assert sentences[-1] == ["claims.incomplete", {"missing": str(missing)}]


def test_no_verdict_on_a_network_from_fewer_runs_than_were_planned(begun):
    records = gradients_records(plan=PRESETS["quick"])
    write_records(begun, without(records, network="residual_mlp", lr=0.1))
    verdict = Study.load(begun).verdicts["gradients"]
    assert verdict.by_network["mlp"].status == "supported"
    assert verdict.by_network["residual_mlp"].status == "inconclusive"


def test_a_claim_on_several_networks_is_told_of_each():
    verdict = judge("gradients", gradients_records(gradient=1.21), PLAN)
    done, *found, meaning = _sentences(verdict, PLAN)
    assert done[0] == "claims.gradients.measured"
    names = [title(name) for name in verdict.by_network]
    assert [sentence[1]["network"] for sentence in found] == names == ["plain", "residual"]
    assert all("gradients change by 1.21×" in plain(sentence) for sentence in found)
    assert meaning == "claims.gradients.meaning.partly"


def test_networks_that_do_not_agree_are_told_to():
    kinds = {"mlp": 1.21, "residual_mlp": 1.0}
    records = [
        record
        for name, growth in kinds.items()
        for record in gradients_records(gradient=growth)
        if record.settings.get("network", name) == name
    ]
    verdict = judge("gradients", Records(records), PLAN)
    assert [one.status for one in verdict.by_network.values()] == ["partly", "supported"]
    assert _sentences(verdict, PLAN)[-1] == "claims.differ"
    assert "partly" in plain("claims.differ")


def test_a_claim_on_one_network_is_told_without_its_name():
    verdict = judge("converges", converges_records(), PLAN)
    done, found, meaning = _sentences(verdict, PLAN)
    assert done[0] == "claims.converges.measured"
    assert found[0] == "claims.converges.found"
    assert meaning == "claims.converges.meaning.supported"


def test_networks_that_were_asked_for_are_named():
    verdict = judge("converges", converges_records(plan=NETWORKS), NETWORKS)
    done, *_ = _sentences(verdict, NETWORKS)
    assert done[0] == "claims.converges.measured_on"
    assert "Each network (VGG-like, residual) learned" in plain(done)


def test_what_a_network_gave_no_figure_for_was_not_measured():
    records = without(gradients_records(), network="residual_mlp")
    _, one, other, _ = _sentences(judge("gradients", records, PLAN), PLAN)
    assert "gradients change by" in plain(one)
    assert plain("claims.not_measured") in plain(other)


def test_the_parts_of_every_network_name_their_records():
    records = list(converges_records(plan=NETWORKS))
    verdict = judge("converges", Records(records), NETWORKS)
    parts = list(_parts(verdict))
    assert len(parts) == sum(len(one.parts) for one in verdict.by_network.values())
    for part in parts:
        network = {records[number].settings["network"] for number in part["records"]}
        assert [title(name) for name in network] == [part["quantity"][1]["network"]]


def test_the_parts_of_one_network_do_not_name_it():
    verdict = judge("converges", converges_records(), PLAN)
    quantities = [part["quantity"] for part in _parts(verdict)]
    assert quantities[0] == "claims.converges.steps"
    assert len(quantities) == len(verdict.parts)


def write_records(folder, records):
    config = json.loads((folder / "config.json").read_text())
    config["plan"] = PRESETS["quick"].to_json()
    write_json(folder / "config.json", config)
    lines = [record.to_json() for record in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
