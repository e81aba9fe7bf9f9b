"""exp in float32, as kernels have it, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit, types

from spiritlevel.kernels.compiled import FASTMATH, exp32


@pytest.fixture(scope="module")
def exp():
    kind = types.float32[::1]

    @njit(types.void(kind, kind), fastmath=FASTMATH, error_model="numpy")
    def each(x, out):
        for i in range(len(x)):
            out[i] = exp32(x[i])

    def of(x):
        out = np.empty_like(x)
        each(x, out)
        return out

    return of


def off(exp, lowest, highest):
    """The largest error there, in units of the last place."""
    x = np.random.default_rng(1).uniform(lowest, highest, 1_000_000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    return (np.abs(exp(x) - exact) / np.spacing(exact.astype(np.float32))).max()


def test_exp_is_as_near_as_numerics_say(exp):
    assert off(exp, -87.3, 88.3) < 5
    assert off(exp, -20, 20) < 2


def test_exp_beyond_its_range(exp):
    x = np.array([-88, -np.inf, 88.5, np.inf, np.nan, 0], dtype=np.float32)
    np.testing.assert_array_equal(exp(x), [0, 0, np.inf, np.inf, np.nan, 1])
