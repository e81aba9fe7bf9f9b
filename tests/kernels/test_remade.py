"""Activations that are made again: while nothing has been written to, and nobody else packs."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from spiritlevel.kernels.remade import remember, spared


def doubled():
    """An input, twice it, and how often that has been made again."""
    made = []

    def make(t):
        made.append(1)
        return 2 * t

    x = torch.randn(5, requires_grad=True)
    kept = x.detach()
    y = 2 * x
    remember(y, make, kept)
    return x, kept, y, made


def test_what_is_spared_is_made_again():
    x, _, y, made = doubled()
    with spared(y):
        z = y.square()
    assert made == []
    z.sum().backward()
    assert made == [1]
    torch.testing.assert_close(x.grad, 8 * x.detach())


def test_what_was_written_to_cannot_be_made_again():
    _, kept, y, _ = doubled()
    with spared(y):
        z = y.square()
    kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_what_is_kept_beside_it_may_not_be_written_to():
    _, _, y, _ = doubled()
    weight = torch.ones(5, requires_grad=True)
    with spared(y):
        z = y * weight
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_an_output_that_was_written_to_is_kept():
    x, _, y, made = doubled()
    with torch.no_grad():
        y.add_(1)
    with spared(y):
        z = y.square()
    z.sum().backward()
    assert made == []
    torch.testing.assert_close(x.grad, 4 * (2 * x.detach() + 1))


def test_where_saved_tensors_go_another_way_they_go_that_way():
    _, _, y, made = doubled()
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(1) or t, lambda t: t), spared(y):
        z = y.square()
    assert packed == [1]
    z.sum().backward()
    assert made == []
