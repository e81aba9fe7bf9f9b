from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritlevel.data import batches, prepare
from spiritlevel.errors import UsageError


def random_images(n: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [None, 16, 13, 1])
def test_training_images_have_mean_0_and_deviation_1_in_each_channel(as_images, channels, size):
    x = random_images(20, channels, 32)
    x[:, 0] //= 4  # channels of unlike brightness
    prepared = prepare(as_images(x), size=size)
    assert prepared.train_x.dtype == torch.float32
    assert prepared.train_x.shape == (20, channels, size or 32, size or 32)
    std, mean = torch.std_mean(prepared.train_x[:].double(), (0, 2, 3), correction=0)
    assert mean.tolist() == pytest.approx([0] * channels, abs=1e-5)
    assert std.tolist() == pytest.approx([1] * channels, abs=1e-5)


def test_test_images_are_scaled_by_what_the_training_images_say(as_images):
    train, test = random_images(8, 3, 32), random_images(5, 3, 32) // 2
    prepared = prepare(as_images(train, test))
    mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in (prepared.mean, prepared.std))
    assert torch.allclose(prepared.test_x[:] * std + mean, test / 255, atol=1e-6)
    naive = (train / 255).double()
    assert prepared.mean == pytest.approx([naive[:, c].mean().item() for c in range(3)], abs=1e-7)
    assert prepared.std == pytest.approx(
        [naive[:, c].std(correction=0).item() for c in range(3)], abs=1e-7
    )


def test_shrinking_to_half_is_the_mean_of_two_by_two(as_images):
    x = random_images(3, 1, 32)
    prepared = prepare(as_images(x), size=16, standardise=False)
    naive = (x / 255).view(3, 1, 16, 2, 16, 2).mean((3, 5))
    assert torch.allclose(prepared.train_x[:], naive, atol=1e-7)


def test_without_standardising_pixels_are_their_values_over_255(as_images):
    x = random_images(3, 3, 32)
    prepared = prepare(as_images(x), standardise=False)
    assert torch.equal(prepared.train_x[:], x / 255)
    assert prepared.mean == prepare(as_images(x)).mean


def test_labels_and_shapes_are_handed_on(as_images):
    images = as_images(random_images(6, 3, 40), random_images(4, 3, 40))
    prepared = prepare(images, size=20)
    assert (prepared.num_classes, prepared.channels, prepared.size) == (2, 3, 20)
    assert torch.equal(prepared.train_y, images.train_y)
    assert torch.equal(prepared.test_y, images.test_y)


def test_the_images_stay_as_they_were(as_images):
    images = as_images(random_images(6, 1, 32))
    before = images.fingerprint
    prepare(images)
    assert images.fingerprint == before


@pytest.mark.parametrize("size", [None, 16, 7])
@pytest.mark.parametrize("value", [0, 51, 77, 255])
def test_a_constant_channel_becomes_zero_not_nan(as_images, value, size):
    x = random_images(50, 3, 32)
    x[:, 1] = value
    prepared = prepare(as_images(x), size=size)
    assert prepared.train_x[:][:, 1].abs().max() < 1e-6
    assert prepared.train_x[:].isfinite().all()
    assert prepared.mean[1] == pytest.approx(value / 255)
    assert prepared.std[1] < 1e-6


def test_a_mean_far_above_the_deviation(as_images):
    """One pixel of 50 * 32 * 32 differs by one step: the deviation is 1/255 * sqrt(p(1 - p))."""
    x = torch.full((50, 1, 32, 32), 254, dtype=torch.uint8)
    x[0, 0, 0, 0] = 255
    p = 1 / x.numel()
    assert prepare(as_images(x)).std[0] == pytest.approx((p * (1 - p)) ** 0.5 / 255, rel=1e-3)


def test_one_image_and_strided_memory(as_images):
    x = random_images(1, 3, 32)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(prepare(as_images(strided)).train_x[:], prepare(as_images(x)).train_x[:])


