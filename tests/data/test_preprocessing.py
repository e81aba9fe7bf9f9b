"""What a run's weights tell of how images became its input, by honest and by hostile files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spiritlevel.data import Preprocessing, load, prepare
from spiritlevel.data.images import resize
from spiritlevel.errors import UsageError
from spiritlevel.models import read_metadata, save_weights

SOUND = {"size": 8, "mean": [0.5], "std": [0.25], "channels": 1, "classes": ["a", "b"]}


@pytest.fixture(scope="module")
def images():
    return load("digits")


@pytest.mark.parametrize("size", [32, 16, 10])
def test_it_makes_of_bytes_what_training_was_fed(images, size):
    prepared = prepare(images, size=size)
    found = Preprocessing.of(prepared, images).apply(images.test_x)
    assert torch.equal(found, prepared.test_x[:])


def test_smaller_images_are_enlarged(images):
    told = Preprocessing.of(prepare(images), images)
    small = images.test_x[:9, :, ::4, ::4].contiguous()
    assert torch.equal(told.apply(small), told.apply(resize(small, 32)))


def test_through_a_file_and_back(images, tmp_path):
    told = Preprocessing.of(prepare(images), images, "digits")
    save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors", preprocessing=told.to_dict())
    found = read_metadata(tmp_path / "w.safetensors")["preprocessing"]
    assert Preprocessing.from_dict(found) == told
    assert (found["data"], found["classes"][3]) == ("digits", "3")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 10**9}, "size is a whole number beyond all use"),
        ({"size": True}, "size is True"),
        ({"size": "8"}, "size is '8'"),
        ({"channels": 2}, "channels is 2"),
        ({"channels": 10**5000}, "channels is a whole number beyond"),
        ({"mean": [float("nan")]}, r"mean is a list of 1: \[nan\]"),
        ({"mean": [10**400]}, "mean is "),
        ({"mean": [0.5, 0.5]}, "mean is a list of 2"),
        ({"mean": 0.5}, "mean is 0.5"),
        ({"std": [0.0]}, "std is a list of 1"),
        ({"std": [float("inf")]}, "std is a list of 1"),
        ({"classes": []}, "classes is a list of 0"),
        ({"classes": ["a", 1]}, "classes is a list of 2"),
        ({"classes": "ab"}, "classes is 'ab'"),
        ({"data": 3}, "data is 3"),
    ],
)
def test_what_no_network_is_fed_is_not_told_and_not_saved(tmp_path, change, told):
    path = tmp_path / "w.safetensors"
    hostile = SOUND | change
    if change.get("channels") != 10**5000:  # Python writes and reads no number of so many digits
        save_file({"w": torch.zeros(1)}, path, {"preprocessing": json.dumps(hostile)})
        assert "preprocessing" not in read_metadata(path)
    for refuse in (
        lambda: Preprocessing.from_dict(hostile),
        lambda: save_weights(nn.Linear(2, 2), tmp_path / "no.safetensors", preprocessing=hostile),
    ):
        with pytest.raises(UsageError, match=told):
            refuse()
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("value", ["null", "[]", "3", '"' + "x" * 99, "[" * 100_000])
def test_what_is_no_dict_is_not_told(tmp_path, value):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"preprocessing": value})
    assert read_metadata(tmp_path / "w.safetensors") == {}


def test_a_pickle_has_no_room_for_it(tmp_path):
    with pytest.raises(UsageError, match=r"got a preprocessing .* ends in \.safetensors"):
        save_weights(nn.Linear(2, 2), tmp_path / "w.pth", preprocessing=SOUND)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 1, 8, 8), torch.float32),
        ((2, 3, 8, 8), torch.uint8),
        ((2, 1, 8, 16), torch.uint8),
        ((2, 1, 16, 8), torch.uint8),
        ((2, 1, 6, 8), torch.uint8),
        ((1, 8, 8), torch.uint8),
    ],
)
def test_what_is_no_square_image_of_its_channels_is_refused(shape, dtype):
    with pytest.raises(UsageError, match=r"wanted torch\.uint8 \(N, 1, S, S\)") as raised:
        Preprocessing.from_dict(SOUND).apply(torch.zeros(shape, dtype=dtype))
    assert f"got images {dtype} {shape}" in str(raised.value)
