"""A zip archive of one's own images, laid out as `layout` says, read without unpacking it to disk.

The archive is anyone's: an entry that climbs out of its folder, is a link, is encrypted, stands
there twice or unpacks beyond the bounds below refuses the whole archive.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from spiritlevel.data.cache import kept, stamp
from spiritlevel.data.decode import ENDINGS, Member
from spiritlevel.data.images import Images
from spiritlevel.data.layout import MAX_DEPTH, Folder, listings, raw_of
from spiritlevel.errors import DataError

__all__ = ["MAX_ENTRIES", "MAX_ENTRY", "MAX_TOTAL", "is_zip", "read_zip", "refusal_of_name"]

MAX_ENTRIES = 500_000
MAX_ENTRY = 64 * 1024**2
"""Bytes of one unpacked entry: a photo of 20 million pixels takes a tenth of it."""
MAX_TOTAL = 4 * 1024**3
"""Bytes of all unpacked entries together."""
_SHOWN = 300
"""Characters of a name that a message shows."""
_PACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The other methods unpack a block whole, however large it turns out."""


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def read_zip(path: Path, *, seed: int, image_size: int | None) -> Images:
    """Read the images in the archive `path`; a single folder around all others is looked through.

    Without a test folder, `seed` draws a fifth of each class. Raises DataError, MissingExtra.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _tree(path, archive)
            train, test = listings(root)
            return kept(
                ["zip", os.path.realpath(path), *stamp(path)],
                lambda: raw_of(train, test, path.name, "archive", image_size),
                seed=seed,
                image_size=image_size,
            )
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(
            f"got {str(path)!r}, which cannot be read as a zip archive ({error}); "
            "wanted a whole one; pack it again"
        ) from error


class _InArchive:
    def __init__(self, name: str, parent: _InArchive | None = None) -> None:
        self.name = name
        self._parent = parent
        self.inside: dict[str, _InArchive | Member] = {}

    def __str__(self) -> str:
        return self.name if self._parent is None else f"{self._parent}/{self.name}"

    def folder(self, name: str) -> _InArchive:
        """The folder of this name, made where there is none. Raises DataError for a file."""
        found = self.inside.setdefault(name, _InArchive(name, self))
        if isinstance(found, Member):
            raise _refused(found.name, "is both a file and a folder")
        return found

    def folders(self) -> list[Folder]:
        return [node for _, node in sorted(self.inside.items()) if isinstance(node, _InArchive)]

    def images(self) -> Iterator[Member]:
        for _, node in sorted(self.inside.items()):
            if isinstance(node, Member):
                yield node
            else:
                yield from node.images()


def _tree(path: Path, archive: zipfile.ZipFile) -> _InArchive:
    """The images in the archive, each entry checked before any is unpacked."""
    entries = archive.infolist()
    _check_bounds(path, entries)
    root = _InArchive(str(path))
    seen: set[str] = set()
    for entry in entries:
        parts = _checked(path, entry, seen)
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        is_image = Path(parts[-1]).suffix.lower() in ENDINGS and not entry.is_dir()
        node = root
        for part in parts if entry.is_dir() else parts[:-1]:
            node = node.folder(part)
        if is_image:
            name = f"{path}/{entry.filename}"
            if parts[-1] in node.inside:
                raise _refused(name, "is both a file and a folder")
            node.inside[parts[-1]] = Member(name, partial(_unpacked, archive, entry, name))
    while len(root.inside) == 1:
        (only,) = root.inside.values()
        if isinstance(only, Member) or not only.folders():
            break
        root = only
    return root


def _check_bounds(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            f"got {str(path)!r} with {len(entries):,} entries, wanted {MAX_ENTRIES:,} or fewer; "
            "take fewer images"
        )
    # zipfile hands out no more of an entry than the size it states, and refuses one that is longer.
    if (total := sum(entry.file_size for entry in entries)) > MAX_TOTAL:
        raise DataError(
            f"got {str(path)!r}, which unpacks to {total:,} bytes, "
            f"wanted {MAX_TOTAL:,} or fewer; make the images smaller or take fewer"
        )


def _checked(path: Path, entry: zipfile.ZipInfo, seen: set[str]) -> list[str]:
    """The parts of the entry's name. Raises DataError."""
    given = entry.orig_filename
    name = f"{path}/{given}"
    if reason := refusal_of_name(given.removesuffix("/")):
        raise _refused(name, reason)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(name, "is a link" if kind == stat.S_IFLNK else "is no ordinary file")
    if entry.flag_bits & 0x1:
        raise _refused(name, "is encrypted")
    if entry.compress_type not in _PACKED:
        raise _refused(name, "is packed by another method than deflate")
    if entry.file_size > MAX_ENTRY:
        raise _refused(name, f"unpacks to {entry.file_size:,} bytes, more than {MAX_ENTRY:,}")
    if (plain := given.removesuffix("/")) in seen:
        raise _refused(name, "stands there twice")
    seen.add(plain)
    return plain.split("/")


def refusal_of_name(name: str) -> str | None:
    """Why a file in an archive may not be called so, or None."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "leads out of its folder"
    if name.count("/") > MAX_DEPTH:
        return f"lies more than {MAX_DEPTH} folders deep"
    if "\\" in name or "\0" in name or not all(name.split("/")):
        return "has a name that not all systems read alike"
    return None


def _refused(name: str, reason: str) -> DataError:
    if len(name) > _SHOWN:
        name = f"{name[:_SHOWN]}..."
    return DataError(
        f"got {name!r}, which {reason}; wanted plain image files; pack the archive anew without it"
    )


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    try:
        with archive.open(entry) as file:
            content = file.read(MAX_ENTRY + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(
            f"got {name!r}, which cannot be unpacked ({error}); "
            "wanted a whole archive; pack it again"
        ) from error
    if len(content) > MAX_ENTRY:
        raise _refused(name, f"unpacks to more than {MAX_ENTRY:,} bytes")
    return content
