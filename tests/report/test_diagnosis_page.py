import html
import re
from itertools import pairwise

import pytest
from doctor_records import example_diagnosis, example_gap, finding, tags_of
from story import HOSTILE

from spiritlevel.errors import UsageError
from spiritlevel.report import diagnosis_page
from spiritlevel.report.gap import answer, bars, layer_bars
from spiritlevel.report.words import plain

ESCAPED = html.escape(HOSTILE)


@pytest.fixture(scope="module")
def page():
    return diagnosis_page.render(example_diagnosis())


@pytest.fixture(scope="module")
def tags(page):
    return tags_of(page)


def scored(value, low, high):
    return {"value": value, "low": low, "high": high}


# ---- the page ------------------------------------------------------------------------------------


def test_no_script_runs_and_nothing_is_fetched(tags):
    assert [tag for tag, _ in tags if tag == "script"] == []
    (policy,) = [attrs["content"] for _, attrs in tags if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; script-src 'none'; ")
    for tag, attrs in tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)


@pytest.mark.parametrize(
    "where",
    [
        "<h1>The normalization of {}, checked</h1>",
        '<p class="message">{}</p>',
        '<code class="where">{}</code>',
        "<code>{}</code></pre>",
        'aria-label="What to do about SL201 at {}"',
        '<th role="rowheader" scope="row"><code>{}</code></th>',
        "<dt>{}</dt>",
        "<li>{}</li>",
    ],
)
def test_hostile_text_is_text_wherever_it_stands(page, where):
    assert HOSTILE not in page
    assert where.format(ESCAPED) in page


def test_headings_and_labels(tags):
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        assert attrs.get("aria-labelledby", ids[0]) in ids
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_the_gap_comes_first_then_the_gravest_findings(page):
    order = [page.index(f'id="{name}"') for name in ("gap", "findings", "asked")]
    assert order == sorted(order)
    assert re.findall(r'<span class="rule">(\w+)', page) == ["SL201", "SL502", "SL301", "SL106"]
    assert re.findall(r'href="#severity-\w+">([^<]*)<', page) == [
        "2 errors",
        "1 warning",
        "1 for information",
    ]
    assert "It does not pass" in page


