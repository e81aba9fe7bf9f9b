from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spiritlevel.data import crop_and_flip


def noise(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(n))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates(image: Tensor, padding: int) -> dict[tuple[int, int, bool], Tensor]:
    """Every crop of one image (C, H, W), pixel by pixel: (down, right, mirrored) -> image."""
    channels, height, width = image.shape
    large = image.new_zeros(channels, height + 2 * padding, width + 2 * padding)
    large[:, padding : padding + height, padding : padding + width] = image
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = large[:, top : top + height, left : left + width]
            found[top, left, False] = crop
            found[top, left, True] = crop[:, :, range(width - 1, -1, -1)]
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("shape", "padding"), [((3, 32, 32), 4), ((1, 7, 5), 2), ((2, 8, 8), 0)])
def test_each_image_is_one_of_its_own_crops(dtype, shape, padding):
    x = noise(20, *shape).to(dtype)
    out = crop_and_flip(x, generator=seeded(0), padding=padding)
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    for image, result in zip(x, out, strict=True):
        same = [torch.equal(result, crop) for crop in candidates(image, padding).values()]
        assert sum(same) == 1


def test_places_and_flips_are_drawn_evenly_and_apart_from_each_other():
    """4,050 images, 18 outcomes of 225 each: chi-squared of 17 degrees stays below 40 (p = 0.001).

    One image many times, so that the outcome can be read off.
    """
    image = noise(1, 1, 3, 3)
    out = crop_and_flip(image.expand(4050, -1, -1, -1), generator=seeded(1), padding=1)
    kinds = torch.stack(list(candidates(image[0], 1).values()))
    hits = (out.unsqueeze(1) == kinds).flatten(2).all(2)
    assert (hits.sum(1) == 1).all()
    counts = hits.sum(0).double()
    assert ((counts - 225) ** 2 / 225).sum() < 40


def test_the_draws_are_the_generators_alone():
    x, before = noise(30), torch.get_rng_state()
    out = crop_and_flip(x, generator=seeded(3))
    assert torch.equal(out, crop_and_flip(x, generator=seeded(3)))
    assert not torch.equal(out, crop_and_flip(x, generator=seeded(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_goes_on_from_batch_to_batch():
    x, generator = noise(30), seeded(3)
    assert not torch.equal(
        crop_and_flip(x, generator=generator), crop_and_flip(x, generator=generator)
    )


def test_the_batch_stays_as_it_was_also_in_strided_memory():
    x = noise(9)
    strided = x.to(memory_format=torch.channels_last)
    out = crop_and_flip(x, generator=seeded(3))
    assert torch.equal(crop_and_flip(strided, generator=seeded(3)), out)
    assert torch.equal(x, noise(9))
