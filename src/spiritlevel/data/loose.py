"""Image files by name, wherever they lie: each or why it is none, so that one stops no other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from spiritlevel.data.decode import ENDINGS
from spiritlevel.errors import DataError

__all__ = ["loose"]


def loose(given: Iterable[str]) -> Iterator[Path | DataError]:
    """Files as they are given; those with an image's ending in folders, sorted, at any depth.

    Hidden entries and linked folders are passed over.
    """
    for name in given:
        path = Path(name)
        if not os.path.isdir(path):
            yield _checked(path)
            continue
        count = 0
        for found in _inside(path):
            count += 1
            yield found
        if not count:
            yield DataError(
                f"got {name!r}, a folder without an image; wanted files that end in one of "
                f"{', '.join(sorted(ENDINGS))}"
            )


def _checked(path: Path) -> Path | DataError:
    """A pipe would be waited on for ever."""
    if os.path.isfile(path):
        return path
    what = "which is no regular file" if os.path.lexists(path) else "which is not there"
    return DataError(f"got {str(path)!r}, {what}; wanted an image file or a folder of some")


def _inside(root: Path) -> Iterator[Path | DataError]:
    """A folder's files, then those of its folders; without recursion, which has its depth."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield DataError(
                f"got folder {str(folder)!r}, which cannot be listed ({error.strerror}); wanted "
                "one that you may read"
            )
            continue
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [entry for entry in shown if entry.is_dir(follow_symlinks=False)]
        waiting += [Path(entry.path) for entry in reversed(folders)]
        for entry in shown:
            if not entry.is_dir() and Path(entry.name).suffix.lower() in ENDINGS:
                yield _checked(Path(entry.path))
