"""Docstrings, which are Markdown, as the reStructuredText that autodoc wants of them."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

import spiritlevel as sl

MARKDOWN = MarkdownIt("commonmark").enable("table")
ERRORS = re.compile(rf"\b({'|'.join(set(sl.errors.__all__) - {'require'})})\b(?![`.])")
"""Which docstrings write without marks."""


@cache
def public() -> dict[str, str]:
    """What a docstring may call by its short name, and where it stands."""
    rooms = {"": sl, "nn": sl.nn, "kernels": sl.kernels, "errors": sl.errors}
    found = {}
    for room, module in rooms.items():
        dot = f"{room}." if room else ""
        for name in module.__all__:
            if name not in ("errors", "kernels", "nn"):
                found[name] = found[f"{dot}{name}"] = found[f"sl.{dot}{name}"] = (
                    f"spiritlevel.{dot}{name}"
                )
    for name in ("batch", "ghost", "renorm", "sync"):
        found[f"nn.{name}"] = f"spiritlevel.nn.{name}"
    return found


def inline(node: SyntaxTreeNode) -> str:
    return "".join(span(child) for child in node.children)


def span(node: SyntaxTreeNode) -> str:
    if node.type == "code_inline":
        name = node.content
        return f":py:obj:`{name} <{public()[name]}>`" if name in public() else f"``{name}``"
    if node.type == "text":
        escaped = re.sub(r"([\\*`|])|(?<=\w)(_)(?!\w)", r"\\\1\2", node.content)
        return ERRORS.sub(lambda found: f":py:exc:`{found[1]} <{public()[found[1]]}>`", escaped)
    if node.type in ("softbreak", "hardbreak"):
        return "\n"
    mark = {"em": "*", "strong": "**"}.get(node.type)
    if mark:
        return f"{mark}{inline(node)}{mark}"
    if node.type == "link":
        return f"`{inline(node)} <{node.attrs['href']}>`__"
    raise ValueError(f"a docstring has a {node.type}, which docs/_site/docstrings.py does not know")


def shifted(text: str, first: str, rest: str) -> str:
    return first + text.replace("\n", "\n" + rest)


def block(node: SyntaxTreeNode) -> str:
    if node.type == "paragraph":
        return inline(node.children[0])
    if node.type in ("code_block", "fence"):
        language = "python" if re.search(r"\b(import|with|def|sl\.)", node.content) else "text"
        code = shifted(node.content.rstrip(), "   ", "   ")
        return f".. code-block:: {node.info or language}\n\n{code}"
    if node.type in ("bullet_list", "ordered_list"):
        mark = "- " if node.type == "bullet_list" else "#. "
        each = (shifted(blocks(item), mark, " " * len(mark)) for item in node.children)
        return "\n".join(each)
    if node.type == "table":
        rows = [row for part in node.children for row in part.children]
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in rows:
            for i, cell in enumerate(row.children):
                lines.append(shifted(inline(cell.children[0]), "     - " if i else "   * - ", "  "))
        return "\n".join(lines)
    raise ValueError(f"a docstring has a {node.type}, which docs/_site/docstrings.py does not know")


def blocks(node: SyntaxTreeNode) -> str:
    return "\n\n".join(block(child) for child in node.children)


def restructured(docstring: str) -> str:
    return blocks(SyntaxTreeNode(MARKDOWN.parse(docstring)))


def process(_app: Any, _what: str, _name: str, _it: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = [*restructured("\n".join(lines)).splitlines(), ""]


def setup(app: Any) -> None:
    for name in ("study", "export"):  # rooms that are verbs, too: here the verb
        setattr(sl, name, getattr(import_module(f"spiritlevel.{name}"), name))
    app.connect("autodoc-process-docstring", process)
