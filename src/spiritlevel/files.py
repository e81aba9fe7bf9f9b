"""Files that hold the old text or the whole new one at every moment."""

from __future__ import annotations

import os
from pathlib import Path

from spiritlevel.errors import UsageError

__all__ = ["refuse_unwritable", "write_whole"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Text in UTF-8; by a temporary file beside it, fsync and rename. Raises UsageError.

    What UTF-8 cannot hold, such as a file name that was not valid Unicode, is written as a question
    mark.
    """
    draft = _draft(path)
    try:
        with draft.open("xb") as file:
            if isinstance(content, str):
                content = content.encode("utf-8", errors="replace")
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)


def refuse_unwritable(path: Path) -> None:
    """Find out before long work whether `write_whole` can begin. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"got {path}, which is a folder; wanted the name of a file to write")
    draft = _draft(path)
    try:
        draft.open("xb").close()
        draft.unlink()
    except OSError as error:
        raise _refusal(path, error) from error


def _draft(path: Path) -> Path:
    """A file of this process's own beside it. A path without a name, such as "", has none."""
    if not path.name:
        raise UsageError(f"got {str(path)!r} as the name of a file; wanted one, such as found.json")
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _refusal(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"got {error.strerror or error} while writing {path}; "
        "wanted a folder that is there and has room. Make it, or choose another place"
    )
