"""Decoded images on disk, mapped into memory: decoded once, shared by all processes.

An entry is a folder, `images/KEY` in the cache folder: four .npy files and `about.json`, which
holds their sha256. KEY stands for the source (each file's path, size and time of change), the seed,
the image size and the format. An entry is written under a name of its own and renamed when it is
whole: of two processes that fill it at once, the later takes the earlier one's. Nothing removes old
entries; the folder may be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from spiritlevel.data.images import Images
from spiritlevel.data.raw import Raw, gather
from spiritlevel.errors import DataError
from spiritlevel.files import cache_folder

__all__ = ["kept", "no_room", "stamp"]

_FORMAT = 1
_SMALL = 4 * 1024**2
"""Bytes of pixels that are not worth a place on the disk."""
_ABANDONED = 24 * 3600
"""Seconds after which a draft is taken for one of a killed process."""
_TENSORS = ("train_x", "train_y", "test_x", "test_y")
_ABOUT = ("name", "classes", "origin", "licence", "notes")


def stamp(path: Path) -> tuple[int, int]:
    """By which a change of the file is told: its size in bytes and its time of change in ns.

    Raises DataError.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            f"got {str(path)!r}, which cannot be read ({error.strerror}); "
            "wanted a file that stays while it is read; try again"
        ) from error
    return status.st_size, status.st_mtime_ns


def kept(
    source: list[Any], find: Callable[[], Raw], *, seed: int, image_size: int | None
) -> Images:
    """The images that `find` gives, from the cache where they are in it.

    `source` names them and their state, ready for JSON. Few images, and all where the cache folder
    cannot be written to (one warning), stay in memory. Raises what `find` raises, and DataError for
    a full disk.
    """
    key = json.dumps([_FORMAT, source, seed, image_size])
    name = hashlib.sha256(key.encode()).hexdigest()
    entry = cache_folder() / "images" / name
    if (images := _open(entry)) is not None:
        return images
    raw = find()
    if torch.Size(raw.pixels.shape).numel() <= _SMALL or not _writable(entry.parent):
        return gather(raw, seed=seed)
    with _draft(entry) as draft:
        _write(draft, raw, seed)
        # Of two processes, the second looks when the first is done: else it could take a whole
        # entry for the damaged one that it found, and remove it.
        with FileLock(entry.parent.with_suffix(".lock")):
            if (images := _open(entry)) is not None:
                return images
            shutil.rmtree(entry, ignore_errors=True)
            draft.rename(entry)
    if (images := _open(entry)) is None:
        raise DataError(
            f"got damaged images back from {entry}, written a moment ago; "
            "wanted them as written; check the disk, or name another folder in SPIRITLEVEL_CACHE"
        )
    return images


def _open(entry: Path) -> Images | None:
    """The entry mapped into memory, or None where there is none that is whole."""
    try:
        about = json.loads((entry / "about.json").read_text(encoding="utf-8"))
        fields: dict[str, Any] = {name: about[name] for name in _ABOUT}
        fields |= {name: tuple(about[name]) for name in ("classes", "notes")}
        for name in _TENSORS:
            # Copy on write: the pages are shared, and no write would reach the file.
            array = np.load(entry / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if hashlib.sha256(array.data).hexdigest() != about["sha256"][name]:
                return None
            fields[name] = torch.from_numpy(np.asarray(array))
        return Images(**fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if full := no_room(folder, error):
            raise full from error
        warnings.warn(
            f"the cache folder {folder.parent} cannot be written to ({error.strerror}): images are "
            "decoded into memory, again in each run. Name another folder in SPIRITLEVEL_CACHE",
            stacklevel=2,
        )
        return False


def no_room(folder: Path, error: OSError) -> DataError | None:
    """What to tell where `error` is that of a full disk."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return _unwritten(folder, error)


def _unwritten(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"got {error.strerror!r} while keeping images in {folder}; wanted room for them; "
        "make room, or name a folder on another disk in SPIRITLEVEL_CACHE"
    )


@contextmanager
def _draft(entry: Path) -> Iterator[Path]:
    """A folder beside `entry` that is gone in the end, unless it was renamed."""
    for old in entry.parent.glob(".draft-*"):
        with suppress(OSError):  # it may be renamed at this very moment
            if time.time() - old.stat().st_mtime > _ABANDONED:
                shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=entry.parent))
    try:
        yield draft
    except OSError as error:
        raise _unwritten(entry.parent, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, raw: Raw, seed: int) -> None:
    train, test = raw.split(seed)
    digests = {}
    for part, rows in (("train", train), ("test", test)):
        shape = (len(rows), *raw.pixels.shape[1:])
        digests[f"{part}_x"] = _save(folder / f"{part}_x.npy", "|u1", shape, raw.pixels.parts(rows))
        digests[f"{part}_y"] = _save(
            folder / f"{part}_y.npy", "<i8", (len(rows),), iter([raw.y[rows]])
        )
    about = {
        "name": raw.name,
        "classes": raw.classes,
        "origin": raw.origin,
        "licence": raw.licence,
        "notes": raw.pixels.notes,
        "sha256": digests,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _save(path: Path, dtype: str, shape: tuple[int, ...], parts: Iterator[Tensor]) -> str:
    """Write an array part by part; its sha256.

    By plain writes: on a full disk they raise, where a write to mapped memory kills the process.
    """
    digest = hashlib.sha256()
    with path.open("xb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            content = part.contiguous().numpy().data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
