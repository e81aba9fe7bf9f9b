"""What a reader of one of our pages meets, to look for a language that is not the page's."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser


class _Seen(HTMLParser):
    """All that a reader of the page sees or hears, less code, names and the environment's."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.within: list[str] = []
        self.script: str | None = None

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        spoken = ("aria-label", "aria-valuetext", "data-copied", "data-failed", "title", "alt")
        self.texts += [given[name] for name in spoken if given.get(name)]
        if tag in ("style", "code", "pre", "bdi", "dl"):
            self.within.append(tag)
        if tag == "script":
            self.script = given.get("class") or given.get("type", "")

    def handle_endtag(self, tag):
        if self.within and self.within[-1] == tag:
            self.within.pop()
        if tag == "script":
            self.script = None

    def handle_data(self, text):
        if self.script == "application/json":
            self.texts += _strings(json.loads(text))
        elif self.script == "packed":
            self.texts += _strings(json.loads(zlib.decompress(base64.b64decode(text))))
        elif self.script is None and not self.within:
            self.texts.append(text)


def _strings(value: object) -> list[str]:
    """All in a piece of JSON, without the HTML in them, and without what their code shows."""
    if isinstance(value, str):
        return [re.sub(r"<.*?>", " ", re.sub(r"<code>.*?</code>", "…", value))]
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in _strings(one)]
    return []


# Three words, of which names of authors and "et al." are none; or what joins pieces.
ENGLISH = re.compile(
    r"\b[A-Za-z]+[ ,;:.]+[a-z’'-]+[ ,;:.]+(?!al\b)[a-z’'-]+\b"
    r"|(?<![\w-])(?:to|at|and|of|by|with|the|from|is|are|for|in)(?![\w-])"
)

# What is filled in stands as the sentence does: a space beside Latin text, none between Han.
ILL_SPACED = re.compile(r"[一-鿿] [一-鿿]|[一-鿿][A-Za-z0-9]|[A-Za-z0-9][一-鿿]")


def seen(page: str) -> list[str]:
    """All that its reader meets, in pieces: what a figure's data says, too."""
    parser = _Seen()
    parser.feed(page)
    parser.close()
    return parser.texts
