"""Random crops and flips, on a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["crop_and_flip"]


def crop_and_flip(x_NCHW: Tensor, *, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image moved by up to `padding` pixels along both axes, and mirrored every other time.

    That is: zeros around it, a crop of the old size at a random place, flipped left to right with
    probability 1/2 (He et al. 2016, section 4.2). Standardised images have their mean at zero.
    uint8 or float32 in, a new tensor of the same dtype out; all draws are from `generator`.
    """
    n, channels, height, width = x_NCHW.shape
    top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    flipped = torch.randint(2, (n, 1), generator=generator, dtype=torch.bool)
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = left + torch.where(flipped, width - 1 - columns, columns)
    source = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)
    index = source.view(n, 1, -1).expand(-1, channels, -1)
    padded = F.pad(x_NCHW, (padding,) * 4)
    return padded.flatten(2).gather(2, index).view(n, channels, height, width)
