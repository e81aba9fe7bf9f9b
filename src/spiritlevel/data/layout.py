"""A tree of folders, on disk or in an archive: which images are to train on, and of what class.

A folder for each class, or train/ and test/ (val/) of those. An image is a file with an image's
ending, at any depth inside a class folder; other endings are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from spiritlevel.data.decode import ENDINGS, File, Files
from spiritlevel.data.raw import Raw
from spiritlevel.errors import DataError

__all__ = [
    "LAYOUT",
    "MAX_DEPTH",
    "Folder",
    "Listing",
    "files_of",
    "listings",
    "raw_of",
    "readable",
]

LAYOUT = "one folder of images for each class, or train/ and test/ with such folders in each"

MAX_DEPTH = 32
"""Folders, one in the other."""

Listing = dict[str, list[File]]
"""Class name -> its image files, both in sorted order."""


class Folder(Protocol):
    """A folder that knows what is in it, in the order of names, but for hidden entries."""

    @property
    def name(self) -> str: ...

    def __str__(self) -> str:
        """The path, for a reader."""

    def folders(self) -> list[Folder]: ...

    def images(self) -> Iterator[File]:
        """At any depth."""


def listings(root: Folder) -> tuple[Listing, Listing]:
    """The files to train on and to test on, the latter empty where a split is still to be drawn.

    Raises DataError.
    """
    folders = root.folders()
    part = {folder.name.casefold(): folder for folder in folders}
    held_out = part.get("test") or part.get("val")
    if "train" not in part or held_out is None:
        return _classes(root, fewest=2), {}
    if len(folders) != 2:
        raise DataError(
            f"got {len(folders)} folders in {str(root)!r}, train/ and {held_out.name}/ among them; "
            "wanted train/ and one of test/ and val/, and no other; move the rest elsewhere"
        )
    train, test = (_classes(folder, fewest=1) for folder in (part["train"], held_out))
    if lonely := sorted(train.keys() ^ test.keys()):
        raise DataError(
            f"got class {lonely[0]!r} in only one of train/ and {held_out.name}/ of {str(root)!r}; "
            "wanted the same classes in both; add or remove that folder"
        )
    return train, test


def _classes(folder: Folder, *, fewest: int) -> Listing:
    """The image files of each class folder in `folder`, of which each has `fewest` or more."""
    listing = {part.name: list(part.images()) for part in folder.folders()}
    if len(listing) < 2:
        got = f"one class, {next(iter(listing))!r}," if listing else "no class folder"
        raise DataError(f"got {got} in {str(folder)!r}; wanted two or more: {LAYOUT}; add folders")
    for name, files in listing.items():
        if len(files) < fewest:
            raise DataError(
                f"got class {name!r} of {str(folder)!r} with {len(files)} image(s), "
                f"wanted {fewest} or more; add images or remove the folder "
                f"(read are {', '.join(sorted(ENDINGS))})"
            )
    return listing


def files_of(train: Listing, test: Listing) -> list[File]:
    """All of them, class by class."""
    return [file for listing in (train, test) for files in listing.values() for file in files]


def raw_of(train: Listing, test: Listing, name: str, kind: str, image_size: int | None) -> Raw:
    """The images of a `kind` (folder, archive) called `name`. Raises DataError, MissingExtra."""
    y = torch.cat([_labels(train), _labels(test)])
    return Raw(
        name=f"folder:{readable(name)}",
        pixels=Files(files_of(train, test), image_size),
        y=y,
        n_train=len(_labels(train)) if test else None,
        classes=tuple(map(readable, train)),
        origin=f"your own images, from the {kind} {readable(name)}",
        licence="your own images, terms not known to spiritlevel",
    )


def _labels(listing: Listing) -> Tensor:
    """int64 (N,): the place of each file's class."""
    counts = torch.tensor([len(files) for files in listing.values()], dtype=torch.int64)
    return torch.arange(len(counts)).repeat_interleave(counts)


def readable(name: str) -> str:
    """A file name as text; bytes of it that are no UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
