"""A page that is read anew while its run goes on. In a real Chromium."""

import pytest
from story import example_story, live_story
from view import View

from spiritlevel import report

pytestmark = pytest.mark.browser


@pytest.fixture
def path(tmp_path):
    return report.write(live_story(), tmp_path / "report.html")


@pytest.fixture
def view(browser, path):
    found = View(browser, path, "desktop", clock=True)
    yield found
    assert found.faults == []
    found.context.close()


def anew(page):
    """Let an hour pass, and wait for the page that comes after it."""
    page.evaluate("document.documentElement.dataset.old = 'yes'")
    page.clock.fast_forward("01:00:05")
    page.wait_for_selector("html[data-drawn=yes]:not([data-old])")


def read(view):
    """Move about the page as a reader would."""
    view.page.focus("#control-play-1")
    view.page.keyboard.press("ArrowLeft")
    view.page.check("#control-play-0-1", force=True)
    view.opens("#data-play")
    view.opens("#rule-faster")
    view.page.fill("[name=numbers]", "2, 4")
    view.page.focus("#control-play-1")
    view.evaluate("scrollTo({ top: document.querySelector('#figure-play').offsetTop + 40 })")


def seen(view):
    return view.evaluate(
        """({
             slider: document.querySelector("#control-play-1").value,
             told: document.querySelector("#figure-play output").textContent,
             choice: document.querySelector("#control-play-0-1").checked,
             title: document.querySelector("#figure-play .panel-title").textContent,
             rows: document.querySelectorAll("#figure-play tbody tr").length,
             rule: document.querySelector("#rule-faster").open,
             numbers: document.querySelector("[name=numbers]").value,
             mean: document.querySelector("[data-result=mean]").textContent,
             place: Math.round(document.querySelector("#figure-play").getBoundingClientRect().top),
             focus: document.activeElement.id,
           })"""
    )


def same(now, before):
    """Alike, to the pixel that rounding may take."""
    return abs(now.pop("place") - before["place"]) <= 1 and now.items() <= before.items()


def settles(view, before):
    """Whether it comes to be alike: on a slow machine the charts arrive one by one."""
    for _ in range(50):
        if same(seen(view), before):
            return True
        view.page.wait_for_timeout(100)
    return False


@pytest.mark.slow
def test_the_reader_stays_where_they_were(view):
    read(view)
    before = seen(view)
    assert before["title"] == "20 layers of residual"
    assert before["place"] == -40
    assert before["rows"] > 20
    anew(view.page)
    assert settles(view, before)
    for _ in range(3):
        anew(view.page)
    # It does not creep, either.
    assert settles(view, before)


def test_the_place_is_kept_though_the_page_grows_above_it(view, path):
    read(view)
    before = seen(view)
    story = live_story()
    story["claims"][0]["sentences"] *= 20
    report.write(story, path)
    anew(view.page)
    assert settles(view, before)


def test_a_page_that_is_written_no_more_says_so(view, path):
    stale = view.page.locator("#stale")
    assert not stale.is_visible()
    story = live_story()
    story["live"]["written"] = "2020-01-01T00:00:00+00:00"
    report.write(story, path)
    anew(view.page)
    stale.wait_for(state="visible")
    assert "spiritlevel study --resume" in stale.inner_text()


@pytest.mark.slow
def test_where_there_is_no_history_the_address_keeps_it(browser, path):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script("History.prototype.replaceState = () => { throw new Error('refused'); }")
    page.clock.install()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    page.focus("#control-play-1")
    page.keyboard.press("ArrowLeft")
    anew(page)
    assert page.input_value("#control-play-1") == "1"
    assert page.locator("#figure-play .panel-title").first.inner_text() == "20 layers of VGG"
    context.close()


def test_when_the_run_has_ended_the_page_stays_still(view, path):
    read(view)
    before = seen(view)
    report.write(example_story(), path)
    anew(view.page)
    assert settles(view, before)
    assert view.page.locator("#live").count() == 0
    # What was kept was kept once: who now reads the page anew begins anew.
    view.page.reload()
    assert view.page.input_value("#control-play-1") == "2"


def test_a_pause_is_a_pause(view):
    view.page.click("#pause")
    assert view.page.get_attribute("#pause", "aria-pressed") == "true"
    view.evaluate("document.documentElement.dataset.old = 'yes'")
    view.page.clock.fast_forward("05:00:00")
    assert view.page.locator("html[data-old]").count() == 1
    view.page.click("#pause")
    anew(view.page)


def test_a_page_without_any_result_yet_is_whole(browser, tmp_path):
    story = live_story()
    for claim in story["claims"]:
        claim |= {"figures": [], "parts": [], "networks": [], "status": "inconclusive"}
        claim["headline"] |= {"value": "–", "interval": None, "n": 0, "records": []}
    for example in story["examples"]:
        example |= {"figures": [], "table": None}
    story["records"] = []
    view = View(browser, report.write(story, tmp_path / "report.html"), "phone")
    assert view.page.locator(".verdict-inconclusive").count() == 10
    assert view.faults == []
    view.context.close()
