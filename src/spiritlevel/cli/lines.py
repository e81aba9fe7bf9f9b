"""What is told on stderr: at a terminal broken between words, and never more than text.

What a stream cannot write ends no command.
"""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Iterator

from spiritlevel.catalogue import columns

__all__ = ["UNBROKEN", "printable", "tell", "wrapped", "writable"]

UNBROKEN = 1000
"""Columns: wider than any row of words, where no line is to be broken."""

_CLOSING = "，。、；：！？）》」』”’…%)]}>,.;:!?"
_OPENING = "（《「『“‘([{<"


def printable(text: str) -> str:
    """The same without what would steer a terminal, as a file's name may hold."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def writable(signs: str) -> None:
    """Keep what the streams are encoded in, as GBK; where it lacks these signs they get UTF-8.

    Any other sign that it lacks is written as an escape, such as \\xb2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            try:
                signs.encode(stream.encoding)
            except UnicodeEncodeError:
                stream.reconfigure(encoding="utf-8")
            if stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="backslashreplace")


def tell(text: str) -> None:
    """Print it on stderr."""
    text = printable(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join("\n".join(wrapped(line, width)) for line in text.split("\n"))
    print(text, file=sys.stderr)


def wrapped(text: str, width: int, hanging: str = "") -> list[str]:
    """Its lines of at most so many columns; all but the first begin with `hanging`.

    Han text breaks between any two characters, of which none begins a line that closes something,
    and none ends one that opens it; other text breaks between words.
    """
    if columns(text) == len(text):
        return textwrap.wrap(
            text,
            width,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines, line = [], ""
    for piece in _pieces(text):
        if line.strip() and columns(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line, piece = hanging, piece.lstrip()
        line += piece
    return [*lines, line.rstrip()]


def _pieces(text: str) -> Iterator[str]:
    """What no line may break: words with the space after them, Han characters with their signs."""
    piece = ""
    for before, sign in zip(" " + text, text, strict=False):
        between_words = before == " " != sign
        beside_han = 2 in (columns(before), columns(sign))
        may_break = between_words or (beside_han and sign not in (" ", *_CLOSING))
        if piece and may_break and before not in _OPENING:
            yield piece
            piece = ""
        piece += sign
    yield piece
