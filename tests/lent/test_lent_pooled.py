from __future__ import annotations

import torch

from spiritlevel.lent.pooled import Pooled, by_sample


def test_the_moments_of_a_mean_far_above_its_deviation_do_not_cancel():
    x = torch.randn(64, 3, 5, dtype=torch.float64) * 0.01 + 1e4
    found = Pooled.of_all(Pooled.of_samples(*by_sample(part), 5) for part in x.float().split(9))
    whole = x.float().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.var, whole.var(1, correction=0), rtol=1e-6, atol=0)