def test_a_finding_has_its_fix_and_its_numbers(page):
    assert "<code>model = convert(model)\ncheck(model)</code></pre>" in page
    cells = dict(re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td></tr>', page))
    assert cells == {
        "z": "2.718",
        "shape": "8, 10",
        "frozen": "yes",
        "first": "–",
        "&lt;b&gt;": "&lt;i&gt;",
    }
    assert '<span class="where">the model itself</span>' in page
    assert page.count('<div class="fix">') == 2
    assert page.count('<table class="evidence"') == 1


def test_a_clean_model_passes():
    page = diagnosis_page.render(
        {"model": "Net", "ok": True, "gap": None, "findings": [], "asked": ["SL101"], "skipped": {}}
    )
    assert "It passes" in page
    assert page.count("Nothing was found") == 2
    assert "Not measured: it takes batches with their targets." in page
    assert "1 rule was asked." in page
    assert "None was left out." in page


def test_an_empty_diagnosis_is_a_page():
    page = diagnosis_page.render({})
    assert "The normalization of this model, checked" in page
    assert "No rule was asked." in page


def test_rules_that_were_not_asked_are_told_by_what_they_want(page):
    assert "3 were not, for want of what they need:" in page
    listed = re.findall(r"<dt>needs a probe</dt><dd>(.*?)</dd>", page)
    assert [re.findall(r">(\w+)<", one) for one in listed] == [["SL401", "SL402"]]


def test_what_the_baseline_accepts_is_counted_and_listed_if_told(page):
    assert "The baseline accepts 2 findings more, which are not listed." in page
    told = {**example_diagnosis(), "accepted": [finding("error", "SL101", "stem.1")]}
    page = diagnosis_page.render(told)
    assert "The baseline accepts 1 finding more" in page
    assert "<li>SL101 some-name <code>stem.1</code></li>" in page


def test_a_severity_that_is_not_known_is_refused(tmp_path):
    path = tmp_path / "check.html"
    bad = {"findings": [finding("fatal", "SL101", "stem")]}
    with pytest.raises(UsageError, match="got the severity 'fatal' of finding SL101, wanted error"):
        diagnosis_page.write(bad, path)
    assert not path.exists()
    assert diagnosis_page.write({}, path).read_text() == diagnosis_page.render({})


# ---- the gap -------------------------------------------------------------------------------------


def said(**change):
    return plain(answer({**example_gap(), **change}))


def test_what_is_lost_and_won_back_is_told_first(page):
    assert said() == (
        "The running statistics cost 20.0 points of accuracy: 60.0 % in eval mode, 80.0 % with the "
        "statistics of each batch. Recalibrated, a copy of the model wins back 90 % of that: "
        "78.0 %."
    )
    assert "cost <b>20.0 points of accuracy</b>" in page


def test_of_a_loss_less_is_better():
    loss = {
        "metric": "mean squared error",
        "eval": scored(2.0, 1.9, 2.1),
        "batch": scored(1.0, 0.9, 1.1),
        "recalibrated": scored(2.5, 2.4, 2.6),
    }
    assert said(**loss) == (
        "The running statistics cost 1 in mean squared error: 2 in eval mode, 1 with the "
        "statistics of each batch. Recalibrated, a copy of the model wins nothing back: 2.5."
    )
    page = diagnosis_page.render({"gap": {**example_gap(), **loss}})
    assert "Lower is better." in page
    assert '<th role="columnheader" scope="col">Mean squared error</th>' in page


SAME = scored(0.78, 0.73, 0.83)


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"recalibrated": None}, "The running statistics cost 20.0 points of accuracy"),
        ({"eval": SAME}, "No gap is shown. With 512 samples the intervals"),
        ({"eval": scored(0.9, 0.88, 0.92)}, "None. The model is better in eval mode (90.0 %)"),
        ({"untrained": True}, "It is too early to tell. No batch norm has seen a training batch"),
        ({"batch": None}, "Nothing. No batch normalization takes part"),
        ({"eval": scored("nan", "nan", "nan")}, "It cannot be told. Eval mode gives nan %"),
        # Sample by sample a difference may be sure where the intervals overlap, and too small.
        (
            {"eval": SAME, "gain": scored(0.02, 0.01, 0.03)},
            "The running statistics cost 2.0 points",
        ),
        ({"eval": SAME, "gain": scored(0.02, -0.01, 0.05)}, "No gap that matters is shown."),
        ({"blames": False, "gain": scored(0.2, 0.1, 0.3)}, "No gap that matters is shown."),
        ({"blames": True, "gain": scored(0.2, 0.1, 0.3)}, "The running statistics cost 20.0"),
        (
            {"eval": scored(0.9, 0.8, 0.95), "gain": scored(-0.1, -0.2, -0.05), "blames": False},
            "None. The model is better in eval mode",
        ),
    ],
)
def test_the_answer_is_no_surer_than_the_numbers(change, start):
    assert said(**change).startswith(start)


def test_a_small_gain_is_told_with_its_interval():
    told = said(eval=SAME, gain=scored(0.02, -0.013, 0.05))
    assert "change the result by 2.0 points of accuracy (−1.3 to 5.0), to 80.0 %" in told


def test_bars_share_one_scale_from_end_to_end():
    places = [(one.low, one.place, one.high) for one in bars(example_gap())]
    assert places[0] == (0.0, pytest.approx(16.67), pytest.approx(33.33))
    assert places[1] == (pytest.approx(66.67), pytest.approx(83.33), 100.0)
    assert next(one.interval for one in bars(example_gap())) == "55.0 % – 65.0 %"
    alone = {**example_gap(), "batch": None, "recalibrated": None, "eval": {"value": 0.5}}
    assert [(one.place, one.interval) for one in bars(alone)] == [(50.0, None)]


def test_layers_are_ranked_by_what_they_close(page):
    ranked = layer_bars(example_gap())
    assert [one.closed for one in ranked][:3] == ["55 %", "50 %", "45 %"]
    assert (ranked[0].width, ranked[0].value) == (55.0, "71.0 %")
    assert (ranked[-1].module, ranked[-1].closed, ranked[-1].width) == (HOSTILE, "−15 %", 0.0)
    first, _, folded = page.partition("<summary>3 more layers</summary>")
    assert "blocks.2.bn" in first
    assert "blocks.1.bn" in folded.partition("</details>")[0]


def test_a_layer_that_closes_more_than_the_gap_has_the_whole_bar():
    layers = [
        {"module": "a", "value": 0.9, "closed": 1.25},
        {"module": "b", "value": 0.7, "closed": 0.5},
        {"module": "c", "value": 0.7, "closed": None},
    ]
    found = layer_bars({**example_gap(), "layers": layers})
    assert [(one.module, one.closed, one.width) for one in found] == [
        ("a", "125 %", 100.0),
        ("b", "50 %", 40.0),
        ("c", "–", 0.0),
    ]
