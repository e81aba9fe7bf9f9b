"""Files that hold the old text or the whole new one at every moment."""

from __future__ import annotations

import os
from pathlib import Path

from spiritlevel.errors import UsageError

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """UTF-8, by a temporary file beside it, fsync and rename. Raises UsageError.

    What UTF-8 cannot hold, such as a file name that was not valid Unicode, is written as a question
    mark.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while writing {path}; "
            "wanted a folder that is there and has room. Make it, or choose another --out"
        ) from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)
