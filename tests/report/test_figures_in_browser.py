"""What the reader can do with a figure: controls, data, records. In a real Chromium."""

import csv
import io
from itertools import product

import pytest
from story import HOSTILE, NETWORKS, example_story
from view import SIZES, View

from spiritlevel import report

pytestmark = pytest.mark.browser

PLAY = "#figure-play"
SLIDER = "#control-play-1"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return report.write(example_story(), tmp_path_factory.mktemp("figures") / "report.html")


@pytest.fixture
def view(browser, path):
    found = View(browser, path, "desktop")
    yield found
    assert found.faults == []
    found.context.close()


def chart(view, panel=0, figure=PLAY):
    """What Plotly has drawn: data and layout, as it was given them."""
    return view.evaluate(
        """([figure, panel]) => {
             const { data, layout } = document.querySelectorAll(`${figure} .chart`)[panel];
             return JSON.parse(JSON.stringify({ data, layout }));
           }""",
        [figure, panel],
    )


def settled(view):
    """Controls act before the next picture."""
    view.evaluate("new Promise((next) => requestAnimationFrame(() => setTimeout(next)))")


def press(view, *keys):
    for key in keys:
        view.page.keyboard.press(key)
    settled(view)


def text(view, selector):
    return view.page.locator(f"{PLAY} {selector}").first.inner_text()


def test_plotly_finds_nothing_wrong_with_any_chart(view):
    found = view.evaluate(
        """[...document.querySelectorAll(".chart")].flatMap(({ data, layout }) =>
             (Plotly.validate(data, layout) ?? [])
               .filter(({ code }) => code !== "unused" && code !== "dynamic")
               .map(({ msg }) => msg))"""
    )
    assert found == []


def test_a_slider_moved_by_the_keyboard_changes_the_data_and_not_the_axes(view):
    before = chart(view)
    assert len(before["data"][0]["x"]) == 40
    view.page.focus(SLIDER)
    press(view, "ArrowLeft")
    after = chart(view)
    assert len(after["data"][0]["x"]) == 20
    assert after["data"][0]["y"][:2] == [0.9, 0.81]
    for axis in ("xaxis", "yaxis"):
        assert after["layout"][axis]["range"] == before["layout"][axis]["range"]
    assert view.page.get_attribute(SLIDER, "aria-valuetext") == "20"
    assert text(view, "output") == "20"
    assert text(view, ".panel-title") == "20 layers of VGG"
    name = view.page.locator(f"{PLAY} .chart").first.get_attribute("aria-label")
    assert name.startswith("By network and depth. 20 layers of VGG, at network VGG, depth 20.")


def test_a_choice_is_made_by_the_keyboard_and_the_map_follows(view):
    assert len(chart(view, 1)["data"][0]["z"]) == 6
    view.page.focus("#control-play-0-0")
    press(view, "ArrowRight", "ArrowRight")
    assert len(chart(view, 1)["data"][0]["z"]) == 8
    assert text(view, ".panel-title") == f"40 layers of {HOSTILE}"
    assert chart(view, 1)["layout"]["yaxis"]["ticktext"][7] == "layer 7"


def test_the_legend_follows(view):
    shown = f"{PLAY} .legend li:visible"
    assert view.page.locator(shown).all_inner_texts() == ["no normalization", "batch, rate 0.1"]
    view.page.focus(SLIDER)
    press(view, "Home")
    assert view.page.locator(shown).all_inner_texts() == ["no normalization"]


def test_what_was_not_run_is_said_and_leaves_the_axes(view):
    before = chart(view)["layout"]["xaxis"]["range"]
    view.page.focus(SLIDER)
    press(view, "End")
    view.page.focus("#control-play-0-0")
    press(view, "ArrowRight")
    assert text(view, ".gap").startswith(
        "No run was made at this setting (network residual, depth 80)"
    )
    assert chart(view)["data"] == chart(view, 1)["data"] == []
    assert chart(view)["layout"]["xaxis"]["range"] == before
    view.opens(f"{PLAY} details.data")
    assert "No run was made" in text(view, ".tables")
    view.page.focus(SLIDER)
    press(view, "ArrowLeft")
    assert text(view, ".gap") == ""
    assert len(chart(view)["data"][0]["x"]) == 40


