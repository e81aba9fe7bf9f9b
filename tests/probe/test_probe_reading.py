"""Channels that are dead or not finite, whatever the layout."""

from __future__ import annotations

import pytest
import torch

from spiritlevel.probe.reading import Sample

LAYOUTS = {
    "contiguous": lambda y: y,
    "channels-last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda y: y.repeat(1, 1, 1, 2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_value_in_a_batch_keeps_a_channel_alive_or_spoils_it(layout):
    y = -torch.rand(3, 8, 4, 5)
    y[2, 1, 3, 4], y[0, 5, 0, 0], y[1, 6, 2, 2] = 0.5, 0.25, torch.nan
    sample = Sample(1)
    sample.take(None, LAYOUTS[layout](y), lambda: None)
    found = sample.row()
    assert found["dead_share"].item() == 5 / 8
    assert found["non_finite"].item() == 1
