"""What networks of other packages showed about `convert`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spiritlevel as sl


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_without_numbers_gets_the_type_of_the_layer_before_it(dtype):
    """monai's AttentionUnet mixes batch norms with bare instance norms."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)).to(dtype)
    sl.convert(model, "batch")
    assert model[1].weight.dtype is model[1].running_mean.dtype is dtype
    assert model(torch.randn(3, 2, 5, 5, dtype=dtype)).dtype is dtype


class Tokens(nn.Module):
    """transformers' RT-DETR: Linear and LayerNorm in order, for (N, tokens, C)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def forward(self, x):
        return self.head(self.norm(x))


def test_layer_norms_of_tokens_stay():
    model, x = Tokens(), torch.randn(2, 4, 4)  # as many tokens as channels: no error would tell
    expected = model(x)
    sl.convert(model, "batch")
    assert torch.equal(model(x), expected)
    assert [e.paths for e in model.spiritlevel_log if e.action == "left"] == [
        ("norm",),
        ("head.1",),
    ]


def test_a_layer_norm_of_features_is_converted():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    sl.convert(model, "batch")
    assert type(model[1]) is sl.nn.BatchNorm1d
