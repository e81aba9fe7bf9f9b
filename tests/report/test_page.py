import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from story import HOSTILE, example_story, figure, heatmap, lines, series
from story import axis as story_axis

from spiritlevel import report
from spiritlevel.errors import MissingExtra, UsageError
from spiritlevel.report.page import _duration


@pytest.fixture(scope="module")
def html():
    return report.render(example_story())


class Outline(HTMLParser):
    """Tags, attributes, headings and scripts, as a browser would find them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.words = [], [], []
        self.inside = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1][0] == "script":
            self.scripts.append((self.inside[-1][1], data))
        elif self.inside and self.inside[-1][0] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def outline(html):
    return Outline(html)


def test_only_our_two_scripts_run_and_the_rest_is_data(outline):
    types = [attrs.get("type") for tag, attrs in outline.tags if tag == "script"]
    assert types.count(None) == 2
    assert set(types) == {None, "application/json"}


def test_hostile_text_is_text_wherever_it_stands(html, outline):
    assert HOSTILE not in html
    assert HOSTILE in outline.words
    data = [json.loads(body) for attrs, body in outline.scripts if attrs.get("type")]
    assert any(HOSTILE in json.dumps(one) or "&lt;/script" in json.dumps(one) for one in data)


def test_data_survives_the_way_into_the_page(outline):
    data = [
        json.loads(body) for attrs, body in outline.scripts if attrs.get("class") == "chart-data"
    ]
    labels = [trace.get("hovertemplate", "") for one in data for trace in one["data"]]
    assert any(label.startswith("ε = 0, exact to rounding<br>") for label in labels)


def test_nothing_is_fetched_and_nothing_is_inline_code(outline):
    for tag, attrs in outline.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)
    policy = next(a["content"] for t, a in outline.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_headings_go_down_one_at_a_time(outline):
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_landmarks_language_and_labels(outline):
    tags = [tag for tag, _ in outline.tags]
    assert ("html", {"lang": "en"}) in outline.tags
    assert [tags.count(one) for one in ("header", "main", "footer")] == [1, 1, 1]
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in outline.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name, ids[0]) in ids
        if attrs.get("role") == "img":
            assert attrs["aria-label"].strip()
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_the_answer_comes_first_then_examples_claims_and_how_to_repeat_it(html):
    order = [html.index(f'id="{name}"') for name in ("answer", "examples", "claims", "reproduce")]
    assert order == sorted(order)
    assert html.index('id="widget"') < html.index('id="example-shift"')


def test_what_failed_and_rules_that_changed_are_said_only_when_they_did():
    story = example_story()
    page = report.render(story)
    assert "2 of 214 runs failed" in page
    assert "written down before the first run" in page
    story["run"] |= {"failed": 0, "rules_changed": True}
    page = report.render(story)
    assert "runs failed" not in page
    assert "The rules have changed since this run was made" in page
    assert "written down before the first run" not in page


def test_a_missing_piece_stops_the_page_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    story = example_story()
    story["claims"][1]["title"] = "claims.nowhere"
    with pytest.raises(UsageError, match=re.escape("claims.nowhere")):
        report.write(story, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_write_replaces_the_whole_page_and_leaves_nothing_beside_it(tmp_path, html):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert report.write(example_story(), path) == path
    assert path.read_text(encoding="utf-8") == html
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_crash_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UsageError, match="got No space left on device while writing"):
        report.write(example_story(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_class_named_by_an_undecodable_file_name_can_be_written(tmp_path):
    story = example_story()
    story["data"]["classes"] = ["caf\udce9"]
    path = report.write(story, tmp_path / "report.html")
    assert "caf?" in path.read_text(encoding="utf-8")


def test_a_large_study_stays_below_six_megabytes():
    """Ten figures of three panels of four lines, every other with bands, and two deep heat maps."""
    steps = list(range(120))
    walk = [1.23456789 / (1 + step) for step in steps]
    plain = [series("batch", steps, walk)] * 4
    banded = [series("batch", steps, walk, low=walk, high=walk)] * 4
    story = example_story()
    for claim in story["claims"]:
        claim["figures"] = [
            figure(name, "t", "c", *[lines("t", story_axis("x"), story_axis("y"), *four)] * 3)
            for name, four in (("plain", plain), ("banded", banded))
        ]
    depth = heatmap("t", [f"layer {i}" for i in range(60)], [walk[:51]] * 60)
    story["examples"][3]["figures"] = [figure("depth", "t", "c", depth, depth)]
    assert len(report.render(story).encode()) < 6_000_000


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (271.4, "4 min 31 s"), (7512, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert _duration(seconds) == said


def test_without_the_extra_the_error_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'spiritlevel\[study\]'"):
        report.render(example_story())


def test_the_report_imports_no_torch():
    code = "import sys, spiritlevel.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