def rows(view, table=0):
    return view.evaluate(
        """([figure, table]) =>
             [...document.querySelectorAll(`${figure} .tables table`)[table].rows]
               .map((row) => [...row.cells].map((cell) => cell.textContent))""",
        [PLAY, table],
    )


def test_a_table_is_built_when_it_is_opened_and_follows_the_controls(view):
    assert view.page.locator(f"{PLAY} table").count() == 0
    view.opens(f"{PLAY} details.data")
    view.page.locator(f"{PLAY} table").first.wait_for()
    assert rows(view)[:2] == [["layer", "no normalization", "batch, rate 0.1"], ["1", "0.9", "1"]]
    assert len(rows(view)) == 41
    assert rows(view, 1)[1][:3] == ["layer 0", "1", "1"]
    view.page.focus(SLIDER)
    press(view, "ArrowLeft")
    assert len(rows(view)) == 21
    view.page.focus("#control-play-0-0")
    press(view, "ArrowRight")
    assert rows(view)[1] == ["1", "0.875", "1.1 (0.9 to 1.3)"]
    caption = view.page.locator(f"{PLAY} caption").first.inner_text()
    assert caption == "20 layers of residual: deviation by layer"
    scopes = view.evaluate(
        "[...document.querySelectorAll('#figure-play th')].map((th) => th.scope)"
    )
    assert set(scopes) == {"col", "row"}


def test_several_values_at_one_place_stand_in_one_cell_and_names_are_told_apart(view):
    view.opens("#data-rates")
    view.page.locator("#figure-rates table").wait_for()
    cells = view.page.locator("#figure-rates tbody tr").first.locator("th, td").all_inner_texts()
    head = view.page.locator("#figure-rates thead th").all_inner_texts()
    assert head[:2] == ["learning rate", "no normalization"]
    assert len(cells) == len(head) == 13
    assert cells[0] == "0.01"


def test_the_data_are_saved_as_they_are_shown(view):
    view.opens(f"{PLAY} details.data")
    with view.page.expect_download() as waiting:
        view.page.locator(f"{PLAY} details.data button").click()
    assert waiting.value.suggested_filename == "play-network-VGG-depth-40.csv"
    with open(waiting.value.path(), encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(io.StringIO(file.read())))
    assert lines[0] == ["panel", "series", "x", "y", "low", "high"]
    assert lines[1] == ["40 layers of VGG", "no normalization", "1", "0.9", "", ""]
    assert len(lines) == 1 + 2 * 40 + 6 * 51


def test_a_spreadsheet_is_given_no_formula(browser, tmp_path):
    story = example_story()
    story["examples"][2]["figures"][0]["panels"][0]["rows"][0] = '=HYPERLINK("x")'
    view = View(browser, report.write(story, tmp_path / "report.html"), "desktop")
    view.opens("#data-maps")
    with view.page.expect_download() as waiting:
        view.page.locator("#data-maps button").click()
    assert """"'=HYPERLINK(""x"")",0,""" in waiting.value.path().read_text(encoding="utf-8-sig")
    view.context.close()


def test_a_line_a_band_and_bars_are_drawn_as_they_should(view):
    (first, *_) = chart(view)["data"]
    assert first["mode"] == "lines"
    band, line = chart(view, figure="#figure-percentiles")["data"]
    assert band["fill"] == "toself"
    assert len(band["x"]) == 2 * len(line["x"]) + 1
    assert band["x"][0] == band["x"][-2]
    bars, _ = chart(view, figure="#figure-ghost")["data"]
    assert bars["error_y"]["array"][0] == pytest.approx(0.010)
    assert bars["mode"] == "markers"
    map_ = chart(view, figure="#figure-maps")["data"][0]
    assert map_["z"][0][0] == 0
    assert map_["z"][5][10] is None


