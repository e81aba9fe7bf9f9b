"""What a notebook shows of a diagnosis and of a probe, given as plain data."""

from __future__ import annotations

import re

import pytest
from doctor_records import example_diagnosis, example_gap, finding
from notebook_reader import Reader
from story import HOSTILE
from test_colours import contrast

from spiritlevel.catalogue import speaking
from spiritlevel.report.diagnosis_cell import _COLOURS, diagnosis_html
from spiritlevel.report.notebook import band, block, cell, code, folded, table
from spiritlevel.report.probe_cell import probe_html


def diagnosis(**given):
    return example_diagnosis() | given


def layer(path="1", **given):
    """Of a norm, as a probe's record has it; what is not given was not read."""
    names = ("step", "z_median", "z_max", "var_ratio", "values", "grad_norm", "update_ratio")
    found = dict.fromkeys((*names, "dead_share", "non_finite"))
    return {"path": path, "type": "BatchNorm2d", **found, "step": 50, **given}


def latest(*layers, **given):
    cost = {"share": 0.0123, "seconds": 0.31, "sampled_ms": 12.0, "step_ms": 0.13}
    counts = {"every": 50, "steps": 1234, "samples": 25}
    rest = {"model": "Net", "open": False, "overhead": cost, "unseen": []}
    return {**counts, **rest, "layers": list(layers), **given}


# ---- a diagnosis ---------------------------------------------------------------------------------


def test_the_gap_stands_first_with_its_three_accuracies():
    seen = Reader(diagnosis_html(diagnosis(), "4 found"))
    assert seen.text.index("The running statistics cost 20.0 points") < seen.text.index("4 found")
    assert [row[:3] for row in seen.rows(0)] == [
        ["Statistics", "accuracy", "95 % interval"],
        ["Running, as in eval mode", "60.0 %", "55.0 % – 65.0 %"],
        ["Of each batch", "80.0 %", "75.0 % – 85.0 %"],
        ["Running, recalibrated on a copy", "78.0 %", "73.0 % – 83.0 %"],
    ]
    assert [row[:3] for row in seen.rows(1)][:2] == [
        ["Alone on the statistics of each batch", "accuracy", "Closes"],
        ["blocks.11.bn", "71.0 %", "55 %"],
    ]
    assert len(seen.rows(1)) == 1 + 5
    assert "and 8 more" in seen.text


def test_every_part_of_a_finding_is_there():
    one = finding("warning", "SL301", "blocks.1.bn", evidence={"z": 2.7182818}, fix="a\n  b")
    seen = Reader(diagnosis_html(diagnosis(findings=[one], gap=None), "1 warning"))
    ((head, told),) = seen.rows(0)
    assert head.split("\n") == ["Warning", "SL301 some-name", "blocks.1.bn"]
    assert told.split("\n")[0] == "SL301 was seen"
    assert "What to do: a\n  b" in told, "a snippet keeps its lines"
    assert seen.rows(1) == [["z", "2.718"]]


def test_a_finding_of_no_module_is_of_the_model():
    seen = Reader(diagnosis_html(diagnosis(findings=[finding("info", "SL106", "")]), ""))
    assert "the model itself" in seen.text


def test_of_many_findings_the_rest_is_folded_not_lost():
    many = [finding("error", "SL201", f"layer{i}") for i in range(53)]
    markup = diagnosis_html(diagnosis(findings=many, gap=None), "")
    seen = Reader(markup)
    assert [len(rows) for rows in seen.tables] == [20, 33]
    assert "and 33 more" in seen.text
    assert markup.index("<details") < markup.index("layer20<")


def test_what_comes_from_users_is_text():
    gap = example_gap() | {"layers": [{"module": HOSTILE, "value": 0.6, "closed": 0.5}]}
    for markup in (
        diagnosis_html(diagnosis(gap=gap), HOSTILE),
        probe_html(latest(layer(HOSTILE, type=HOSTILE), model=HOSTILE, unseen=[HOSTILE])),
    ):
        assert "<script" not in markup
        assert Reader(markup).text.count(HOSTILE) >= 4, "the reader knows no script"


def test_numbers_that_are_not_finite_are_shown():
    """As `to_dict` has them: a text, since JSON has no word for them."""
    gap = example_gap() | {"eval": {"value": "nan", "low": "nan", "high": "nan"}, "layers": []}
    seen = Reader(diagnosis_html(diagnosis(gap=gap, findings=[]), "nothing found"))
    assert "It cannot be told." in seen.text
    assert "nan %" in seen.rows(0)[1][1]


def test_in_chinese_its_heads_and_titles_are_chinese():
    one = finding("warning", "SL301", "blocks.1.bn", fix="a")
    with speaking("zh"):
        seen = Reader(diagnosis_html(diagnosis(findings=[one]), ""))
    assert [seen.rows(table)[0][1] for table in (0, 1)] == ["准确率", "准确率"]
    assert "怎么办：a" in seen.text


