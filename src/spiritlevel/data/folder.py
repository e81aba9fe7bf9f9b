"""A folder of one's own images on disk, laid out as `layout` says. No link may lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spiritlevel.data.archive import is_zip, read_zip
from spiritlevel.data.cache import kept, stamp
from spiritlevel.data.decode import ENDINGS
from spiritlevel.data.images import Images
from spiritlevel.data.layout import LAYOUT, MAX_DEPTH, Folder, files_of, listings, raw_of
from spiritlevel.errors import DataError

__all__ = ["read_folder"]


def read_folder(path: str, *, seed: int, image_size: int | None) -> Images:
    """Read the images under `path`, a folder or a zip archive of one.

    Without a test folder, `seed` draws a fifth of each class. Raises DataError, MissingExtra.
    """
    given = Path(os.path.expanduser(path))
    if not path or not os.path.exists(given):
        raise DataError(
            f"got folder {path!r}, which does not exist; wanted {LAYOUT}; check the path"
        )
    if os.path.isdir(given):
        root = Path(os.path.realpath(given))
        train, test = listings(_OnDisk(root, root))
        files = [Path(str(file)) for file in files_of(train, test)]
        key = ["folder", str(root), [[str(file), *stamp(file)] for file in files]]
        return kept(
            key,
            lambda: raw_of(train, test, root.name, "folder", image_size),
            seed=seed,
            image_size=image_size,
        )
    if not os.path.isfile(given):  # a pipe would be waited on for ever
        raise DataError(
            f"got {path!r}, which is neither a folder nor a file; wanted {LAYOUT}; check the path"
        )
    if is_zip(given):
        return read_zip(given, seed=seed, image_size=image_size)
    raise DataError(
        f"got {path!r}, which is a file; wanted a folder or a zip archive of one: {LAYOUT}; "
        "put the images there"
    )


@dataclass(frozen=True)
class _OnDisk:
    path: Path
    root: Path

    @property
    def name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def folders(self) -> list[Folder]:
        return [_OnDisk(path, self.root) for path in _entries(self.path) if os.path.isdir(path)]

    def images(self) -> Iterator[Path]:
        if len(self.path.relative_to(self.root).parts) > MAX_DEPTH:
            raise DataError(
                f"got folder {str(self.path)!r}, which lies more than {MAX_DEPTH} folders deep; "
                "wanted images nearer to their class; move or remove it"
            )
        for path in _entries(self.path):
            if os.path.isdir(path):
                yield from _OnDisk(path, self.root).images()
            elif path.suffix.lower() in ENDINGS:
                yield _checked(path, self.root)


def _entries(folder: Path) -> list[Path]:
    """What is in `folder`, by name, but for hidden entries. No linked folder: it may be a loop."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(
            f"got folder {str(folder)!r}, which cannot be listed ({error.strerror}); "
            "wanted one that you may read; change its permissions or remove it"
        ) from error
    paths = [folder / name for name in names]
    for path in paths:
        if os.path.islink(path) and os.path.isdir(path):
            raise DataError(
                f"got {str(path)!r}, a link to a folder; wanted folders; copy or remove it"
            )
    return paths


def _checked(path: Path, root: Path) -> Path:
    """`path`, if it is a file, or a link to one, inside `root`."""
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
        raise DataError(
            f"got {str(path)!r}, a link that leads out of {str(root)!r}; "
            "wanted images inside it; copy the image there or remove the link"
        )
    if not os.path.isfile(path):  # a broken link, or a pipe that would be waited on for ever
        raise DataError(
            f"got {str(path)!r}, which is not a readable file; wanted images; remove it"
        )
    return path
