"""Image files in, pixels out.

The files are anyone's: only the named formats are decoded, all sizes are read before any pixel is,
and whatever a decoder stumbles over is told with the file's name.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spiritlevel.data.images import MIN_SIDE, resize
from spiritlevel.data.raw import check_memory
from spiritlevel.errors import DataError, require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENDINGS", "File", "Files", "Member", "decoded"]

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class Member:
    """A file inside another one, such as an archive: what to call it, and its bytes on demand."""

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


File = Path | Member


class Files:
    """Image files as pixels of one size and colour. Raises DataError, which names the file.

    The side is `image_size`, else the shorter side of the most common size, and at least 32.
    One channel if all files are grey, else three.
    """

    def __init__(self, files: Sequence[File], image_size: int | None = None) -> None:
        sizes, self._grey, lossy = zip(*map(_header, files), strict=True)
        counts = Counter(sizes)
        common = max(counts, key=lambda size: (counts[size], size))
        side = image_size or max(MIN_SIDE, min(common))
        self._files = files
        self.shape = len(files), 1 if all(self._grey) else 3, side, side
        self._notes = _size_notes(counts, common, side)
        if any(lossy):
            self._notes.append(f"{sum(lossy):,} of {len(files):,} images read from JPEG: lossy")
        self._transparent = 0
        check_memory(self.shape)

    @property
    def notes(self) -> tuple[str, ...]:
        notes = list(self._notes)
        if self.shape[1] == 3 and (grey := sum(self._grey)):
            notes.append(f"{grey:,} grey among {len(self._files):,} images turned into RGB")
        if self._transparent:
            notes.append(f"transparent parts of {self._transparent:,} images put on white")
        return tuple(notes)

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        for row in rows.tolist():
            pixels, transparent = _pixels(self._files[row], "L" if self.shape[1] == 1 else "RGB")
            self._transparent += transparent
            yield resize(pixels.unsqueeze(0), self.shape[-1])


def decoded(path: File, channels: int, side: int) -> Tensor:
    """One file, grey or RGB, as `Files` has it: uint8 (channels, side, side). Raises DataError."""
    _header(path)
    pixels, _ = _pixels(path, "L" if channels == 1 else "RGB")
    return resize(pixels.unsqueeze(0), side)[0]


def _size_notes(counts: Counter[_Size], common: _Size, side: int) -> list[str]:
    width, height = common
    if len(counts) > 1:
        sizes = f"images of {len(counts):,} sizes, {width}x{height} pixels the most common,"
    elif common != (side, side):
        sizes = f"{width}x{height} pixels"
    else:
        return []
    return [f"{sizes} brought to {side}x{side} (bilinear)"]


def _header(path: File) -> tuple[_Size, bool, bool]:
    """The image's size as stored, whether it is grey and whether JPEG, with no pixel decoded."""
    with _opened(path) as image:
        size, mode, kind = image.size, image.mode, image.format
    if mode in ("I", "F") or mode.startswith("I;16"):
        raise DataError(
            f"got {str(path)!r} with more than 8 bits a channel; wanted 8; "
            "convert it, which settles what is black and what is white"
        )
    return size, mode in ("1", "L", "LA"), kind == "JPEG"


def _pixels(path: File, mode: str) -> tuple[Tensor, bool]:
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
def _opened(path: File) -> Iterator[Image.Image]:
    """The image, not yet decoded. Whatever goes wrong until it is closed becomes a DataError."""
    pil = require("PIL.Image", extra="study")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            source = path if isinstance(path, Path) else BytesIO(path.read())
            with pil.open(source, formats=_FORMATS) as image:
                yield image
    except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:
        raise DataError(
            f"got {str(path)!r} with more than {pil.MAX_IMAGE_PIXELS:,} pixels, which could fill "
            "the memory; wanted fewer; make the image smaller or remove it"
        ) from error
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        unknown = isinstance(error, pil.UnidentifiedImageError)
        raise DataError(
            f"got {str(path)!r}, which cannot be read as an image "
            f"({'of no known format' if unknown else error}); "
            "wanted a whole image file; repair or remove it"
        ) from error
