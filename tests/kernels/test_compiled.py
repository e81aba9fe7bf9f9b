"""exp and erf in float32, as kernels have them, against NumPy's and torch's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit, types

from spiritlevel.kernels.compiled import FASTMATH, erf32, exp32


def of_each(function):
    kind = types.float32[::1]

    @njit(types.void(kind, kind), fastmath=FASTMATH, error_model="numpy")
    def each(x, out):
        for i in range(len(x)):
            out[i] = function(x[i])

    def of(x):
        out = np.empty_like(x)
        each(x, out)
        return out

    return of


@pytest.fixture(scope="module")
def exp():
    return of_each(exp32)


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


def test_erf_is_as_near_as_numerics_say():
    x = np.random.default_rng(1).uniform(-6, 6, 1_000_000).astype(np.float32)
    exact = torch.erf(torch.from_numpy(x).double()).numpy()
    assert np.abs(of_each(erf32)(x) - exact).max() < 6e-7