def test_a_band_stops_where_its_lower_end_has_no_logarithm(browser, tmp_path):
    story = example_story()
    panel = story["claims"][0]["figures"][0]["panels"][0]
    panel["y"] |= {"log": True, "range": None}
    (drawn,) = panel["series"]
    for name, values in (("y", [1, 1, 1, 1]), ("low", [0.5, 0.5, -1, 0.5]), ("high", [2] * 4)):
        drawn[name] = values
    drawn["x"] = [0, 1, 2, 3]
    view = View(browser, report.write(story, tmp_path / "report.html"), "desktop")
    band, _ = chart(view, figure="#figure-percentiles")["data"]
    assert band["x"] == [0, 1, 1, 0, None, 3, 3, None]
    assert band["y"] == [0.5, 0.5, 2, 2, None, 0.5, 2, None]
    view.context.close()


def test_a_number_leads_to_its_records(view):
    traced = view.page.locator("#traced-stabilises-network-0")
    view.opens("#traced-stabilises-network-0")
    keys = traced.locator("a").all_inner_texts()
    assert keys == [f"sweep/lr=0.1,norm=batch,seed={n}" for n in (0, 1, 2, 7)]
    traced.locator("a").last.click()
    record = view.page.locator("#record-7")
    assert record.is_visible()
    assert record.bounding_box()["y"] < SIZES["desktop"][1]
    view.opens("#traced-rates")
    assert not view.page.locator("#traced-stabilises-network-0 a").first.is_visible()
    view.page.locator("#traced-rates a").nth(3).focus()
    view.page.keyboard.press("Escape")
    assert not view.page.locator("#traced-rates a").first.is_visible()
    assert view.evaluate("document.activeElement.parentElement.id") == "traced-rates"


def test_a_record_that_the_address_names_is_shown(browser, path):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{path.as_uri()}#record-8")
    assert page.locator("#record-8").inner_text().startswith(HOSTILE)
    assert page.locator("#record-8").is_visible()
    context.close()


def test_without_what_inflates_plotly_the_page_says_so_and_keeps_its_tables(browser, path):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=no]")
    assert page.locator("#no-charts").is_visible()
    page.locator(f"{PLAY} details.data summary").click()
    page.locator(f"{PLAY} table").first.wait_for()
    page.focus(SLIDER)
    page.keyboard.press("ArrowLeft")
    page.locator(f"{PLAY} caption", has_text="20 layers of VGG").wait_for()
    context.close()


@pytest.mark.parametrize("size", SIZES)
def test_paper_shows_the_setting_and_cuts_no_chart(browser, path, size):
    view = View(browser, path, size).in_scheme("dark", media="print")
    assert not view.page.locator(f"{PLAY} .controls").is_visible()
    assert not view.page.locator(f"{PLAY} .below").is_visible()
    assert text(view, ".settings") == f"network {NETWORKS[0]}, depth 40"
    over = view.evaluate(
        """[...document.querySelectorAll("figure .main-svg")].map((svg) => {
             const chart = svg.closest(".chart").getBoundingClientRect();
             return svg.getBoundingClientRect().right - chart.right;
           })"""
    )
    assert max(over) <= 1
    # Paper of another width than the screen scales the drawing: it has a view box.
    view.page.set_viewport_size({"width": 700, "height": 900})
    view.wait(
        """[...document.querySelectorAll("figure .main-svg")].every((svg) => {
             const width = Number(svg.getAttribute("width"));
             return 0 < width && width <= 700 && svg.viewBox.baseVal.width === width;
           })"""
    )
    assert view.page.pdf(format="A4")[:4] == b"%PDF"
    view.context.close()


@pytest.mark.parametrize(("size", "scheme"), list(product(SIZES, ("light", "dark"))))
def test_controls_are_large_enough_for_a_finger(browser, path, size, scheme):
    view = View(browser, path, size).in_scheme(scheme)
    small = view.evaluate(
        """[...document.querySelectorAll(".controls input, button, summary")]
             .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 24)
             .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert small == []
    view.context.close()
