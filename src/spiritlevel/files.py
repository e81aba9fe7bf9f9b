"""Files that hold the old text or the whole new one at every moment; and the cache folder."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from spiritlevel.errors import UsageError

__all__ = [
    "cache_folder",
    "draft_of",
    "is_full",
    "real",
    "refusal",
    "refuse_unwritable",
    "write_whole",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def cache_folder() -> Path:
    """SPIRITLEVEL_CACHE, else spiritlevel in the user's cache folder."""
    if given := os.environ.get("SPIRITLEVEL_CACHE"):
        return Path(os.path.expanduser(given))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "spiritlevel"


def write_whole(path: Path, content: str | bytes) -> None:
    """Text in UTF-8; by a temporary file beside it, fsync and rename. Raises UsageError.

    What UTF-8 cannot hold, such as a file name that was not valid Unicode, is written as a question
    mark.
    """
    place = real(path)
    draft = draft_of(place)
    try:
        with draft.open("xb") as file:
            if isinstance(content, str):
                content = content.encode("utf-8", errors="replace")
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)
    except OSError as error:
        raise refusal(path, error) from error
    finally:
        if place.parent.is_dir():
            draft.unlink(missing_ok=True)


def refuse_unwritable(path: Path) -> None:
    """Find out before long work whether `write_whole` can begin. Raises UsageError."""
    place = real(path)
    if place.is_dir():
        raise UsageError(f"got {path}, which is a folder; wanted the name of a file to write")
    if place.exists() and not place.is_file():
        raise UsageError(f"got {path}, which is a device or a pipe; wanted a file to write")
    if place.exists() and not place.stat().st_mode & 0o222:
        raise UsageError(f"got {path}, which is read-only; wanted another name, or a file to write")
    draft = draft_of(place)
    try:
        draft.open("xb").close()
        draft.unlink()
    except OSError as error:
        raise refusal(path, error) from error


def real(path: Path) -> Path:
    """Where a link leads, which stays a link. Raises UsageError for a path without a name."""
    if not path.name:
        raise UsageError(f"got {str(path)!r} as the name of a file; wanted one, such as found.json")
    return Path(os.path.realpath(path))


def draft_of(place: Path) -> Path:
    """A name beside it that nothing has, not even what a killed process left."""
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")


def is_full(error: OSError) -> bool:
    """Whether the disk took no more, which is nobody's fault but the disk's."""
    return error.errno in _FULL


def refusal(path: Path, error: OSError) -> UsageError:
    """What `error`, from writing `path`, is to the user."""
    return UsageError(
        f"got {error.strerror or error} while writing {path}; "
        "wanted a folder that is there and has room. Make it, or choose another place"
    )
