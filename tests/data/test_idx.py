from __future__ import annotations

import gzip
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from set_files import idx

from spiritlevel.data.idx import read_idx
from spiritlevel.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def refusal(path: Path, axes: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, axes)
    return str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["x", "x.gz"])
@pytest.mark.parametrize("array", [IMAGES, IMAGES[0, 0]])
def test_the_bytes_arrive_in_their_shape(tmp_path, name, array):
    x = read_idx(written(tmp_path / name, idx(array)), array.ndim)
    assert np.array_equal(x.numpy(), array)


@pytest.mark.parametrize("name", ["x", "x.gz"])
@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "0 bytes"),
        (b"\0\0\x08", "3 bytes"),
        (idx(IMAGES[0]) + b"\0" * 8, "the first bytes 00 00 08 02"),
        (b"\0\0\x0d" + idx(IMAGES)[3:], "the first bytes 00 00 0d 03"),
    ],
)
def test_a_header_that_is_not_one_of_images(tmp_path, name, content, got):
    path = written(tmp_path / name, content)
    assert refusal(path) == (
        f"got {got} in {str(path)!r}; wanted idx data of uint8 with 3 axes; fetch the file again"
    )


@pytest.mark.parametrize("name", ["x", "x.gz"])
@pytest.mark.parametrize(("change", "got"), [(-1, "23"), (-24, "0"), (1, "more"), (9, "more")])
def test_bytes_that_are_missing_or_too_many(tmp_path, name, change, got):
    content = idx(IMAGES)
    content = content[:change] if change < 0 else content + b"\0" * change
    path = written(tmp_path / name, content)
    assert refusal(path) == (
        f"got {got} bytes after the header in {str(path)!r}; wanted 24, as it says; "
        "fetch the file again"
    )


@pytest.mark.parametrize(
    ("shape", "count"), [((0, 28, 28), "0"), ((2**31, 9, 9), "173,946,175,488")]
)
def test_a_header_that_claims_nothing_or_too_much(tmp_path, shape, count):
    path = written(tmp_path / "x.gz", struct.pack(">4I", 0x803, *shape))
    assert refusal(path) == (
        f"got a header for {count} bytes in {str(path)!r}; wanted 1 to 1,073,741,824; "
        "fetch the file again"
    )


def test_a_bomb_is_unpacked_no_further_than_its_header_says(tmp_path):
    """512 MiB of zeros in 500 kB: the peak of this process's memory stays where it was."""
    path = tmp_path / "x.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(idx(IMAGES))]
    parts += [packer.compress(bytes(2**20)) for _ in range(512)]
    path.write_bytes(b"".join(parts) + packer.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "got more bytes after the header" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not gzip at all", "Not a gzipped file (b'no')"),
        (gzip.compress(idx(IMAGES))[:-12], "ended before the end-of-stream marker"),
    ],
    ids=["no-gzip", "cut-short"],
)
def test_a_damaged_gzip_file(tmp_path, content, reason):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith("got a file that cannot be read (")
    assert reason in message
    assert message.endswith(f"in {str(path)!r}; wanted a whole one; fetch the file again")


def test_a_checksum_that_does_not_fit(tmp_path):
    path = tmp_path / "x.gz"
    content = bytearray(gzip.compress(idx(IMAGES)))
    content[-5] ^= 1  # of the CRC
    path.write_bytes(content)
    assert "CRC check failed" in refusal(path)
