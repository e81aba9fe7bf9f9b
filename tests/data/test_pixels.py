from __future__ import annotations

import pytest
import torch

from spiritlevel.data import Pixels
from spiritlevel.data import pixels as room
from spiritlevel.data.pixels import moments

MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ((0.2, 0.5, 0.4), (0.3, 0.1, 0.2)))


def some_bytes(n: int = 40, channels: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    shape = (n, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def by_hand(x: torch.Tensor, size: int) -> torch.Tensor:
    """Each value on its own, in float64: the mean over its window, less the mean, over the s.d."""
    n, channels, side, _ = x.shape
    edges = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
    out = torch.empty(n, channels, size, size, dtype=torch.float64)
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            out[:, :, i, j] = x[:, :, top:bottom, left:right].double().mean((2, 3)) / 255
    return (out - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


@pytest.mark.parametrize("size", [32, 16, 13, 1])
def test_what_is_read_is_standardised_and_shrunk(size):
    x = some_bytes()
    pixels = Pixels(x, size, MEAN, STD)
    assert pixels.shape == (40, 3, size, size)
    assert len(pixels) == 40
    assert pixels[:].dtype == pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[:].double(), by_hand(x, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 13])
@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([7, 0, 7]),
        torch.tensor([], dtype=torch.int64),
        slice(3, 9),
        slice(None, None, 4),
    ],
)
def test_rows_are_read_as_from_a_tensor_bit_for_bit(rows, size):
    pixels = Pixels(some_bytes(), size, MEAN, STD)
    assert torch.equal(pixels[rows], pixels[:][rows])


def test_a_mask_picks_rows():
    pixels = Pixels(some_bytes(), 32)
    mask = torch.arange(40) % 3 == 0
    assert torch.equal(pixels[mask], pixels[:][mask])


def test_each_read_is_a_tensor_of_its_own():
    x = some_bytes()
    before, pixels = x.clone(), Pixels(x, 32)
    pixels[:5].zero_()
    assert torch.equal(x, before)
    assert pixels[:5].abs().sum() > 0


@pytest.mark.parametrize("size", [32, 13])
def test_moments_are_the_same_in_parts(size, monkeypatch):
    pixels = Pixels(some_bytes(37), size)
    whole = moments(pixels)
    x = pixels[:].double()
    for got, wanted in zip(whole, (x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-7, rtol=0)
    monkeypatch.setattr(room, "_CHUNK", 4 * 3 * size**2 * 5)  # five images at a time, then two
    for got, wanted in zip(moments(pixels), whole, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-14, rtol=0)
