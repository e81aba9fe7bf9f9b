"""How far a kernel may be from the formula in float64, and why."""

from __future__ import annotations

import torch

TOLERANCE = {
    # Some 2**6 roundings of 2**-24 on the longest path: statistics, coefficients, activation.
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    # The same count of roundings of 2**-53.
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    # The same with 11 bits, as below.
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    # The input, y and the gradients are stored with 8 bits: half of 2**-8 each.
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
