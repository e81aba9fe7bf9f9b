"""Files that come to their place when they are known to be right, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spiritlevel.errors import UsageError

__all__ = ["drafted"]


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A path of the same name, in a folder of this process's own beside it.

    What lies in that folder when the block ends is flushed to disk and moved beside `path`, the
    file of its name last; where the block raises nothing is. Raises UsageError.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir()
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _flush(file)
            os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _refusal(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"got {error.strerror or error} while writing {path}; "
        "wanted a folder that is there and has room. Make it, or choose another place"
    )
