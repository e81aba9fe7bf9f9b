"""`make docs`: no warning, no dead link, nothing fetched, all public names, for any screen."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import spiritlevel as sl

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, by the line of the Makefile."""
    to = tmp_path_factory.mktemp("site")
    (line,) = re.findall(
        r"^\t\$\(BIN\)/python (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.M
    )
    assert {"-W", "-n", "--keep-going"} <= set(line.split())
    command = [sys.executable, *line.replace("build/docs", str(to)).split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return to


class Page(HTMLParser):
    """The addresses and the anchors of a page, and what it fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        address = given.get("href") or given.get("src")
        if address is not None:
            (self.links if tag == "a" else self.fetched).append(address)


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def pages(site: Path) -> list[Path]:
    """Those that were built; finished ones among them are tested where they are made."""
    finished = {p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.html")}
    return [p for p in site.rglob("*.html") if p.relative_to(site) not in finished]


def test_no_link_is_dead(site):
    found = []
    for path in pages(site):
        for link in [*page(path).links, *page(path).fetched]:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            to = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            inside = to.suffix == ".html" and to.is_file() and anchor
            if not to.is_file() or (inside and unquote(anchor) not in page(to).ids):
                found.append((path.name, link))
    assert found == []
    assert len(pages(site)) > 90


def test_nothing_is_fetched_from_elsewhere(site):
    for path in pages(site):
        away = [each for each in page(path).fetched if re.match(r"(https?:)?//", each)]
        assert away == [], path
    styles = "".join(p.read_text(encoding="utf-8") for p in site.rglob("*.css"))
    assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", styles)


def test_the_study_and_its_records_are_in_it(site):
    for name in ("standard/report.html", "standard/records.jsonl", "bench/norms.json"):
        assert (site / name).read_bytes() == (ROOT / "docs" / name).read_bytes()


def entry(text: str, name: str) -> str:
    """What the API says of a name, without marks."""
    found = re.search(rf'<dt [^>]*id="{re.escape(name)}">.*?</dt>\s*<dd>(.*?)</dd>', text, re.S)
    assert found, name
    return re.sub(r"<[^>]+>", "", found[1]).strip()


def test_every_public_name_is_described(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    rooms = ("nn", "kernels", "errors")
    names = [f"spiritlevel.{name}" for name in sl.__all__ if name not in rooms]
    names += [f"spiritlevel.{room}.{name}" for room in rooms for name in getattr(sl, room).__all__]
    assert len(names) > 45
    for name in names:
        assert len(entry(text, name)) > 20, name
    for room in rooms:
        assert f'id="module-spiritlevel.{room}"' in text


def test_docstrings_are_drawn_as_what_they_are(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert "system-message" not in text
    assert "`" not in re.sub(
        r"<[^>]+>", "", text[text.index("<article") : text.index("</article>")]
    )
    assert '<table class="docutils' in text[text.index('id="spiritlevel.nn.norm_layer"') :]
    assert 'href="#spiritlevel.errors.UsageError"' in text


def test_a_file_that_a_page_leads_to_is_shown(site):
    shown = (site / "files/src/spiritlevel/kernels/planes.py.html").read_text(encoding="utf-8")
    assert "stretch of S numbers shares one channel" in shown
    changes = (site / "files/CHANGELOG.md.html").read_text(encoding="utf-8")
    assert "<h1>Changelog</h1>" in changes


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(site, browser, width, scheme):
    names = ["index", "start", "api", "kernels", "batchnorm", "zoo", "fold", "rules/README"]
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in names:
        tab.goto((site / f"{name}.html").as_uri())
        wide = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, name
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 3 * 128
    assert light is (scheme == "light")
    tab.close()
