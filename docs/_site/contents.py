"""The tree of pages, read from the lists of docs/index.md, which is a page like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SECTION = re.compile(r"^## (.+)$", re.M)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^):#]+)\.md\)", re.M)


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of docs/index.md: each caption, and its pages as (title, name without `.md`)."""
    parts = SECTION.split(text)[1:]
    found = [
        (name, ENTRY.findall(body)) for name, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [
        (name, [(title, page) for title, page in pages if not page.startswith("..")])
        for name, pages in found
        if pages
    ]


def tree(entries: list[str], caption: str = "") -> str:
    head = f":caption: {caption}\n" if caption else ""
    return "\n\n```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(entries) + "\n```\n"


def with_trees(app: Any, name: str, source: list[str]) -> None:
    if name == "index":
        for caption, pages in sections(source[0]):
            source[0] += tree([f"{title} <{page}>" for title, page in pages], caption)
    if name == "rules/README":
        rules = sorted(path.stem for path in (Path(app.srcdir) / "rules").glob("SL*.md"))
        source[0] += tree(rules)


def setup(app: Any) -> None:
    app.connect("source-read", with_trees)