def test_severities_can_be_told_on_light_and_dark_ground():
    for colour in _COLOURS.values():
        assert contrast(colour, "#ffffff") >= 3
        assert contrast(colour, "#111111") >= 3


# ---- a probe -------------------------------------------------------------------------------------


def test_a_layer_shows_its_numbers():
    one = layer(
        z_median=0.25, z_max=1.5, var_ratio=2.0, values=2048, grad_norm=0.001234, dead_share=0.125
    )
    seen = Reader(probe_html(latest(one)))
    (heads, row) = seen.rows(0)
    assert row == ["1\nBatchNorm2d, step 50", "0.25", "1.5", "2×", "2048", "0.00123", "–", "12 %"]
    assert len(heads) == len(row)
    assert "Net, 1 normalization layers: 1,234 steps, 25 of them read (every 50)" in seen.text
    assert "cost 1.2 % of the time: 310 ms; 12 ms a step that was read, 0.13 ms any" in seen.text


def test_the_worst_come_first_and_the_rest_is_counted():
    layers = [layer(f"layer{i}", z_median=i / 100, var_ratio=1.0) for i in range(40)]
    layers += [layer("ratio", z_median=0.0, var_ratio=0.01), layer("nan", non_finite=3)]
    seen = Reader(probe_html(latest(*layers)))
    paths = [row[0].partition("\n")[0] for row in seen.rows(0)[1:]]
    assert paths == ["nan", "ratio", *(f"layer{i}" for i in range(39, 31, -1))]
    assert "channels with NaN or infinity: 3" in seen.rows(0)[1][0]
    assert "and 32 more" in seen.text


def test_before_any_step_it_says_so():
    cost = dict.fromkeys(("share", "seconds", "sampled_ms", "step_ms"), 0.0)
    unread = latest(layer(step=None), steps=0, samples=0, overhead=cost, open=True)
    seen = Reader(probe_html(unread))
    assert seen.tables == []
    assert "No step has been read yet." in seen.text
    assert "cost" not in seen.text


def test_what_it_could_not_see_is_named():
    assert "What it could not see" not in Reader(probe_html(latest(layer()))).text
    seen = Reader(probe_html(latest(layer(), unseen=["a.b: its input is a dict, not a tensor"])))
    assert seen.text.endswith("What it could not seea.b: its input is a dict, not a tensor")


# ---- in a browser --------------------------------------------------------------------------------

# JupyterLab's own rules for what an output shows, and its grounds.
LIKE_A_NOTEBOOK = """<!doctype html><meta name="viewport" content="width=device-width">
<style>
body { margin: 0 12px; font: 14px sans-serif; color: rgba(0,0,0,.87); background: #fff }
body.dark { color: rgba(255,255,255,.87); background: #111 }
table { border-collapse: collapse; table-layout: fixed; margin: 0 auto 1em }
td, th { text-align: right; vertical-align: middle; padding: .5em; white-space: normal }
</style>"""


@pytest.fixture(scope="module")
def outputs():
    long = "a_name_that_is_as_long_as_they_get." * 3 + "norm"
    findings = [finding("error", "SL201", long, message=f"{long} was read", fix=long)]
    found = diagnosis(findings=findings, model="Net")
    return diagnosis_html(found, "1 error") + probe_html(latest(layer(long), layer()))


# Of every cell its colour and alignment; and what a column of words gets to stand in.
MEASURE = """() => {
  const styles = (which, name) =>
    [...new Set([...document.querySelectorAll(which)].map((e) => getComputedStyle(e)[name]))]
  const told = [...document.querySelectorAll("td div")].find((e) => /was read/.test(e.textContent))
  return {
    fits: document.documentElement.scrollWidth <= innerWidth,
    colours: styles("td, th, code, summary", "color"),
    align: [...styles("td", "textAlign"), ...styles("td", "verticalAlign")],
    words: told.getBoundingClientRect().width,
  }
}"""


@pytest.mark.browser
def test_it_fits_and_takes_the_notebooks_colours(browser, outputs):
    page = browser.new_page()
    try:
        for scheme, ink in (("", "rgba(0, 0, 0, 0.87)"), ("dark", "rgba(255, 255, 255, 0.87)")):
            page.set_content(f'{LIKE_A_NOTEBOOK}<body class="{scheme}">{outputs}')
            for width in (1280, 360):
                page.set_viewport_size({"width": width, "height": 800})
                seen = page.evaluate(MEASURE)
                assert seen["fits"], (scheme, width)
                assert seen["colours"] == [ink]
                assert seen["align"] == ["left", "top"]
                assert seen["words"] > 200, "never squeezed to a word a line"
    finally:
        page.close()


def test_the_parts_are_whole():
    inside = table(["<i>"], [[cell(code("a.b")), cell(band(0, 200, 50))]], caption="<i>")
    seen = Reader(block(folded("<i>", inside)))
    assert seen.text == "<i><i><i>a.b"
    assert re.search(r"width:100\.0%", band(0, 200, None))
