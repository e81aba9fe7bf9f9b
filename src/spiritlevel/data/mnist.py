"""MNIST and Fashion-MNIST from their four idx files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spiritlevel.data.cache import kept, stamp
from spiritlevel.data.download import download
from spiritlevel.data.idx import read_idx
from spiritlevel.data.images import Images
from spiritlevel.data.raw import Raw, Stack, labels_of
from spiritlevel.errors import DataError

__all__ = ["FASHION_MNIST", "MNIST", "IdxSet", "read_idx_set"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class IdxSet:
    """Ten classes of grey images in four files."""

    name: str
    classes: tuple[str, ...]
    origin: str
    licence: str
    system: Path | None
    """Where a package of the operating system puts the files."""
    url: str
    sha256: Mapping[str, str]
    """By file name, gzipped."""


FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    origin="Fashion-MNIST: 70,000 pictures of articles of the shop Zalando (Han Xiao, Kashif "
    "Rasul, Roland Vollgraf, 2017)",
    licence="MIT, copyright 2017 Zalando SE",
    system=Path("/usr/share/datasets/fashion-mnist"),
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    sha256={
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)

MNIST = IdxSet(
    name="mnist",
    classes=tuple("0123456789"),
    origin="MNIST: 70,000 handwritten digits (Yann LeCun, Corinna Cortes, Christopher J. C. "
    "Burges, 1998)",
    licence="its makers name no terms",
    system=None,
    url="https://storage.googleapis.com/cvdf-datasets/mnist",
    sha256={
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)


def read_idx_set(which: IdxSet, path: str | None, *, seed: int, image_size: int | None) -> Images:
    """The set from the folder `path`; without one, from where `which` may lie, or by a download.

    Looked for in the folder of the system's package, then in NAME/ of the folder that
    SPIRITLEVEL_DATA names. Raises DataError and MissingExtra.
    """
    files = _found(which, path)
    return kept(
        [which.name, [[os.path.realpath(file), *stamp(file)] for file in files]],
        lambda: _raw(which, files, image_size),
        seed=seed,
        image_size=image_size,
    )


def _found(which: IdxSet, path: str | None) -> list[Path]:
    if path is not None:
        folder = Path(os.path.expanduser(path))
        if (files := _in(folder)) is None:
            raise DataError(
                f"got {path!r} for {which.name}, which does not hold all four files; wanted a "
                f"folder with {', '.join(_FILES)}, each as it is or gzipped (.gz); check the path"
            )
        return files
    places = [which.system] if which.system else []
    if data := os.environ.get("SPIRITLEVEL_DATA"):
        places.append(Path(os.path.expanduser(data)) / which.name)
    for place in places:
        if (files := _in(place)) is not None:
            return files
    return [
        download(f"{which.url}/{name}.gz", which.sha256[f"{name}.gz"], folder=which.name)
        for name in _FILES
    ]


def _in(folder: Path) -> list[Path] | None:
    """The four files in `folder`, if all are there."""
    files = []
    for name in _FILES:
        both = [folder / name, folder / f"{name}.gz"]
        if (file := next((file for file in both if os.path.isfile(file)), None)) is None:
            return None
        files.append(file)
    return files


def _raw(which: IdxSet, files: list[Path], image_size: int | None) -> Raw:
    train_x, train_y = _part(which, files[0], files[1])
    test_x, test_y = _part(which, files[2], files[3])
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"got images of {_size(train_x)} pixels in {str(files[0])!r} and of {_size(test_x)} "
            f"in {str(files[2])!r}; wanted one size; take both from one source"
        )
    return Raw(
        name=which.name,
        pixels=Stack(torch.cat([train_x, test_x]).unsqueeze(1), image_size),
        y=torch.cat([train_y, test_y]),
        n_train=len(train_y),
        classes=which.classes,
        origin=which.origin,
        licence=which.licence,
    )


def _part(which: IdxSet, images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DataError(
            f"got {len(x):,} images in {str(images)!r} and {len(y):,} labels in {str(labels)!r}; "
            "wanted one label for each image; take both from one source"
        )
    return x, labels_of(y, len(which.classes), repr(str(labels)))


def _size(x: Tensor) -> str:
    return f"{x.shape[2]}x{x.shape[1]}"
