"""What is told on stderr: at a terminal broken between words, and never more than text."""

from __future__ import annotations

import shutil
import sys
import textwrap

__all__ = ["printable", "tell"]


def printable(text: str) -> str:
    """The same without what would steer a terminal, as a file's name may hold."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def tell(text: str) -> None:
    """Print it on stderr."""
    text = printable(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = (
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
            for line in text.split("\n")
        )
        text = "\n".join(lines)
    print(text, file=sys.stderr)
