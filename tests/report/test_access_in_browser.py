"""axe-core finds nothing in the page, in either scheme, on either screen, open or closed."""

from importlib import resources
from itertools import product

import pytest
from story import example_story, live_story
from view import SIZES, View

from spiritlevel import report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
OPEN = """
  for (const details of document.querySelectorAll("details:not(.traced)")) details.open = true;
  document.querySelector(".traced").open = true;
  document.querySelector("#control-play-1").value = 3;
  document.querySelector("#control-play-0-1").click();
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    return {
        "finished": report.write(example_story(), folder / "finished.html"),
        "live": report.write(live_story(), folder / "live.html"),
    }


def violations(view):
    # evaluate() is outside the page's policy, which stays as it is.
    view.evaluate(AXE)
    found = view.evaluate("axe.run().then(({ violations }) => violations)")
    return {one["id"]: [node["html"][:100] for node in one["nodes"]][:3] for one in found}


@pytest.mark.parametrize(("size", "scheme"), list(product(SIZES, ("light", "dark"))))
def test_axe_finds_no_violation(browser, pages, size, scheme):
    view = View(browser, pages["finished"], size).in_scheme(scheme)
    assert violations(view) == {}
    view.evaluate(OPEN)
    view.page.locator("#figure-play .gap", has_text="No run was made").wait_for()
    view.page.locator("#figure-rates table").wait_for()
    view.page.fill("[name=numbers]", "1, two")
    assert violations(view) == {}
    view.context.close()


@pytest.mark.slow
def test_axe_finds_none_while_the_run_goes(browser, pages):
    view = View(browser, pages["live"], "phone")
    assert violations(view) == {}
    view.context.close()


@pytest.mark.slow
def test_axe_would_find_one(browser, pages):
    view = View(browser, pages["finished"], "desktop")
    view.evaluate("document.querySelector('.chart').removeAttribute('aria-label')")
    assert "role-img-alt" in violations(view)
    view.context.close()