@pytest.mark.parametrize("size", [0, -1, 33])
def test_a_size_out_of_range_is_refused(as_images, size):
    with pytest.raises(UsageError) as caught:
        prepare(as_images(random_images(2, 1, 32)), size=size)
    assert str(caught.value) == (
        f"got size {size}, wanted 1 to 32, the pixels a side of made; "
        "images can be shrunk, not enlarged"
    )


def drawn(n: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [rows.tolist() for rows in batches(n, batch_size, steps, generator=generator)]


@st.composite
def plans(draw):
    n = draw(st.integers(1, 60))
    return n, draw(st.integers(1, n)), draw(st.integers(0, 50)), draw(st.integers(0, 2**32))


@settings(deadline=None)
@given(plans())
def test_batches_are_whole_and_no_epoch_sees_a_row_twice(plan):
    n, batch_size, steps, _ = plan
    result = drawn(*plan)
    assert len(result) == steps
    assert all(len(rows) == batch_size for rows in result)
    per_epoch = n // batch_size
    for start in range(0, steps, per_epoch):
        epoch = [row for rows in result[start : start + per_epoch] for row in rows]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(n))


@settings(deadline=None)
@given(plans())
def test_batches_are_the_same_for_the_same_seed(plan):
    assert drawn(*plan) == drawn(*plan)


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    first, second = drawn(50, 50, 2, seed=0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert drawn(50, 50, 1, seed=1)[0] != first


def test_batches_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    drawn(10, 3, 7, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [-1, 0, 11])
def test_a_batch_size_out_of_range_is_refused_at_the_call(batch_size):
    with pytest.raises(UsageError) as caught:
        batches(10, batch_size, 1, generator=torch.Generator())
    assert str(caught.value) == (
        f"got batch size {batch_size}, wanted 1 to 10, the number of training images; "
        "take a smaller batch or more images"
    )


def test_a_given_mean_and_deviation_replace_the_measured_ones(as_images):
    x = random_images(6, 3, 32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    prepared = prepare(as_images(x), mean=mean, std=std)
    by_channel = [((x[:, c] / 255 - mean[c]) / std[c]) for c in range(3)]
    assert torch.allclose(prepared.train_x[:], torch.stack(by_channel, 1), atol=1e-6)
    assert torch.equal(prepared.test_x[:], prepared.train_x[:1])
    assert (prepared.mean, prepared.std) == (mean, std)


def test_one_of_the_two_is_measured_where_only_the_other_is_given(as_images):
    images = as_images(random_images(6, 3, 32))
    measured = prepare(images)
    centred, scaled = prepare(images, mean=(0.1, 0.2, 0.3)), prepare(images, std=(4, 5, 6))
    assert (centred.mean, centred.std) == ((0.1, 0.2, 0.3), measured.std)
    assert (scaled.mean, scaled.std) == (measured.mean, (4, 5, 6))


@pytest.mark.parametrize(
    ("name", "values", "got", "above"),
    [
        ("mean", (0.5,), "0.5", ""),
        ("mean", (), "without a number", ""),
        ("std", (1, 1, 1, 1), "1, 1, 1, 1", " above 1e-06"),
        ("std", (1, 0, 1), "1, 0, 1", " above 1e-06"),
        ("std", (1, -1, 1), "1, -1, 1", " above 1e-06"),
        ("mean", (float("nan"), 0, 0), "nan, 0, 0", ""),
        ("std", (float("inf"), 1, 1), "inf, 1, 1", " above 1e-06"),
    ],
)
def test_a_mean_or_deviation_that_does_not_fit_is_refused(as_images, name, values, got, above):
    with pytest.raises(UsageError) as caught:
        prepare(as_images(random_images(2, 3, 32)), **{name: values})
    assert str(caught.value) == (
        f"got {name} {got}; wanted 3 finite number(s){above}, one for each channel of made, "
        "of pixels in [0, 1]"
    )


def test_the_same_images_are_measured_once_for_each_size(as_images):
    x = random_images(6, 3, 32)
    images = as_images(x)
    full, half = prepare(images).mean, prepare(images, size=16).std
    x //= 2  # so that a second measurement would tell
    assert prepare(images).mean == full
    assert prepare(images, size=16).std == half
    assert prepare(as_images(x)).mean != full
