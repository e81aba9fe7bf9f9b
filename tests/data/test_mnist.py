from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from set_files import IDX_FILES, idx, write_idx_set

from spiritlevel.data import load
from spiritlevel.data.mnist import FASHION_MNIST, MNIST, read_idx_set
from spiritlevel.errors import DataError

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def refusal(folder: Path, name: str = "mnist") -> str:
    with pytest.raises(DataError) as caught:
        load(f"{name}:{folder}")
    return str(caught.value)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_keep_their_labels_and_their_part(tmp_path, name, ending):
    write_idx_set(tmp_path, ending=ending)
    images = load(f"{name}:{tmp_path}")
    assert images.name == name
    assert images.train_x.shape == (40, 1, 32, 32)
    assert images.test_x.shape == (20, 1, 32, 32)
    for x, y, n in ((images.train_x, images.train_y, 40), (images.test_x, images.test_y, 20)):
        numbers = x[:, 0, 16, 16].long()
        assert sorted(numbers.tolist()) == list(range(n))
        assert torch.equal(numbers % 10, y)
    assert images.train_y.tolist() != sorted(images.train_y.tolist())
    assert images.notes == ("28x28 pixels brought to 32x32 (bilinear)",)


def test_image_size_and_seed(tmp_path):
    arrays = write_idx_set(tmp_path)
    images = load(f"mnist:{tmp_path}", image_size=28)
    assert images.notes == ()
    row = int(images.train_x[0, 0, 16, 16])
    assert np.array_equal(images.train_x[0, 0].numpy(), arrays[IDX_FILES[0]][row])
    assert load(f"mnist:{tmp_path}", image_size=8).size == 8
    assert load(f"mnist:{tmp_path}", image_size=28, seed=1).fingerprint != images.fingerprint


def test_a_reader_is_told_makers_and_terms(tmp_path):
    write_idx_set(tmp_path)
    assert "Zalando" in load(f"fashion-mnist:{tmp_path}").origin
    assert load(f"fashion-mnist:{tmp_path}").licence == "MIT, copyright 2017 Zalando SE"
    assert "LeCun" in load(f"mnist:{tmp_path}").origin
    assert load(f"fashion-mnist:{tmp_path}").classes[9] == "Ankle boot"


def test_the_folder_that_the_variable_names(tmp_path, monkeypatch):
    write_idx_set(tmp_path / "mnist")
    monkeypatch.setenv("SPIRITLEVEL_DATA", str(tmp_path))
    assert len(load("mnist").train_y) == 40


def test_a_package_of_the_system_comes_first(tmp_path, monkeypatch):
    write_idx_set(tmp_path / "system", train=30)
    write_idx_set(tmp_path / "mnist")
    monkeypatch.setenv("SPIRITLEVEL_DATA", str(tmp_path))
    which = replace(MNIST, system=tmp_path / "system")
    assert len(read_idx_set(which, None, seed=0, image_size=None).train_y) == 30


@pytest.mark.skipif(
    not INSTALLED.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_as_debian_has_it():
    assert FASHION_MNIST.system == INSTALLED
    images = load("fashion-mnist", image_size=28)
    assert images.train_x.shape == (60_000, 1, 28, 28)
    assert torch.bincount(images.train_y).tolist() == [6000] * 10
    assert torch.bincount(images.test_y).tolist() == [1000] * 10
    assert images.train_x.double().mean() / 255 == pytest.approx(0.2860, abs=1e-4)


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [*IDX_FILES, None])
def test_a_path_without_all_four_files(tmp_path, missing):
    folder = tmp_path / "set"
    if missing:
        write_idx_set(folder)
        (folder / f"{missing}.gz").unlink()
    assert refusal(folder) == (
        f"got '{folder}' for mnist, which does not hold all four files; wanted a folder with "
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte, each as it is or gzipped (.gz); check the path"
    )


def put(folder: Path, which: int, array: np.ndarray) -> Path:
    path = folder / f"{IDX_FILES[which]}.gz"
    path.write_bytes(gzip.compress(idx(array)))
    return path


def test_labels_that_are_not_one_for_each_image(tmp_path):
    write_idx_set(tmp_path)
    labels = put(tmp_path, 1, np.zeros(39))
    images = tmp_path / f"{IDX_FILES[0]}.gz"
    assert refusal(tmp_path) == (
        f"got 40 images in {str(images)!r} and 39 labels in {str(labels)!r}; "
        "wanted one label for each image; take both from one source"
    )


def test_a_label_out_of_range(tmp_path):
    write_idx_set(tmp_path)
    labels = put(tmp_path, 3, np.array([0] * 7 + [10] + [0] * 12))
    assert refusal(tmp_path) == (
        f"got label 10 at row 7 of {str(labels)!r}, wanted 0 to 9; repair or replace the file"
    )


def test_one_class_only(tmp_path, cache):
    write_idx_set(tmp_path)
    put(tmp_path, 1, np.full(40, 3))
    assert refusal(tmp_path) == (
        "got one class, '3', to train on in mnist; wanted two or more classes; add images"
    )
    assert not cache.exists()


def test_two_parts_of_unlike_size(tmp_path):
    write_idx_set(tmp_path)
    test = put(tmp_path, 2, np.zeros((20, 30, 28)))
    train = tmp_path / f"{IDX_FILES[0]}.gz"
    assert refusal(tmp_path) == (
        f"got images of 28x28 pixels in {str(train)!r} and of 28x30 in {str(test)!r}; "
        "wanted one size; take both from one source"
    )
