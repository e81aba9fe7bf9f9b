"""Every link of README and docs leads to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("bench/**/*.md")])
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Without code, in which brackets mean something else."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`code`", text)


@cache
def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        more = next((n for n in range(1, 99) if f"{name}-{n}" not in found), 0)
        found.add(f"{name}-{more}" if name in found else name)
    return found


def dead(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        to = (page.parent / name).resolve() if name else page
        there = to.exists() and to.is_relative_to(ROOT)
        if not there or (anchor and (to.suffix != ".md" or anchor not in anchors(to))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert dead(page) == []


def test_a_dead_link_and_a_dead_anchor_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# One `thing`, and: another\n```\n# not a heading\n```\n")
    links = ["there.md", "gone.md", "there.md#one-thing-and-another", "there.md#not-a-heading"]
    page = tmp_path / "page.md"
    page.write_text("".join(f"[x]({link})\n" for link in [*links, "https://example.org"]))
    assert dead(page) == ["gone.md", "there.md#not-a-heading"]


def test_every_page_is_in_the_index_of_the_site():
    index = ROOT / "docs/index.md"
    listed = {
        (index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(index))
    }
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    rules = {page for page in pages if page.parent.name == "rules" and page.stem != "README"}
    assert pages - rules - {index} <= listed
