"""What the user's own code prints does not go among what a command prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

__all__ = ["told_aside"]


@contextmanager
def told_aside() -> Iterator[None]:
    """Within it, what is printed, by other processes too, goes to stderr."""
    sys.stdout.flush()
    ours = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)
