"""Image files in, one tensor out.

The files are anyone's: only the named formats are decoded, all sizes are read before any pixel is,
and whatever a decoder stumbles over is told with the file's name.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spiritlevel.data.images import MIN_SIDE, resize
from spiritlevel.errors import DataError, require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENDINGS", "decode"]

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MAX_BYTES = 2 * 1024**3
"""Of all pixels together. A run holds them in memory, and once more as float32: five times this."""

_Size = tuple[int, int]
"""(width, height) in pixels."""


def decode(files: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """All images in one size and colour, uint8 (N, C, S, S), and notes on what was done to them.

    S is the shorter side of the most common size, and at least 32. C is 1 if all files are grey,
    else 3. Raises DataError, which names the file, and MissingExtra.
    """
    sizes, grey = zip(*map(_header, files), strict=True)
    counts = Counter(sizes)
    common = max(counts, key=lambda size: (counts[size], size))
    side = max(MIN_SIDE, min(common))
    channels = 1 if all(grey) else 3
    _check_memory(len(files), channels, side)
    x = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
    transparent = 0
    for row, file in enumerate(files):
        pixels, was_transparent = _pixels(file, "L" if channels == 1 else "RGB")
        x[row] = resize(pixels.unsqueeze(0), side)[0]
        transparent += was_transparent
    notes = _size_notes(counts, common, side)
    if channels == 3 and any(grey):
        notes.append(f"{sum(grey):,} grey among {len(files):,} images turned into RGB")
    if transparent:
        notes.append(f"transparent parts of {transparent:,} images put on white")
    return x, tuple(notes)


def _check_memory(n: int, channels: int, side: int) -> None:
    if (total := n * channels * side**2) > _MAX_BYTES:
        raise DataError(
            f"got {n:,} images of {side}x{side} pixels, {total / 1024**3:.1f} GiB in memory; "
            f"wanted {_MAX_BYTES // 1024**3} GiB or less; make the images smaller or take fewer"
        )


def _size_notes(counts: Counter[_Size], common: _Size, side: int) -> list[str]:
    width, height = common
    if len(counts) > 1:
        sizes = f"images of {len(counts):,} sizes, {width}x{height} pixels the most common,"
    elif common != (side, side):
        sizes = f"{width}x{height} pixels"
    else:
        return []
    return [f"{sizes} brought to {side}x{side} (bilinear)"]


def _header(path: Path) -> tuple[_Size, bool]:
    """The image's size as stored and whether it is grey, without decoding its pixels."""
    with _opened(path) as image:
        size, mode = image.size, image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        raise DataError(
            f"got {str(path)!r} with more than 8 bits a channel; wanted 8; "
            "convert it, which settles what is black and what is white"
        )
    return size, mode in ("1", "L", "LA")


def _pixels(path: Path, mode: str) -> tuple[Tensor, bool]:
    """The image upright, uint8 (C, H, W), transparent parts on white; and whether it had any."""
    pil, ops = require("PIL.Image", extra="study"), require("PIL.ImageOps", extra="study")
    transparent = False
    with _opened(path) as file:
        image = ops.exif_transpose(file)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            transparent = image.getchannel("A").getextrema()[0] < 255
            image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
        array = np.array(image.convert(mode))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1), transparent


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, not yet decoded. Whatever goes wrong until it is closed becomes a DataError."""
    pil = require("PIL.Image", extra="study")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(path, formats=_FORMATS) as image:
                yield image
    except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:
        raise DataError(
            f"got {str(path)!r} with more than {pil.MAX_IMAGE_PIXELS:,} pixels, which could fill "
            "the memory; wanted fewer; make the image smaller or remove it"
        ) from error
    except (
        Exception
    ) as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        unknown = isinstance(error, pil.UnidentifiedImageError)
        raise DataError(
            f"got {str(path)!r}, which cannot be read as an image "
            f"({'of no known format' if unknown else error}); "
            "wanted a whole image file; repair or remove it"
        ) from error
