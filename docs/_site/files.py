"""Links to what is no page: in the site they lead to a copy, or to a page that shows it.

On GitHub such a link opens the file. So it does here: records, pictures and finished pages below
docs/ keep their places; code and text from anywhere in the repository gets a page of its own.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any
from urllib.parse import quote

from docutils import nodes
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
KEPT = (".json", ".jsonl", ".html", ".svg", ".png")
SHOWN = "files/"
"""Where the site has pages that show a file or a folder."""


def home(path: Path) -> str | None:
    """Where a file or folder of the repository is in the site, as an address from its root."""
    if not path.is_relative_to(REPOSITORY) or not path.exists():
        return None
    if path.is_dir() and (path / "README.md").exists():
        path = path / "README.md"
    if path == REPOSITORY / "README.md":
        return "index.html"
    if path.is_relative_to(DOCS):
        within = path.relative_to(DOCS).as_posix()
        if path.suffix == ".md":
            return within.removesuffix("md") + "html"
        if path.suffix in KEPT:
            return within
    return f"{SHOWN}{quote(path.relative_to(REPOSITORY).as_posix())}.html"


def address(path: Path, anchor: str, page: str, shown: set[Path]) -> str | None:
    """From a page of the site to a file; one that has to be shown for that is noted in `shown`."""
    target = home(path)
    if target is None:
        return None
    if target.startswith(SHOWN):
        shown.add(path / "README.md" if (path / "README.md").exists() else path)
    return relpath(target, dirname(page) or ".") + (f"#{anchor}" if anchor else "")


class Links(SphinxTransform):
    """Takes over what the parser found to be no page, before it is copied elsewhere."""

    default_priority = 300

    def apply(self, **kwargs: Any) -> None:
        page, here = self.env.docname, Path(self.env.doc2path(self.env.docname)).parent
        wanted = [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]
        for node in wanted:
            name, _, anchor = node["reftarget"].partition("#")
            if node.get("reftype") == "myst" and name and name not in self.env.found_docs:
                found = here / name
                if (
                    node.get("refdomain") == "doc"
                ):  # what the parser took for a page it does not have
                    found, anchor = Path(f"{name}.md"), node.get("reftargetid") or ""
                to = address(found.resolve(), anchor, page, shown(self.env))
                if to is not None:
                    node.replace_self(
                        nodes.reference("", "", *node.children, internal=True, refuri=to)
                    )


def shown(env: Any) -> set[Path]:
    if not hasattr(env, "spiritlevel_shown"):
        env.spiritlevel_shown = set()
    found: set[Path] = env.spiritlevel_shown
    return found


def body(path: Path, page: str, shown: set[Path]) -> str:
    if path.suffix == ".md":
        return rendered(path, page, shown)
    named = f"<h1><code>{escape(path.relative_to(REPOSITORY).as_posix())}</code></h1>"
    if path.is_dir():
        return named + listing(path, page, shown)
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return named + highlight(path.read_text(encoding="utf-8"), lexer, HtmlFormatter())


def listing(path: Path, page: str, shown: set[Path]) -> str:
    lines = []
    for each in sorted(path.iterdir()):
        if each.is_file() and each.suffix in (".py", ".toml", ".md", ".sh", ".json"):
            to = address(each, "", page, shown)
            lines.append(f'<li><a href="{to}"><code>{escape(each.name)}</code></a></li>')
    return f"<ul>{''.join(lines)}</ul>"


def rendered(path: Path, page: str, shown: set[Path]) -> str:
    """A page from outside of docs/, with its links led to where they go in the site."""

    def led(match: re.Match[str]) -> str:
        name, _, anchor = match[1].partition("#")
        to = address((path.parent / name).resolve(), anchor, page, shown) if name else None
        return match[0] if to is None else f'href="{to}"'

    html = MarkdownIt("commonmark").enable("table").render(path.read_text(encoding="utf-8"))
    html = html.replace("<table>", '<div class="table-wrapper"><table class="docutils">')
    html = html.replace("</table>", "</table></div>")
    html = re.sub(r"<pre>.*?</pre>", r'<div class="highlight">\g<0></div>', html, flags=re.S)
    return re.sub(r'href="([^":]*)"', led, html)


def pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Until no page leads to one that is not yet there."""
    done: set[Path] = set()
    wanted = shown(app.env)
    while left := sorted(wanted - done):
        for path in left:
            page = f"{SHOWN}{path.relative_to(REPOSITORY).as_posix()}"
            yield page, {"title": path.name, "body": body(path, page, wanted)}, "page.html"
        done |= set(left)


def keep(app: Any, error: Exception | None) -> None:
    """Copies of records, pictures and finished pages, each in its place."""
    if error is not None or app.builder.format != "html":
        return
    for path in DOCS.rglob("*"):
        if path.suffix in KEPT and "_site" not in path.parts:
            to = Path(app.outdir) / path.relative_to(DOCS)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def setup(app: Any) -> None:
    app.add_transform(Links)
    app.connect("html-collect-pages", pages)
    app.connect("build-finished", keep)
