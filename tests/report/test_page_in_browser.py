"""The page in a real Chromium, with every network request refused and counted."""

from itertools import product

import pytest
from story import HOSTILE, example_story
from view import SIZES, View

from spiritlevel import report
from spiritlevel.catalogue import speaking

pytestmark = pytest.mark.browser

VIEWS = list(product(SIZES, ("light", "dark")))


@pytest.fixture(scope="module")
def views(browser, tmp_path_factory):
    path = report.write(example_story(), tmp_path_factory.mktemp("page") / "report.html")
    opened = {size: View(browser, path, size) for size in SIZES}
    yield opened
    for view in opened.values():
        assert view.faults == []
        view.context.close()


@pytest.fixture(params=VIEWS, ids="-".join)
def look(views, request):
    """The page on each screen in each colour scheme."""
    size, scheme = request.param
    return views[size].in_scheme(scheme)


@pytest.fixture
def view(views):
    """The page on a desk, with the widget as at first."""
    views["desktop"].page.click("[data-change=reset]")
    return views["desktop"].in_scheme("light")


def test_it_opens_without_a_fault_or_a_request(look):
    assert look.faults == []
    assert [url for url in look.requests if not url.startswith(("file:", "data:"))] == []


def test_every_chart_is_drawn_and_keeps_inside_its_panel(look):
    charts = look.evaluate(
        """[...document.querySelectorAll(".chart")].map((chart) => {
             const [svg, panel] = [chart.querySelector("svg"), chart.parentElement];
             return {
               label: chart.getAttribute("aria-label"),
               traces: chart.querySelectorAll(".scatterlayer .trace, .heatmaplayer image").length,
               width: svg.getBoundingClientRect().width,
               over: svg.getBoundingClientRect().right - panel.getBoundingClientRect().right,
             };
           })"""
    )
    # One for each panel of the story, and the widget's.
    assert len(charts) == 17
    for chart in charts:
        assert chart["traces"] > 0, chart
        assert chart["width"] > 200, chart
        assert chart["over"] <= 1, chart


