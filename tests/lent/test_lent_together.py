"""One process; several are in the tests of `recalibrate`."""

from __future__ import annotations

import pytest
import torch

from spiritlevel.lent.together import ranks, together


def test_one_process_is_a_group_of_one():
    row = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert ranks() == 1
    assert torch.equal(together(lambda: row, 2), row[None])


def test_what_raises_goes_through():
    def work():
        raise ArithmeticError("own")

    with pytest.raises(ArithmeticError, match="own"):
        together(work, 2)
