"""Parquet files as Hugging Face writes them, and as others do; in a folder on this machine."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spiritlevel.data import load
from spiritlevel.errors import DataError

NAMES = ["cat", "dog"]


def png(value: int, size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, 0)).save(file, "png")
    return file.getvalue()


def cells(values: list[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(value), "path": f"{value}.png"} for value in values]


def write_plain(path: Path, **columns: list[Any]) -> Path:
    """Without a word on what the columns are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_typed(path: Path, image: str, label: str, values: list[int], labels: list[int]) -> Path:
    """With Hugging Face's features: an Image and a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            label: datasets.ClassLabel(names=NAMES),
            image: datasets.Image(),
        }
    )
    rows = {"id": list(range(len(values))), label: labels, image: cells(values)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def numbers(x: torch.Tensor) -> list[int]:
    return x[:, 0, 16, 16].tolist()


def assert_all_there(images: Any) -> None:
    """Values 0 to 9 to train on, 100 to 105 to test on; odd ones are dogs."""
    assert sorted(numbers(images.train_x)) == list(range(10))
    assert sorted(numbers(images.test_x)) == list(range(100, 106))
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert [value % 2 for value in numbers(x)] == y.tolist()


TRAIN, TEST = list(range(10)), list(range(100, 106))


def odd(values: list[int]) -> list[int]:
    return [value % 2 for value in values]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train.parquet", "validation.parquet"),
        ("train.parquet", "val-0.parquet"),
    ],
)
def test_splits_by_their_names(tmp_path, train, test):
    write_typed(tmp_path / train, "img", "label", TRAIN, odd(TRAIN))
    write_typed(tmp_path / test, "img", "label", TEST, odd(TEST))
    images = load(f"hf:{tmp_path}")
    assert_all_there(images)
    assert images.classes == ("cat", "dog")
    assert images.name == f"hf:{tmp_path.name}"
    assert "column 'img', labels in 'label'" in images.origin


def test_test_files_come_before_validation_files(tmp_path):
    for name, values in (("train", TRAIN), ("test", TEST), ("validation", [200, 201])):
        write_typed(tmp_path / f"{name}.parquet", "img", "label", values, odd(values))
    assert_all_there(load(f"hf:{tmp_path}"))


def test_a_split_in_two_files(tmp_path):
    write_typed(tmp_path / "train-0.parquet", "img", "label", TRAIN[:4], odd(TRAIN[:4]))
    write_typed(tmp_path / "train-1.parquet", "img", "label", TRAIN[4:], odd(TRAIN[4:]))
    write_typed(tmp_path / "test-0.parquet", "img", "label", TEST, odd(TEST))
    assert_all_there(load(f"hf:{tmp_path}"))


def test_without_a_test_file_a_fifth_of_each_class_is_drawn(tmp_path):
    write_typed(tmp_path / "all.parquet", "img", "label", TRAIN, odd(TRAIN))
    images = load(f"hf:{tmp_path}")
    assert (len(images.train_y), len(images.test_y)) == (8, 2)
    assert sorted(images.test_y.tolist()) == [0, 1]
    assert load(f"hf:{tmp_path}", seed=1).fingerprint != images.fingerprint


@pytest.mark.parametrize(("image", "label"), [("picture", "kind"), ("image", "labels")])
def test_columns_by_their_type_or_their_usual_name(tmp_path, image, label):
    write_typed(tmp_path / "train.parquet", image, label, TRAIN, odd(TRAIN))
    write_typed(tmp_path / "test.parquet", image, label, TEST, odd(TEST))
    assert_all_there(load(f"hf:{tmp_path}"))


@pytest.mark.parametrize("labels", [[7, 30], ["a cat", "dog"]])
@pytest.mark.parametrize("bare", [False, True])
def test_plain_columns_and_their_labels_as_text(tmp_path, labels, bare):
    for name, values in (("train", TRAIN), ("test", TEST)):
        rows = cells(values)
        write_plain(
            tmp_path / f"{name}.parquet",
            image=[row["bytes"] for row in rows] if bare else rows,
            label=[labels[value % 2] for value in values],
        )
    images = load(f"hf:{tmp_path}")
    assert_all_there(images)
    assert images.classes == tuple(map(str, labels))


def test_mixed_sizes_are_resized_and_noted(tmp_path):
    pictures = [png(i, (40, 40) if i < 7 else (50, 60)) for i in TRAIN]
    write_plain(tmp_path / "all.parquet", image=pictures, label=odd(TRAIN))
    images = load(f"hf:{tmp_path}")
    assert images.size == 40
    assert images.notes == (
        "images of 2 sizes, 40x40 pixels the most common, brought to 40x40 (bilinear)",
    )
    assert load(f"hf:{tmp_path}", image_size=16).size == 16


def test_nothing_is_written(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_typed(tmp_path / "set" / "all.parquet", "img", "label", TRAIN, odd(TRAIN))
    load(f"hf:{tmp_path / 'set'}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.parquet", "set"]
    assert not cache.exists()


@pytest.mark.skipif(
    "SPIRITLEVEL_CIFAR10" not in os.environ, reason="SPIRITLEVEL_CIFAR10 names no folder of parquet"
)
def test_cifar10_as_parquet():
    images = load(f"hf:{os.environ['SPIRITLEVEL_CIFAR10']}")
    assert images.train_x.shape == (50_000, 3, 32, 32)
    assert torch.bincount(images.train_y).tolist() == [5000] * 10
    assert torch.bincount(images.test_y).tolist() == [1000] * 10
    assert images.classes[::9] == ("airplane", "truck")
    assert images.train_x.double().mean() / 255 == pytest.approx(0.4734, abs=2e-3)


# --- refused -----------------------------------------------------------------------------------


def refusal(name: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        load(f"hf:{name}")
    return str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "", "a/b/c", "a b", "a/b@"])
def test_a_path_that_is_not_there(name):
    assert refusal(name) == (
        f"got {name!r} for hf, which does not exist; wanted a folder of parquet files or the name "
        "of a data set on the Hugging Face hub; check the path"
    )


def test_a_file_where_a_folder_is_wanted(tmp_path):
    path = write_plain(tmp_path / "a.parquet", label=[1])
    assert refusal(path).startswith(f"got {str(path)!r} for hf, which is a file; wanted a folder")


def test_a_folder_without_parquet(tmp_path):
    (tmp_path / ".hidden").mkdir()
    write_plain(tmp_path / ".hidden" / "train.parquet", label=[1])
    (tmp_path / "train.py").write_text("raise SystemExit")
    assert refusal(tmp_path) == (
        f"got {str(tmp_path)!r} without a parquet file; wanted train.parquet and test.parquet, "
        "or any names with train and test in front; check the path"
    )


@pytest.mark.parametrize(
    ("columns", "what", "wanted"),
    [
        ({"x": [b""], "label": [0]}, "images", "'img' or 'image'"),
        ({"img": [b""], "y": [0]}, "labels", "'label' or 'labels'"),
    ],
)
def test_a_table_without_the_columns(tmp_path, columns, what, wanted):
    write_plain(tmp_path / "train.parquet", **columns)
    named = ", ".join(map(repr, columns))
    assert refusal(tmp_path) == (
        f"got {str(tmp_path)!r} with the columns {named}, none with {what}; "
        f"wanted {wanted}; rename the column"
    )


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_a_file_that_is_no_parquet(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"got {str(tmp_path)!r}, whose train files cannot be read (")
    assert message.endswith("wanted whole parquet files; fetch them again")


def test_a_parquet_file_cut_short(tmp_path):
    path = write_typed(tmp_path / "train.parquet", "img", "label", TRAIN, odd(TRAIN))
    path.write_bytes(path.read_bytes()[:-20])
    assert "whose train files cannot be read (" in refusal(tmp_path)


def test_a_broken_image_is_named_by_its_row(tmp_path):
    rows = [png(1), png(2), np.random.default_rng(0).bytes(50), png(3)]
    write_plain(tmp_path / "train.parquet", img=rows, label=[0, 1, 0, 1])
    assert refusal(tmp_path) == (
        f"got '{tmp_path}: train row 2', which cannot be read as an image (of no known format); "
        "wanted a whole image file; repair or remove it"
    )


def test_an_image_cut_short_is_named_by_its_row(tmp_path):
    write_plain(tmp_path / "train.parquet", img=[png(i) for i in range(4)], label=[0, 0, 1, 1])
    write_plain(tmp_path / "test.parquet", img=[png(1), png(2)[:-30]], label=[0, 1])
    assert refusal(tmp_path).startswith(f"got '{tmp_path}: test row 1', which cannot be read")


@pytest.mark.parametrize("cell", [{"bytes": None, "path": "/etc/passwd"}, None])
def test_a_path_in_place_of_bytes_is_not_followed(tmp_path, cell):
    write_plain(tmp_path / "train.parquet", img=[*cells([1, 2]), cell], label=[0, 1, 0])
    assert refusal(tmp_path) == (
        f"got row 2 of the train images of '{tmp_path}' without the bytes of an image file; "
        "wanted them in the table; a path is not followed"
    )


def test_a_row_without_a_label(tmp_path):
    write_plain(tmp_path / "train.parquet", img=cells([1, 2, 3]), label=[0, 1, None])
    assert refusal(tmp_path) == (
        f"got labels in '{tmp_path}' that are not all whole numbers or all text; "
        "wanted one label a row; repair the table"
    )


def test_a_label_without_a_name(tmp_path):
    write_typed(tmp_path / "train.parquet", "img", "label", TRAIN, odd(TRAIN))
    write_typed(tmp_path / "test.parquet", "img", "label", TEST, [-1] * 6)  # -1: not told
    assert refusal(tmp_path) == f"got label -1 in '{tmp_path}', wanted 0 to 1; repair the table"


def test_one_class_only(tmp_path):
    write_typed(tmp_path / "train.parquet", "img", "label", TRAIN, [1] * 10)
    assert refusal(tmp_path) == (
        f"got one class, 'dog', to train on in hf:{tmp_path.name}; "
        "wanted two or more classes; add images"
    )
