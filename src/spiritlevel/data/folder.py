"""A folder of one's own images: a folder for each class, or train/ and test/ (val/) of those.

Read are the files with an image's ending, at any depth inside a class folder, in the order of their
names; hidden files and other endings are passed over. No link may lead out of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from spiritlevel.data.decode import ENDINGS, decode
from spiritlevel.data.images import Images, stratified
from spiritlevel.errors import DataError

__all__ = ["read_folder"]

_LAYOUT = "one folder of images for each class, or train/ and test/ with such folders in each"

_Listing = dict[str, list[Path]]
"""Class name -> its image files, both in sorted order."""


def read_folder(path: str, *, seed: int) -> Images:
    """Read the images under `path`; without a test folder, `seed` draws a fifth of each class.

    Raises DataError for what cannot be used, and MissingExtra.
    """
    root = _root(path)
    train, test = _listings(root)
    x, notes = decode(
        [file for listing in (train, test) for files in listing.values() for file in files]
    )
    y = torch.cat([_labels(train), _labels(test)])
    if test:
        train_rows, test_rows = _shuffled(len(_labels(train)), len(y), seed)
    else:
        train_rows, test_rows = stratified(y, seed=seed)
    name = _readable(root.name)
    return Images(
        name=f"folder:{name}",
        train_x=x[train_rows],
        train_y=y[train_rows],
        test_x=x[test_rows],
        test_y=y[test_rows],
        classes=tuple(map(_readable, train)),
        origin=f"your own images, from the folder {name}",
        licence="your own images, terms not known to spiritlevel",
        notes=notes,
    )


def _root(path: str) -> Path:
    given = os.path.expanduser(path)
    if not path or not os.path.exists(given):
        raise DataError(
            f"got folder {path!r}, which does not exist; wanted {_LAYOUT}; check the path"
        )
    if not os.path.isdir(given):
        raise DataError(f"got {path!r}, which is a file; wanted a folder: {_LAYOUT}")
    return Path(os.path.realpath(given))


def _readable(name: str) -> str:
    """A file name as text; bytes of it that are no UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _labels(listing: _Listing) -> Tensor:
    """int64 (N,): the place of each file's class."""
    counts = torch.tensor([len(files) for files in listing.values()], dtype=torch.int64)
    return torch.arange(len(counts)).repeat_interleave(counts)


def _shuffled(n_train: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows 0 to n_train and n_train to n, each part in random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[order < n_train], order[order >= n_train]


def _listings(root: Path) -> tuple[_Listing, _Listing]:
    """The files to train on and to test on, the latter empty where a split is still to be drawn."""
    folders = _folders(root)
    part = {folder.name.casefold(): folder for folder in folders}
    held_out = part.get("test") or part.get("val")
    if "train" not in part or held_out is None:
        return _classes(root, root, fewest=2), {}
    if len(folders) != 2:
        raise DataError(
            f"got {len(folders)} folders in {str(root)!r}, train/ and {held_out.name}/ among them; "
            "wanted train/ and one of test/ and val/, and no other; move the rest elsewhere"
        )
    train, test = (_classes(folder, root, fewest=1) for folder in (part["train"], held_out))
    if lonely := sorted(train.keys() ^ test.keys()):
        raise DataError(
            f"got class {lonely[0]!r} in only one of train/ and {held_out.name}/ of {str(root)!r}; "
            "wanted the same classes in both; add or remove that folder"
        )
    return train, test


def _classes(folder: Path, root: Path, *, fewest: int) -> _Listing:
    """The image files of each class folder in `folder`, of which each has `fewest` or more."""
    listing = {path.name: list(_image_files(path, root)) for path in _folders(folder)}
    if len(listing) < 2:
        got = f"one class, {next(iter(listing))!r}," if listing else "no class folder"
        raise DataError(f"got {got} in {str(folder)!r}; wanted two or more: {_LAYOUT}; add folders")
    for name, files in listing.items():
        if len(files) < fewest:
            raise DataError(
                f"got class {name!r} of {str(folder)!r} with {len(files)} image(s), "
                f"wanted {fewest} or more; add images or remove the folder "
                f"(read are {', '.join(sorted(ENDINGS))})"
            )
    return listing


def _image_files(folder: Path, root: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if os.path.isdir(path):
            yield from _image_files(path, root)
        elif path.suffix.lower() in ENDINGS:
            yield _checked(path, root)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if os.path.isdir(path)]


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
