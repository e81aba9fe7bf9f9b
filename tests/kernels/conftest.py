"""Which of the GPU kernels' cases wait for `make slow` where Triton's interpreter runs them."""

from __future__ import annotations

import pytest
import torch

_LATER = {
    "test_scale_and_shift_of_the_input_do_not_matter": lambda given: True,
    "test_two_runs_give_the_same_bits": lambda given: True,
    "test_it_differentiates_twice": lambda given: given["act"] not in ("identity", "silu"),
    "test_cut_into_parts_and_groups": lambda given: given["shape"] == (40, 70, 5, 9),
    "test_an_infinite_channel_has_torchs_statistics": lambda given: (
        given["shape"] == (64, 4, 40, 41) and given["bad"] != -torch.inf
    ),
}
"""They take seconds each."""


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        later = _LATER.get(item.originalname) if item.path.stem.startswith("test_gpu") else None
        if later and later(item.callspec.params if hasattr(item, "callspec") else {}):
            item.add_marker(pytest.mark.slow)
