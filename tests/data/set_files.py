"""Published sets made small: idx files, CIFAR's batches as Python 2 wrote them, archives."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(
    folder: Path, *, train: int = 40, test: int = 20, side: int = 28, ending: str = ".gz"
) -> dict[str, np.ndarray]:
    """Labels 0, 1, ... 9, 0, ...; image i of a part is filled with i, its first pixel is 255."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for n in (train, test):
        images = np.zeros((n, side, side), np.uint8) + np.arange(n, dtype=np.uint8)[:, None, None]
        images[:, 0, 0] = 255
        arrays += [images, np.arange(n, dtype=np.uint8) % 10]
    for name, array in zip(IDX_FILES, arrays, strict=True):
        content = idx(array)
        (folder / f"{name}{ending}").write_bytes(
            gzip.compress(content, 1) if ending == ".gz" else content
        )
    return dict(zip(IDX_FILES, arrays, strict=True))


def cifar_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """Protocol 2, instruction by instruction: strings are Python 2's, the array numpy's of then."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    shape = whole(data.shape[0]) + whole(data.shape[1]) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x02"
        b"(K\x01" + shape + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89" + text(data.tobytes()) + b"tb"
    )
    names = b"](" + b"".join(text(b"photo_%d.png" % i) for i in range(len(labels))) + b"e"
    fields = {
        b"batch_label": text(b"training batch 1 of 5"),
        b"labels": b"](" + b"".join(map(whole, labels)) + b"e",
        b"data": array,
        b"filenames": names,
    }
    return (
        b"\x80\x02}q\x00(" + b"".join(text(name) + value for name, value in fields.items()) + b"u."
    )


def cifar_arrays(n: int = 20) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Of each batch: noise uint8 (n, 3072) and labels 0 to 9 in turn."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (n, 3072), dtype=np.uint8), [i % 10 for i in range(n)])
        for name in CIFAR_BATCHES
    }


def write_cifar_folder(parent: Path, n: int = 20) -> Path:
    folder = parent / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (data, labels) in cifar_arrays(n).items():
        (folder / name).write_bytes(cifar_batch(data, labels))
    (folder / "readme.html").write_text("<p>")
    return folder


def tar_member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar_members(n: int = 20) -> list[tuple[tarfile.TarInfo, bytes]]:
    """In another order than that of the batches, as in the official archive."""
    members = [
        tar_member(f"cifar-10-batches-py/{name}", cifar_batch(*arrays))
        for name, arrays in cifar_arrays(n).items()
    ]
    folder = tar_member("cifar-10-batches-py", type=tarfile.DIRTYPE, mode=0o755)
    return [folder, members[3], members[5], *members[:3], members[4]]