def test_nothing_scrolls_sideways(look):
    overflow = look.evaluate(
        "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    )
    assert overflow <= 0


CONTRASTS = """(selectors) => {
  const light = (css) => {
    const parts = css.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const value = part / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : color;
  };
  return selectors.map((selector) => {
    const node = document.querySelector(selector);
    const pair = [light(getComputedStyle(node).color), light(ground(node))];
    return [selector, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
  });
}"""
TEXTS = [
    "#answer p",
    ".question",
    "small",
    "figcaption",
    ".axis-label",
    "thead th",
    ".answers a",
    "summary",
    ".verdict-supported",
    ".verdict-partly",
    ".verdict-not-supported",
    ".verdict-inconclusive",
    ".warning",
    ".widget p",
    ".widget dt",
    ".widget .caption",
    ".widget label",
    ".widget button",
    ".summary",
    ".control label",
    ".control legend",
    ".control output",
    ".choices :checked + span",
    ".choices :not(:checked) + span",
    ".gap",
    ".networks li",
    ".contents a",
    ".traced summary",
    ".problem",
    ".tag",
    "footer p",
]


def test_text_has_contrast(look):
    measured = look.evaluate(CONTRASTS, TEXTS)
    assert {selector: ratio for selector, ratio in measured if ratio < 4.5} == {}


def test_hostile_text_is_shown_and_runs_nothing(look):
    assert look.page.locator(".tag", has_text=HOSTILE).inner_text() == HOSTILE
    data = look.evaluate('document.querySelectorAll("script[type]").length')
    # Beside the data our own, and Plotly's, which ours unpacks.
    assert look.evaluate("document.scripts.length") == data + 2


def test_hovering_shows_a_hostile_layers_name_as_text(view):
    chart = view.page.locator("#figure-maps .chart").first
    chart.scroll_into_view_if_needed()
    chart.hover(position={"x": 300, "y": 80})
    label = view.page.locator("#figure-maps .hoverlayer text").first
    label.wait_for()
    assert HOSTILE in label.text_content()


def test_charts_follow_the_colour_scheme_and_paper_is_light(view):
    stroke = "document.querySelector('#figure-percentiles .js-line').style.stroke"
    light = view.evaluate(stroke)
    assert view.in_scheme("dark").evaluate(stroke) != light
    assert view.in_scheme("dark", media="print").evaluate(stroke) == light
    view.in_scheme("light", media="screen")


def test_it_begins_with_the_articles_numbers(view):
    assert view.result("mean") == "3"
    assert view.result("variance") == "2.6667"
    assert view.result("deviation") == "1.633"
    assert view.rows() == [
        ["1", "−2", "4", "−1.2247", "−1.2247"],
        ["3", "0", "0", "0", "0"],
        ["5", "2", "4", "1.2247", "1.2247"],
    ]
    assert view.page.locator("#bell .point").count() == 3


def test_own_numbers_are_normalized_as_they_are_typed(view):
    view.page.fill("[name=numbers]", "2 4 4 4 5 5 7 9")
    assert [view.result(name) for name in ("mean", "variance", "deviation")] == ["5", "4", "2"]
    view.page.fill("[name=eps]", "0")
    view.page.fill("[name=gamma]", "2")
    view.page.fill("[name=beta]", "10")
    assert [row[4] for row in view.rows()] == ["7", "9", "9", "9", "10", "10", "12", "14"]
    assert view.result("after") == "1"
    assert view.page.locator("#bell .point").count() == 8


def test_adding_and_scaling_leave_the_normalized_values_alone(view):
    normalized = [row[3] for row in view.rows()]
    for change in ("add", "times", "add"):
        view.page.click(f"[data-change={change}]")
        assert [row[3] for row in view.rows()] == normalized
    assert view.page.input_value("[name=numbers]") == "51050, 53050, 55050"
    view.page.click("[data-change=reset]")
    assert view.page.input_value("[name=numbers]") == "1, 3, 5"


@pytest.mark.parametrize(
    ("field", "typed", "message"),
    [
        ("numbers", "1, two, 3", "“two” is not a number."),
        ("numbers", "1, 0x10", "“0x10” is not a number."),
        ("numbers", "<img src=x onerror=alert(1)>", "“<img” is not a number."),
        ("numbers", " , ", "Type at least one number"),
        ("numbers", "1 " * 41, "Those are 41 numbers; this box takes up to 40."),
        ("numbers", "1e200 -1e200", "These numbers are too large"),
        ("numbers", "1e999", "“1e999” is not a number."),
        ("eps", "-1", "ε must be 0 or more; it is -1."),
        ("gamma", "", "γ must be a number; it is “”."),
    ],
)
def test_bad_input_is_explained_and_marked(view, field, typed, message):
    view.page.fill(f"[name={field}]", typed)
    assert view.page.locator("#widget-problem").inner_text().startswith(message)
    # What was computed before would look like what comes of this.
    assert [view.result(name) for name in ("mean", "variance", "deviation", "after")] == ["–"] * 4
    assert view.rows() == []
    assert view.page.locator("#bell .point").count() == 0
    assert view.page.get_attribute(f"[name={field}]", "aria-invalid") == "true"
    view.page.click("[data-change=reset]")
    assert view.page.locator("#widget-problem").inner_text() == ""
    assert view.page.locator("[aria-invalid]").count() == 0
    assert view.result("mean") == "3"


def test_equal_values_need_epsilon(view):
    view.page.fill("[name=numbers]", "7 7 7")
    assert [row[3] for row in view.rows()] == ["0", "0", "0"]
    assert view.result("note").startswith("All values are equal")
    view.page.fill("[name=eps]", "0")
    assert "nothing to divide by" in view.page.locator("#widget-problem").inner_text()


def test_a_mean_far_above_the_deviation_loses_nothing(view):
    view.page.fill("[name=numbers]", "1e9 1000000002 1000000004")
    assert view.result("variance") == "2.6667"


def test_the_command_can_be_copied(view):
    view.page.click("#copy")
    view.page.locator("#copy", has_text="Copied").wait_for()
    view.page.fill("[name=numbers]", "")
    view.page.focus("[name=numbers]")
    view.page.keyboard.press("Control+V")
    assert view.page.input_value("[name=numbers]") == "spiritlevel study --preset quick --seed 10"


def test_the_keyboard_reaches_the_answer_first(view):
    view.page.reload()
    view.page.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.getAttribute('href')") == "#answer"
    box = view.page.locator(".skip").bounding_box()
    assert box["x"] >= 0


def test_in_chinese_what_the_scripts_write_is_chinese_too(browser, tmp_path):
    with speaking("zh"):
        path = report.write(example_story(), tmp_path / "page.html")
    view = View(browser, path, "phone")
    view.page.fill("#widget-numbers", "1，3、5；7")  # as Chinese keyboards type it
    assert view.page.inner_text("[data-result=mean]") == "4"
    view.page.fill("#widget-numbers", "一")
    assert view.page.inner_text("#widget-problem").startswith("“一”不是一个数")
    hovered = view.evaluate(
        """[...document.querySelectorAll(".js-plotly-plot")].flatMap(({ data }) =>
             data.flatMap(({ hovertemplate }) => hovertemplate?.split("<br>").slice(1) ?? []))"""
    )
    assert len(hovered) > 17
    assert [text for text in hovered if " at " in text or " to " in text] == []
    font = "getComputedStyle(document.querySelector('{}')).fontFamily"
    for place in ("body", ".chart svg text"):
        assert "Noto Sans CJK SC" in view.evaluate(font.format(place))
    assert view.evaluate("document.documentElement.scrollWidth") == 360
    assert view.faults == []
    view.context.close()
