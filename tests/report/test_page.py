import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from plotly.offline import get_plotlyjs
from story import HOSTILE, control, example_story, figure, lines, live_story, series
from story import axis as story_axis

from spiritlevel import report
from spiritlevel.catalogue import say
from spiritlevel.errors import MissingExtra, UsageError
from spiritlevel.report.page import LIMIT, _duration, _ranges


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


def test_only_our_script_runs_and_the_rest_is_data(outline):
    types = [attrs.get("type") for tag, attrs in outline.tags if tag == "script"]
    assert types.count(None) == types.count("text/plain") == 1
    assert set(types) == {None, "text/plain", "application/json"}


def sha256(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_names_our_script_and_plotlys_and_no_other(outline):
    (policy,) = [a["content"] for _, a in outline.tags if a.get("http-equiv")]
    (ours,) = [body for attrs, body in outline.scripts if "type" not in attrs]
    (packed,) = [body for attrs, body in outline.scripts if attrs.get("id") == "plotly"]
    plotly = zlib.decompress(base64.b64decode(packed)).decode()
    assert plotly == get_plotlyjs()
    assert re.findall(r"sha256-[^']+", policy) == [sha256(plotly), sha256(ours)]


def test_hostile_text_is_text_wherever_it_stands(html, outline):
    assert HOSTILE not in html
    assert HOSTILE in outline.words
    data = [json.loads(body) for attrs, body in outline.scripts if "json" in attrs.get("type", "")]
    assert any(HOSTILE in json.dumps(one) or "&lt;/script" in json.dumps(one) for one in data)


WHERE_IT_STANDS = [
    ("record", '<li id="record-8"><code>{}</code>'),
    ("control value", "<span>{}</span></label>"),
    ("network", "{} <b>–</b></li>"),
    ("summary", '<p class="summary">Behind 40 layers 0.015 of 1 is left, in {} less.</p>'),
    ("class", '<bdi class="tag">{}</bdi>'),
]


@pytest.mark.parametrize(("what", "wanted"), WHERE_IT_STANDS)
def test_hostile_text_is_escaped(html, what, wanted):
    assert wanted.format("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;") in html, what


def every_dict(value):
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from every_dict(item)


def test_data_survives_the_way_into_the_page(outline):
    data = {one["id"]: one for one in figure_data(outline)}
    assert len(data) == 8
    names = [item.get("name") for item in every_dict(data["scaling"]["frames"])]
    assert "ε = 0, exact to rounding" in names
    assert data["play"]["controls"][0]["values"] == ["VGG", "residual", HOSTILE]


def figure_data(outline):
    found = [body for attrs, body in outline.scripts if attrs.get("class") == "figure-data"]
    return [json.loads(body) for body in found]


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


READING = ["answer", "examples", "widget", "layers", "example-shift", "claims", "reproduce"]


def test_the_answer_comes_first_then_examples_claims_and_how_to_repeat_it(html):
    order = [html.index(f'id="{name}"') for name in READING]
    assert order == sorted(order)


def test_the_contents_name_all_of_it_in_that_order(html):
    contents = html[html.index("<nav") : html.index("</nav>")]
    assert re.findall('href="#([^"]+)"', contents) == [
        "examples",
        "layers",
        *(f"example-{name}" for name in ("shift", "scale", "bell")),
        "claims",
        *(f"claim-{claim['id']}" for claim in example_story()["claims"]),
        "reproduce",
    ]


def test_arithmetic_comes_first_wherever_it_is_given():
    story = example_story()
    story["examples"] = story["examples"][::-1]
    html = report.render(story)
    assert html.index('id="example-arithmetic') < html.index('id="example-bell')


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


def test_numbers_name_their_records_and_the_records_are_listed(outline):
    named = [attrs["data-records"] for _, attrs in outline.tags if "data-records" in attrs]
    assert set(named) == {"0-2,7", "1", "2", "3", "4", "0-7"}
    ids = {attrs.get("id") for _, attrs in outline.tags}
    assert {f"record-{index}" for index in range(9)} <= ids
    assert "sweep/lr=0.1,norm=batch,seed=7" in outline.words
    assert "1.2 s, failed" in outline.words


def test_the_story_goes_from_the_answer_by_1_3_5_to_the_claims(html):
    ids = ("answer", "examples", "example-arithmetic-title", "widget", "layers", "claims")
    places = [html.index(f'id="{name}"') for name in (*ids, "reproduce")]
    assert places == sorted(places)


def test_what_the_rule_does_not_ask_for_is_folded_away(html):
    """And has no say in whether the claim holds."""
    asked, _, other = html.partition('<details class="others" id="others-stabilises">')
    decides = asked.rpartition(say("page.parts"))[2]
    other = other.partition("</details>\n  </section>")[0]
    assert [f"Drift of layer {n}," in decides for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert [f"Drift of layer {n}," in other for n in (1, 2, 3, 4)] == [False, False, False, True]
    head = f'scope="col">{say("page.holds")}'
    assert head in decides
    assert head not in other.partition("</table>")[0]
    story = example_story()
    for claim in story["claims"]:
        claim["parts"] = [part for part in claim["parts"] if "holds" in part]
    assert 'class="others"' not in report.render(story)


def test_without_records_or_networks_the_page_says_nothing_of_them():
    story = example_story()
    del story["records"]
    for claim in story["claims"]:
        del claim["networks"], claim["headline"]["records"]
        for part in claim["parts"]:
            del part["records"]
        for one in claim["figures"]:
            one.pop("records", None)
    html = report.render(story)
    assert 'class="traced"' not in html
    assert 'id="records"' not in html
    assert 'class="networks"' not in html


def test_a_live_page_says_how_far_the_run_is_and_a_finished_one_does_not(html):
    live = report.render(live_story())
    assert "The study is running: 34 of 214 runs are done, 3 min left." in live
    assert "reads itself anew every 3600 s" in live
    assert "gave no result" not in live
    assert 'value="0.16"' in live
    assert 'id="live"' not in html
    story = live_story()
    story["live"]["left"] = None
    assert "34 of 214 runs are done. This page" in report.render(story)


def big_story():
    """Five claims on three networks: for each a figure with three controls, 7 x 3 x 15 frames."""
    rng = random.Random(0)
    steps = [10.0 * step for step in range(40)]

    def curve(arm):
        middle = [rng.random() for _ in steps]
        ends = {"low": [v - 0.1 for v in middle], "high": [v + 0.1 for v in middle]}
        return series(arm, steps, middle, **ends)

    def frame():
        return [lines("t", story_axis("x"), story_axis("y"), curve("none"), curve("batch"))]

    story = example_story()
    for claim in story["claims"]:
        claim["figures"] = []
        for network in ("vgg", "residual", "ghost"):
            frames = [frame() for _ in range(7 * 3 * 15)]
            one = figure(f"{claim['id']}-{network}", "t", "c", *frames[0])
            values = {"rate": 7, "norm": 3, "step": 15}
            one["controls"] = [
                control("slider", name, [str(value) for value in range(many)])
                for name, many in values.items()
            ]
            claim["figures"].append(one | {"frames": frames})
    story["records"] *= 100
    return story


@pytest.fixture(scope="module")
def big():
    return big_story()


def notes(html):
    """What the captions of the figures say of what was left out."""
    captions = re.findall("<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    said = " ".join(captions)
    return said.count("neighbouring points are drawn as one"), said.count("at one setting only")


@pytest.mark.slow
def test_a_big_study_stays_within_the_bound_and_says_what_that_cost(big):
    html = report.render(big)
    assert 4_500_000 < len(html.encode()) <= LIMIT == 6_000_000
    assert notes(html) == (15, 0)
    played = [one for one in figure_data(Outline(html)) if one["controls"]]
    assert len(played) == 15
    assert {len(one["frames"]["value"]) for one in played} == {315}


@pytest.mark.slow
def test_what_is_larger_still_is_drawn_at_the_start(big, monkeypatch):
    monkeypatch.setattr("spiritlevel.report.page.LIMIT", 3_000_000)
    html = report.render(big)
    assert len(html.encode()) <= 3_000_000
    thinned, fixed = notes(html)
    assert 0 < fixed < 15
    assert thinned >= html.count('class="controls"') == 15 - fixed


def test_a_page_that_cannot_be_made_small_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("spiritlevel.report.page.LIMIT", 2_000_000)
    path = tmp_path / "report.html"
    with pytest.raises(UsageError, match=r"MB with few points and without controls, wanted at m"):
        report.write(example_story(), path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([], ""),
        ([3], "3"),
        ([2, 0, 1, 7, 1], "0-2,7"),
        ([4, 5], "4-5"),
        ([0, 2, 4, 5, 7], "0,2,4-5,7"),
    ],
)
def test_indices_are_told_by_their_ranges(indices, said):
    assert _ranges(indices) == said


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
