"""Examples: any form of a call, in the order of the model's forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.export.example import flat, read_example


class Takes(nn.Module):
    def forward(self, x, boxes=None, *, mask=None, **more):
        return x


X, A, B, MASK = torch.randn(2, 3), torch.randn(2, 4), torch.randn(7, 4), torch.randn(2, 1)


def test_names_and_order_are_those_of_forward():
    example = read_example(Takes(), {"mask": MASK, "boxes": [A, B], "x": X})
    assert example.names == ("x", "boxes_0", "boxes_1", "mask")
    assert [tuple(t.shape) for t in example.tensors] == [(2, 3), (2, 4), (7, 4), (2, 1)]
    assert example.batched == (True, True, False, True)
    assert list(example.kwargs) == ["x", "boxes", "mask"]
    called = flat(Takes(), (X, [A, B]), {"mask": MASK})
    assert all(torch.equal(a, b) for a, b in zip(called, example.tensors, strict=True))


def test_a_tuple_is_by_position_and_a_tensor_is_one_input():
    assert read_example(Takes(), (X, A)).names == ("x", "boxes")
    assert read_example(Takes(), X).names == ("x",)


def test_samples_are_repeated_or_left_out():
    example = read_example(Takes(), (X, [A, B]))
    five = example.of_batch(5)
    assert [len(t) for t in five.tensors] == [5, 5, 7]
    assert torch.equal(five.tensors[0], X[[0, 1, 0, 1, 0]])
    assert torch.equal(five.args[1][0], five.tensors[1])
    assert five.of_batch(1).tensors[0].shape == (1, 3)


def test_what_the_batch_is_is_decided_on_the_example_as_it_was_given():
    scale = torch.tensor([2.0, 3.0])
    two = read_example(Takes(), {"mask": X[:1], "boxes": [scale, A[:1]], "x": X[:1]}).of_batch(2)
    assert two.batched == (True, False, True, True)
    three = two.of_batch(3)
    assert [len(t) for t in three.tensors] == [3, 2, 3, 3]
    assert three.kwargs["boxes"][0] is three.tensors[1]
    shapes = two.dynamic_shapes(Takes())
    assert shapes["boxes"][0] is None
    assert shapes["boxes"][1].keys() == shapes["mask"].keys() == {0}


def test_the_layout_of_memory_stays():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    three = read_example(nn.Identity(), x).of_batch(3)
    assert three.tensors[0].is_contiguous(memory_format=torch.channels_last)
    assert not three.tensors[0].is_contiguous()


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({"x": X, "other": A}, "which Takes.forward takes by **more"),
        ({"x": X, "mask": None}, "with mask, a NoneType"),
        ((X, 3), "with boxes, a int"),
        ((X, A, B), "does not fit Takes.forward(x, boxes=None, *, mask=None, **more)"),
        (X.to_sparse(), "with x, a Tensor"),
        (X.to("meta"), "with x, a Tensor"),
    ],
)
def test_what_is_no_example(example, told):
    with pytest.raises(UsageError) as caught:
        read_example(Takes(), example)
    assert told in str(caught.value)
