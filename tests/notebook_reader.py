"""What a notebook's reader sees of markup: its tables, cell by cell, and all that it says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"br", "wbr", "img", "input"}
PLAIN = {
    *("b", "caption", "code", "details", "div", "progress", "span", "summary"),
    *("table", "tbody", "td", "th", "thead", "tr", "wbr"),
}


class Reader(HTMLParser):
    """Raises where a tag is not closed in its turn, or is none that only shows."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(markup)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PLAIN, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name in ("style", "scope", "aria-hidden", "aria-label", "value", "max"), name
            assert not re.search(r"url\(|expression|<|@", value or ""), value
        if tag == "div" and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += "\n"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)
        # A table within a cell is one of its own, after the one that it stands in.
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.said)

    def rows(self, table: int = 0) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.tables[table]]
