"""The pages of a probe and of a diagnosis in a real Chromium, with every request refused."""

from importlib import resources
from itertools import product

import pytest
from doctor_records import NORMS, example_diagnosis, example_record
from story import HOSTILE
from view import SIZES, View

from spiritlevel.report import diagnosis_page, probe_page

pytestmark = pytest.mark.browser

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
LOOKS = list(product(SIZES, ("light", "dark")))
OVERFLOW = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    return {
        "probe": probe_page.write(example_record(), folder / "probe.html"),
        "diagnosis": diagnosis_page.write(example_diagnosis(), folder / "diagnosis.html"),
    }


@pytest.fixture
def opened(browser, pages):
    """A way to open one of them, and no fault and no request once the test is over."""
    views = []

    def open_page(which, size="desktop"):
        ready = "html[data-drawn=yes]" if which == "probe" else "footer"
        views.append(View(browser, pages[which], size, ready=ready))
        return views[-1]

    yield open_page
    for view in views:
        assert view.faults == []
        assert [one for one in view.requests if not one.startswith(("file:", "data:"))] == []
        view.context.close()


def shown(view):
    return view.evaluate(
        """[...document.querySelectorAll("figure.map")].filter((map) => !map.hidden).map(
             (map) => [map.id, map.querySelectorAll(".heatmaplayer image").length])"""
    )


def layer(view):
    return view.evaluate("document.getElementById('layer').selectedOptions[0].textContent")


def test_the_reader_chooses_what_is_read_and_a_layer(opened):
    view = opened("probe")
    assert shown(view) == [["figure-z_max", 1]]
    assert layer(view) == NORMS[0]
    view.page.select_option("#layer", NORMS[4])
    view.page.select_option("#metric", "grad_norm")
    view.wait("document.querySelector('#figure-grad_norm .heatmaplayer image') !== null")
    assert [name for name, _ in shown(view)] == ["figure-grad_norm"]
    assert layer(view) == NORMS[4]
    label = view.page.get_attribute("#trace-chart", "aria-label")
    assert label == f"Gradient norm, {NORMS[4]}: from 0.4 at step 0 to 0.4 at step 150."
    # A click on a row chooses its layer: the first is the stem's, the last is named in our despite.
    chart = view.page.locator("#figure-grad_norm .chart")
    box = view.page.locator("#figure-grad_norm .nsewdrag").first.bounding_box()
    frame = chart.bounding_box()
    at = {"x": box["x"] - frame["x"] + box["width"] / 2, "y": box["y"] - frame["y"] + 6}
    chart.click(position=at)
    view.wait("document.getElementById('layer').selectedOptions[0].textContent === 'stem'")
    chart.hover(position={**at, "y": box["y"] - frame["y"] + box["height"] - 6})
    # The label of the row before stays until Plotly has drawn this one's.
    labels = view.page.locator("#figure-grad_norm .hoverlayer text")
    labels.filter(has_text=HOSTILE).first.wait_for()


def test_the_diagnosis_fits_a_phone(opened):
    view = opened("diagnosis", "phone")
    assert view.evaluate(OVERFLOW) <= 0
    widths = view.evaluate(
        """[...document.querySelectorAll(".by-layer .bar i")].map(
             (bar) => bar.clientWidth / bar.parentElement.clientWidth)"""
    )
    assert widths[:2] == pytest.approx([0.55, 0.5], abs=0.01)
    assert view.page.locator(".message").first.inner_text() == HOSTILE


@pytest.mark.slow
def test_the_table_of_a_map_holds_its_numbers(opened):
    view = opened("probe")
    view.opens("#data-z_max")
    rows = view.page.locator("#data-z_max tbody tr")
    assert rows.count() == len(NORMS)
    assert rows.first.locator("td").all_inner_texts()[0] == "–"


@pytest.mark.slow
def test_a_map_drawn_while_hidden_fits_when_it_is_shown_again(opened):
    view = opened("probe")
    view.page.select_option("#metric", "grad_norm")
    view.wait("document.querySelector('#figure-grad_norm .heatmaplayer image') !== null")
    view.page.set_viewport_size({"width": 700, "height": 900})
    view.in_scheme("dark").page.select_option("#metric", "z_max")
    view.wait(
        """(() => {
          const right = (part) =>
            document.querySelector(`#figure-z_max ${part}`).getBoundingClientRect().right;
          return right("svg") <= right(".panel") + 1;
        })()"""
    )
    assert view.evaluate(OVERFLOW) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["probe", "diagnosis"])
@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_axe_finds_no_violation_and_nothing_scrolls_sideways(opened, which, size, scheme):
    view = opened(which, size).in_scheme(scheme)
    assert view.evaluate(OVERFLOW) <= 0
    for _ in ("closed", "open"):
        # evaluate() is outside the page's policy, which stays as it is.
        view.evaluate(AXE)
        found = view.evaluate("axe.run().then(({ violations }) => violations)")
        assert {one["id"]: [n["html"][:100] for n in one["nodes"]][:3] for one in found} == {}
        view.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


@pytest.mark.slow
@pytest.mark.parametrize("values", [[1.0], [0.0], [1.0, None, 2.0]])
def test_the_smallest_records_are_drawn(browser, tmp_path, values):
    record = {
        "steps": list(range(len(values))),
        "layers": [{"path": "", "kind": "norm", "type": "BatchNorm2d"}],
        "metrics": {"z_max": [values]},
    }
    view = View(browser, probe_page.write(record, tmp_path / "probe.html"), "phone")
    assert view.faults == []
    assert [name for name, _ in shown(view)] == ["figure-z_max"]
    view.context.close()


@pytest.mark.slow
def test_without_what_inflates_it_the_page_says_so(browser, pages):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(pages["probe"].as_uri())
    page.locator("#no-charts", has_text="could not be drawn").wait_for()
    assert page.locator("#counters tbody tr").count() == len(NORMS)
    context.close()
