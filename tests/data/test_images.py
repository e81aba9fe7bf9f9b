from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spiritlevel.data.images import resize, stratified

labels = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(torch.tensor)


@settings(deadline=None)
@given(y=labels, seed=st.integers(0, 2**32))
def test_the_split_gives_every_row_to_one_side_and_a_fifth_of_each_class_to_the_test(y, seed):
    train, test = stratified(y, seed=seed)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(len(y)))
    for label in set(y.tolist()):
        rows = int((y == label).sum())
        assert int((y[test] == label).sum()) == max(1, round(rows / 5))


@settings(deadline=None)
@given(y=labels, seed=st.integers(0, 2**32))
def test_the_split_is_the_same_for_the_same_seed(y, seed):
    first, second = stratified(y, seed=seed), stratified(y, seed=seed)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_another_seed_draws_other_test_rows():
    y = torch.zeros(100, dtype=torch.int64)
    assert set(stratified(y, seed=0)[1].tolist()) != set(stratified(y, seed=1)[1].tolist())


def test_split_rows_are_not_in_the_order_of_classes():
    y = torch.arange(10).repeat_interleave(50)
    for rows in stratified(y, seed=0):
        assert len(set(y[rows[:30]].tolist())) > 5


@pytest.mark.parametrize("side", [32, 45, 17])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (60, 41)])
def test_resize_agrees_with_pillow(size, side):
    pixels = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    ours = resize(torch.from_numpy(pixels)[None, None], side)
    pillows = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    assert ours.dtype == torch.uint8
    difference = ours[0, 0].numpy().astype(int) - np.asarray(pillows).astype(int)
    assert abs(difference).max() <= 1  # both round to whole values, Pillow after each axis


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_resize_keeps_a_constant_image_constant(value):
    assert (resize(torch.full((1, 3, 9, 9), value, dtype=torch.uint8), 32) == value).all()


def test_resize_of_the_wanted_size_changes_nothing():
    x = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(resize(x, 32), x)


def test_describe_is_json_and_tells_all(as_images):
    images = as_images(torch.zeros(5, 3, 40, 40, dtype=torch.uint8))
    description = json.loads(json.dumps(images.describe()))
    assert description == {
        "name": "made",
        "origin": "made by a test",
        "licence": "none",
        "notes": [],
        "classes": ["even", "odd"],
        "counts": {"train": 5, "test": 1},
        "channels": 3,
        "size": 40,
        "fingerprint": images.fingerprint,
    }


def test_fingerprint_changes_with_a_pixel_and_with_a_label(as_images):
    x = torch.randint(0, 255, (4, 1, 32, 32), dtype=torch.uint8)
    test_x = x[:2].clone()
    images = as_images(x, test_x)
    seen = {images.fingerprint}
    for tensor in (images.train_x, images.test_x, images.train_y, images.test_y):
        tensor.view(-1)[-1] += 1
        seen.add(images.fingerprint)
    assert len(seen) == 5


def test_fingerprint_tells_the_same_bytes_in_another_shape_apart(as_images):
    x = torch.zeros(6, 1, 32, 32, dtype=torch.uint8)
    assert as_images(x[:4], x[4:]).fingerprint != as_images(x[:2], x[2:]).fingerprint
    assert as_images(x).fingerprint != as_images(x.view(6, 1, 16, 64)).fingerprint


def test_fingerprint_is_of_values_not_of_memory_layout(as_images):
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    assert as_images(strided).fingerprint == as_images(x).fingerprint
