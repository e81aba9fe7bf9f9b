"""CIFAR-10 from its Python batches: the folder cifar-10-batches-py, or the official archive.

The batches are pickles and the archive is a tar, both anyone's: `unpickle` calls nothing, and the
archive is read in one pass without unpacking it to disk.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from spiritlevel.data.archive import refusal_of_name
from spiritlevel.data.cache import kept, stamp
from spiritlevel.data.download import download
from spiritlevel.data.images import Images
from spiritlevel.data.raw import Raw, Stack, labels_of
from spiritlevel.data.unpickle import Array, Refused, read_pickle
from spiritlevel.errors import DataError

__all__ = ["read_cifar10"]

_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_URL = f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}"
_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_MAX_BATCH = 64 * 1024**2
"""Bytes of one batch; the official ones have 31 million."""
_MAX_UNPACKED = 512 * 1024**2
"""Bytes of the whole archive unpacked; the official one has 186 million."""


def read_cifar10(path: str | None, *, seed: int, image_size: int | None) -> Images:
    """From `path`: the folder of batches, its parent, or the archive.

    Without a path from the folder that SPIRITLEVEL_DATA names, else by a download. Raises DataError
    and MissingExtra.
    """
    place = _found(path)
    files = [place] if place.is_file() else [place / name for name in _BATCHES]
    return kept(
        ["cifar10", [[os.path.realpath(file), *stamp(file)] for file in files]],
        lambda: _raw(_from_archive(place) if place.is_file() else _from_folder(place), image_size),
        seed=seed,
        image_size=image_size,
    )


def _found(path: str | None) -> Path:
    """The folder of all batches, or an archive. Raises DataError."""
    if path is not None:
        if (place := _in(Path(os.path.expanduser(path)))) is None:
            raise DataError(
                f"got {path!r} for cifar10, which does not hold it; wanted {_FOLDER} with "
                f"{', '.join(_BATCHES)}, its parent folder, or {_ARCHIVE}; check the path"
            )
        return place
    if data := os.environ.get("SPIRITLEVEL_DATA"):
        folder = Path(os.path.expanduser(data))
        if (place := _in(folder) or _in(folder / _ARCHIVE)) is not None:
            return place
    return download(_URL, _SHA256, folder="cifar10")


def _in(path: Path) -> Path | None:
    if os.path.isfile(path):
        return path
    for folder in (path, path / _FOLDER):
        if all(os.path.isfile(folder / name) for name in _BATCHES):
            return folder
    return None


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in _BATCHES:
        file = folder / name
        try:
            with file.open("rb") as opened:
                content = opened.read(_MAX_BATCH + 1)
        except OSError as error:
            raise _unusable(str(file), f"cannot be read ({error.strerror})") from error
        yield str(file), _bounded(str(file), content)


class _Counted:
    """A stream that refuses to give more than `_MAX_UNPACKED` bytes."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, _MAX_UNPACKED

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise Refused(f"unpacks to more than {_MAX_UNPACKED:,} bytes")
        return content


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batches in their own order, whatever that of the archive is."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream:
            for member, archive in _members(_Counted(stream)):
                name = f"{path}/{member.name}"
                if reason := _refusal(member):
                    raise _unusable(name, reason)
                if member.name.removeprefix(f"{_FOLDER}/") in _BATCHES:
                    file = archive.extractfile(member)
                    assert file is not None  # it is a regular file
                    if name in found:
                        raise _unusable(name, "stands there twice")
                    found[name] = _bounded(name, file.read(_MAX_BATCH + 1))
    except Refused as error:
        raise _unusable(str(path), str(error)) from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _unusable(str(path), f"cannot be unpacked ({error})") from error
    for batch in _BATCHES:
        name = f"{path}/{_FOLDER}/{batch}"
        if name not in found:
            raise _unusable(str(path), f"has no {_FOLDER}/{batch}")
        yield name, found.pop(name)


def _members(stream: _Counted) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Each with the archive; then what is left, since gzip's checksum stands behind all of it."""
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
        for member in archive:
            yield member, archive
    while stream.read(1 << 20):
        pass


def _refusal(member: tarfile.TarInfo) -> str | None:
    if reason := refusal_of_name(member.name):
        return reason
    if member.islnk() or member.issym():
        return "is a link"
    return None if member.isfile() or member.isdir() else "is no ordinary file"


def _bounded(name: str, content: bytes) -> bytes:
    if len(content) > _MAX_BATCH:
        raise _unusable(name, f"has more than {_MAX_BATCH:,} bytes")
    return content


def _raw(batches: Iterator[tuple[str, bytes]], image_size: int | None) -> Raw:
    parts = [_batch(name, content) for name, content in batches]
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    return Raw(
        name="cifar10",
        pixels=Stack(x, image_size),
        y=y,
        n_train=len(y) - len(parts[-1][1]),
        classes=_CLASSES,
        origin="CIFAR-10: 60,000 small photographs of ten kinds of things (Alex Krizhevsky, Vinod "
        "Nair, Geoffrey Hinton, 2009)",
        licence="its makers name no terms",
    )


def _batch(name: str, content: bytes) -> tuple[Tensor, Tensor]:
    """uint8 (n, 3, 32, 32) and int64 (n,)."""
    try:
        batch = read_pickle(content)
    except Refused as error:
        raise _unusable(name, f"is not as the official ones are: {error}") from error
    data, labels = _fields(batch)
    if (
        data is None
        or data.ndim != 2
        or data.shape[1] != 3 * 32 * 32
        or not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(type(label) is int and abs(label) < 2**63 for label in labels)
    ):
        raise _unusable(name, "does not hold n x 3072 bytes of data and n labels")
    x = torch.from_numpy(data.copy()).reshape(-1, 3, 32, 32)
    return x, labels_of(torch.tensor(labels, dtype=torch.int64), len(_CLASSES), repr(name))


def _fields(batch: Any) -> tuple[np.ndarray[Any, np.dtype[np.uint8]] | None, Any]:
    if not isinstance(batch, dict):
        return None, None
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    return (getattr(data, "value", None) if isinstance(data, Array) else None), labels


def _unusable(name: str, reason: str) -> DataError:
    return DataError(
        f"got {name!r}, which {reason}; wanted the batches as they are published; fetch them again"
    )
