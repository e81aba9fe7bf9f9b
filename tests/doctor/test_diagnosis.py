"""What a diagnosis says, as text and as files."""

from __future__ import annotations

import html
import json
import math
import re

import numpy as np
import torch
from case_book import batches, blobs, small_net, train
from torch import nn

from spiritlevel.catalogue import speaking
from spiritlevel.doctor.check import check
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.doctor.finding import Finding


def sick() -> nn.Module:
    """A negative variance at 1, and a counter that is no integer at 4."""
    model = train(small_net(), batches(*blobs()), epochs=1).eval()
    model[1].running_var[0] = -1.0
    model[4].num_batches_tracked = torch.tensor(3.5)
    return model


def of(*findings: Finding, **given) -> Diagnosis:
    return Diagnosis("Net", findings, **given)


ERROR = Finding("SL205", "error", "a.b", "was -1", {"least": -1.0}, "do this\nand\n    that")
WARNING = Finding("SL210", "warning", "c", "was 3.5", {}, "round it")
INFO = Finding("SL202", "info", "", "has none", {}, "see to it")


def test_the_gravest_comes_first():
    found = check(sick(), select="SL205,SL210")
    assert [(f.rule, f.module) for f in found.findings] == [("SL205", "1"), ("SL210", "4")]
    assert not found.ok


def test_layers_come_as_the_model_has_them():
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(12)))
    for norm in model:
        norm.running_var[0] = -1.0
    found = check(model, select="SL205")
    assert [finding.module for finding in found.findings] == [str(i) for i in range(12)]


def test_info_is_no_fault():
    assert of(INFO).ok
    assert not of(INFO, WARNING).ok
    assert of().ok
    assert of().worst is None
    assert of(INFO).worst == "info"


def test_what_is_reached():
    assert [of(WARNING).reaches(s) for s in ("error", "warning", "info")] == [False, True, True]
    assert not of().reaches("info")


def test_the_text_names_all_of_it():
    told = str(of(ERROR, INFO, asked=("SL202", "SL205"), skipped={"SL301": "data"}))
    for part in ("error", "SL205", "negative-variance", "a.b", "was -1", "do this", "the model"):
        assert part in told
    assert told.splitlines()[-1] == ("Net: 1 error, 1 info; 2 rules asked, 1 not: they need data")


def test_a_snippet_keeps_its_lines():
    lines = str(of(ERROR)).splitlines()
    assert "         Fix: do this" in lines
    assert "             that" in lines


def test_nothing_found_is_said():
    assert str(of(asked=("SL202",))) == "Net: nothing found; 1 rule asked"
    assert repr(of(asked=("SL202",))) == "<Diagnosis of Net: nothing found; 1 rule asked>"


def test_what_was_not_asked_says_what_it_needs():
    skipped = {"SL301": "data", "SL316": "targets", "SL302": "data", "SL401": "a probe"}
    assert of(skipped=skipped).lacking() == "data, targets or a probe"
    skipped |= {"SL501": "a reference", "SL502": "an example or data"}
    assert of(skipped=skipped).lacking() == "data, targets, a probe, a reference or an example"
    assert of(skipped={"SL502": "an example or data"}).lacking() == "an example or data"
    assert of(skipped={}).lacking() == ""


def test_in_chinese_it_is_told_in_chinese_and_its_files_have_no_language():
    skipped = {"SL301": "data", "SL401": "a probe"}
    found = of(ERROR, INFO, INFO, asked=("SL202",), skipped=skipped, accepted=(INFO,))
    files = (found.to_dict(), found.to_json(), found.to_sarif())
    assert found.to_dict()["skipped"] == skipped
    with speaking("zh"):
        lines = str(found).splitlines()
        assert (found.to_dict(), found.to_json(), found.to_sarif()) == files
    assert lines[0] == "错误     SL205 negative-variance，位于 a.b"
    assert "         修法：do this" in lines
    assert lines[-1] == (
        "Net: 1 个错误、2 条提示（基线已接受 1 条）；问了 1 条规则，另有 2 条没有问：缺少数据或探针"
    )
    page = found.to_html(lang="zh")
    assert re.findall(r"<dt>(.*?)</dt>", page) == ["数据", "探针"]


def test_the_gap_is_told_first():
    class Gap:
        def lines(self):
            return ["accuracy 0.50 in eval mode"]

    assert str(of(ERROR, gap=Gap())).splitlines()[0] == "accuracy 0.50 in eval mode"


def test_a_notebook_gets_no_markup_of_the_users():
    attack = "<img src=x>"
    found = Finding("SL205", "error", attack, f"x < y {attack}", {attack: attack}, attack)
    shown = Diagnosis(attack, (found,), notes=(attack,))._repr_html_()
    assert "<img" not in shown
    assert shown.count("&lt;img src=x&gt;") == 7


def test_a_notebook_gets_the_numbers_of_the_gap():
    found = check(sick(), batches(*blobs()))
    shown = found._repr_html_()
    for scored in (found.gap.eval, found.gap.batch):
        assert f"<b>{100 * scored.value:.1f} %</b>" in shown
    assert all(html.escape(finding.message) in shown for finding in found.findings)
    assert html.escape(found.summary()) in shown


def test_json_holds_whatever_a_rule_measured():
    evidence = {
        "nan": math.nan,
        "inf": -math.inf,
        "tensor": torch.tensor([1.0, math.nan]),
        "number": np.float32(1.5),
        "layers": ("a", "b"),
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        3: True,
    }
    told = json.loads(of(Finding("SL205", "error", "m", "x", evidence, "y")).to_json())
    assert told["findings"][0]["evidence"] == {
        "nan": "nan",
        "inf": "-inf",
        "tensor": [1.0, "nan"],
        "number": 1.5,
        "layers": ["a", "b"],
        "shape": [2, 3],
        "dtype": "torch.float16",
        "3": True,
    }


def test_json_has_all_its_parts():
    told = json.loads(check(sick()).to_json())
    assert list(told) == [
        "version",
        "model",
        "spiritlevel",
        "ok",
        "gap",
        "findings",
        "accepted",
        "asked",
        "skipped",
        "notes",
    ]
    assert told["model"] == "Sequential"
    assert told["ok"] is False
    assert told["gap"] is None
    assert list(told["findings"][0]) == [
        "rule",
        "name",
        "severity",
        "module",
        "message",
        "evidence",
        "fix",
    ]
    assert set(told["asked"]).isdisjoint(told["skipped"])


def test_the_page_is_whole():
    page = check(sick()).to_html()
    assert page.rstrip().endswith("</html>")
    assert "SL205" in page
