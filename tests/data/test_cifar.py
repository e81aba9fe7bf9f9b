from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from set_files import (
    CIFAR_BATCHES,
    cifar_arrays,
    cifar_batch,
    cifar_members,
    tar_member,
    write_cifar_folder,
    write_tar,
)

from spiritlevel.data import Images, load
from spiritlevel.data import cifar as room
from spiritlevel.errors import DataError

END = "wanted the batches as they are published; fetch them again"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(f"cifar10:{path}")
    return str(caught.value)


def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[bytes, int]]:
    return sorted(zip((image.numpy().tobytes() for image in x), y.tolist(), strict=True))


def assert_whole(images: Images) -> None:
    """All rows of the batches, each on its side with its label."""
    arrays = cifar_arrays()
    train, test = list(arrays.values())[:5], [arrays["test_batch"]]
    for x, y, part in (
        (images.train_x, images.train_y, train),
        (images.test_x, images.test_y, test),
    ):
        data = np.concatenate([data for data, _ in part]).reshape(-1, 3, 32, 32)
        labels = [label for _, labels in part for label in labels]
        assert rows(x, y) == rows(torch.from_numpy(data), torch.tensor(labels))


def test_the_folder_its_parent_and_the_archive_hold_the_same_images(tmp_path):
    folder = write_cifar_folder(tmp_path)
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", *cifar_members())
    found = [load(f"cifar10:{path}") for path in (folder, tmp_path, archive)]
    for images in found:
        assert_whole(images)
    assert len({images.fingerprint for images in found}) == 1
    assert found[0].classes[::9] == ("airplane", "truck")
    assert found[0].notes == ()
    assert "Krizhevsky" in found[0].origin


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_the_folder_that_the_variable_names(tmp_path, monkeypatch, name):
    if name.endswith(".gz"):
        write_tar(tmp_path / name, *cifar_members())
    else:
        write_cifar_folder(tmp_path)
    monkeypatch.setenv("SPIRITLEVEL_DATA", str(tmp_path))
    assert_whole(load("cifar10"))


def test_image_size(tmp_path):
    images = load(f"cifar10:{write_cifar_folder(tmp_path)}", image_size=16)
    assert images.train_x.shape == (100, 3, 16, 16)
    assert images.notes == ("32x32 pixels brought to 16x16 (bilinear)",)


# --- refused -----------------------------------------------------------------------------------


def test_a_path_that_does_not_hold_it(tmp_path):
    folder = write_cifar_folder(tmp_path)
    (folder / "data_batch_4").unlink()
    for path in (folder, tmp_path, tmp_path / "nowhere", "x" * 5000):
        assert refusal(path) == (
            f"got '{path}' for cifar10, which does not hold it; wanted cifar-10-batches-py with "
            "data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch, "
            "its parent folder, or cifar-10-python.tar.gz; check the path"
        )


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_batch_is_refused_and_not_run(tmp_path, cache):
    folder = write_cifar_folder(tmp_path)
    batch = folder / "data_batch_2"
    batch.write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "made")}, 2))
    assert refusal(folder) == (
        f"got {str(batch)!r}, which is not as the official ones are: it names posix.mkdir, "
        f"which could be called; {END}"
    )
    assert not (tmp_path / "made").exists()
    assert not cache.exists()


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def pickled(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize(
    "batch",
    [
        cifar_batch(np.zeros((4, 3071), np.uint8), [0] * 4),
        cifar_batch(np.zeros((4, 3072), np.uint8), [0] * 3),
        pickle.dumps({b"data": b"x" * 3072, b"labels": [1]}, 2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"1"]}, 2),
        pickle.dumps({b"labels": [1]}, 2),
        cifar_batch(np.zeros((1, 3072), np.uint8), [7]).replace(whole(7), pickled(2**70)),
        pickle.dumps([1], 2),
    ],
)
def test_a_batch_that_holds_something_else(tmp_path, batch):
    folder = write_cifar_folder(tmp_path)
    (folder / "test_batch").write_bytes(batch)
    assert refusal(folder) == (
        f"got {str(folder / 'test_batch')!r}, which does not hold n x 3072 bytes of data and n "
        f"labels; {END}"
    )


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range(tmp_path, label):
    folder = write_cifar_folder(tmp_path)
    batch = folder / "data_batch_1"
    batch.write_bytes(cifar_batch(np.zeros((3, 3072), np.uint8), [0, 1, label]))
    assert refusal(folder).startswith(
        f"got label {label} at row 2 of {str(batch)!r}, wanted 0 to 9"
    )


