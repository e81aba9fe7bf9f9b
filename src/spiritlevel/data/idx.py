"""Files of the idx format, in which MNIST and Fashion-MNIST come: plain or gzipped.

Big-endian: two zero bytes, the type (8: uint8), the number of axes, each axis as uint32, the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from spiritlevel.errors import DataError

__all__ = ["read_idx"]

_MAX_BYTES = 1024**3
"""Of one file's contents; MNIST's largest has 47 million."""


def read_idx(path: Path, axes: int) -> Tensor:
    """The uint8 tensor of `axes` axes in the file, unpacked no further than its header says.

    Raises DataError.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _header(path, file.read(4 + 4 * axes), axes)
            count = math.prod(shape)
            if not 1 <= count <= _MAX_BYTES:
                raise _unusable(path, f"a header for {count:,} bytes", f"1 to {_MAX_BYTES:,}")
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, f"a file that cannot be read ({error})", "a whole one") from error
    if len(content) != count:
        more = "more" if len(content) > count else f"{len(content):,}"
        raise _unusable(path, f"{more} bytes after the header", f"{count:,}, as it says")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def _header(path: Path, header: bytes, axes: int) -> tuple[int, ...]:
    wanted = f"idx data of uint8 with {axes} axes"
    if len(header) != 4 + 4 * axes:
        raise _unusable(path, f"{len(header)} bytes", wanted)
    magic, *shape = struct.unpack(f">{1 + axes}I", header)
    if magic != 0x800 + axes:
        raise _unusable(path, f"the first bytes {header[:4].hex(' ')}", wanted)
    return tuple(shape)


def _unusable(path: Path, got: str, wanted: str) -> DataError:
    return DataError(f"got {got} in {str(path)!r}; wanted {wanted}; fetch the file again")
