"""Files that come to their place when they are known to be right, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from spiritlevel.files import draft_of, is_full, real, refusal

__all__ = ["drafted"]


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A path of the same name, in a folder of this process's own beside it.

    What lies in that folder when the block ends is flushed to disk and moved beside `path`, the
    file of its name last, a link staying one; where the block raises nothing is. Such folders of
    processes that were killed are removed. Raises UsageError.
    """
    place = real(path)
    folder = draft_of(place)
    try:
        _sweep(place)
        folder.mkdir()
        held = _locked(folder)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        yield folder / path.name
        _move(folder, path)
    except OSError as error:
        if is_full(error):
            raise refusal(path, error) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _move(folder: Path, path: Path) -> None:
    try:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _flush(file)
            os.replace(file, real(path.with_name(file.name)))
    except OSError as error:
        raise refusal(path, error) from error


def _flush(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _locked(folder: Path) -> int | None:
    """A handle that holds it until the process ends, however; None where that cannot be had."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(place: Path) -> None:
    """Remove the drafts of it that are in nobody's use."""
    for other in place.parent.iterdir():
        if not (other.name.startswith(f".{place.name}.") and other.suffix == ".tmp"):
            continue
        if other.is_dir() and (held := _locked(other)) is not None:
            shutil.rmtree(other, ignore_errors=True)
            os.close(held)
