"""Random crops and flips, on a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Moves", "crop_and_flip", "draw_moves"]


@dataclass(frozen=True)
class Moves:
    """How each image of a batch is moved, as `draw_moves` drew it; `moves[rows]` are some."""

    top: Tensor
    """Rows of the padded image above its crop: int64 (N,)."""
    left: Tensor
    flipped: Tensor
    """bool (N,)."""
    padding: int

    def __getitem__(self, rows: Tensor | slice) -> Moves:
        return Moves(self.top[rows], self.left[rows], self.flipped[rows], self.padding)

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        """uint8 or float32 in, a new tensor of the same dtype and device out."""
        n, channels, height, width = x_NCHW.shape
        device = x_NCHW.device
        rows = self.top[:, None] + torch.arange(height)
        columns = torch.arange(width).expand(n, width)
        columns = self.left[:, None] + torch.where(
            self.flipped[:, None], width - 1 - columns, columns
        )
        source = rows.unsqueeze(2) * (width + 2 * self.padding) + columns.unsqueeze(1)
        index = source.view(n, 1, -1).to(device).expand(-1, channels, -1)
        padded = F.pad(x_NCHW, (self.padding,) * 4)
        return padded.flatten(2).gather(2, index).view(n, channels, height, width)


def draw_moves(n: int, *, generator: torch.Generator, padding: int = 4, flip: bool = True) -> Moves:
    """For n images, from a CPU's generator."""
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator)
    flipped = torch.randint(2, (n,), generator=generator, dtype=torch.bool)
    return Moves(top, left, flipped if flip else torch.zeros_like(flipped), padding)


def crop_and_flip(x_NCHW: Tensor, *, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image moved by up to `padding` pixels along both axes, and mirrored every other time.

    That is: zeros around it, a crop of the old size at a random place, flipped left to right with
    probability 1/2 (He et al. 2016, section 4.2). Standardised images have their mean at zero.
    uint8 or float32 in, a new tensor of the same dtype out; all draws are from `generator`.
    """
    return draw_moves(len(x_NCHW), generator=generator, padding=padding)(x_NCHW)