@pytest.mark.parametrize(
    ("fields", "name", "reason"),
    [
        ({}, "../evil", "leads out of its folder"),
        ({}, "cifar-10-batches-py/../../evil", "leads out of its folder"),
        ({}, "/etc/evil", "has an absolute path"),
        ({}, "C:evil", "has an absolute path"),
        ({}, "a\\b", "has a name that not all systems read alike"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link", "is a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "cifar-10-batches-py"}, "link", "is a link"),
        ({"type": tarfile.SYMTYPE, "linkname": "x"}, "cifar-10-batches-py/test_batch", "is a link"),
        ({"type": tarfile.FIFOTYPE}, "pipe", "is no ordinary file"),
        ({"type": tarfile.CHRTYPE}, "device", "is no ordinary file"),
    ],
)
def test_an_entry_that_is_not_a_plain_file_inside(tmp_path, fields, name, reason):
    path = write_tar(tmp_path / "c.tar.gz", tar_member(name, **fields), *cifar_members())
    assert refusal(path) == f"got '{path}/{name}', which {reason}; {END}".replace("\\", "\\\\")


def test_a_batch_that_stands_there_twice(tmp_path):
    members = cifar_members()
    path = write_tar(tmp_path / "c.tar.gz", *members, members[1])
    name = f"{path}/cifar-10-batches-py/data_batch_4"
    assert refusal(path) == f"got {name!r}, which stands there twice; {END}"


def test_a_batch_that_is_missing(tmp_path):
    path = write_tar(tmp_path / "c.tar.gz", *cifar_members()[:-1])
    assert refusal(path) == (
        f"got {str(path)!r}, which has no cifar-10-batches-py/data_batch_5; {END}"
    )


@pytest.mark.slow
def test_a_bomb(tmp_path, cache):
    """1 GiB of zeros in 1 MB, as an entry that is not even wanted."""
    path = tmp_path / "c.tar.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    info, _ = tar_member("cifar-10-batches-py/extra")
    info.size = 2**30
    parts = [packer.compress(info.tobuf())]
    parts += [packer.compress(bytes(2**20)) for _ in range(2**10)]
    path.write_bytes(b"".join(parts) + packer.flush())
    assert (
        refusal(path) == f"got {str(path)!r}, which unpacks to more than 536,870,912 bytes; {END}"
    )
    assert not cache.exists()


def test_a_batch_beyond_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_MAX_BATCH", 60_000)
    path = write_tar(tmp_path / "c.tar.gz", *cifar_members())
    assert "data_batch_4', which has more than 60,000 bytes" in refusal(path)
    folder = write_cifar_folder(tmp_path)
    assert "data_batch_1', which has more than 60,000 bytes" in refusal(folder)


@pytest.mark.parametrize("part", [0.3, 0.97])
def test_an_archive_that_is_cut_short(tmp_path, part, cache):
    path = write_tar(tmp_path / "c.tar.gz", *cifar_members())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert refusal(path).startswith(f"got {str(path)!r}, which cannot be unpacked (")
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["cut", "checksum", "pixels"])
def test_an_archive_whose_checksum_does_not_fit(tmp_path, damage, cache):
    """The checksum comes last, behind the end that the tar itself has."""
    path = write_tar(tmp_path / "c.tar.gz", *cifar_members())
    packed = bytearray(path.read_bytes())
    if damage == "cut":
        packed = packed[:-8]
    elif damage == "checksum":
        packed[-8] ^= 1
    else:
        tar = bytearray(gzip.decompress(packed))
        tar[5000] ^= 1
        packed = gzip.compress(tar)[:-8] + packed[-8:]
    path.write_bytes(packed)
    assert refusal(path).startswith(f"got {str(path)!r}, which cannot be unpacked (")
    assert not cache.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", gzip.compress(b"hello" * 300, mtime=0)],  # a test's name must not hold the time
    ids=["empty", "text", "gzip"],
)
def test_a_file_that_is_no_archive(tmp_path, content):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(content)
    assert refusal(path).startswith(f"got {str(path)!r}, which cannot be unpacked (")


def test_a_batch_that_is_a_pipe_is_not_waited_for(tmp_path):
    folder = write_cifar_folder(tmp_path)
    (folder / "data_batch_1").unlink()
    os.mkfifo(folder / "data_batch_1")
    assert "which does not hold it" in refusal(folder)


def test_the_batches_have_the_names_of_the_official_archive():
    assert room._BATCHES == CIFAR_BATCHES
