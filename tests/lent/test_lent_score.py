from __future__ import annotations

import math

import pytest
import torch

from spiritlevel.lent.score import difference, metric_of, score, scored


def test_wilsons_interval():
    got = scored(torch.tensor([1.0] * 8 + [0.0] * 2), "accuracy")
    # Wilson 1927, as statsmodels' proportion_confint(8, 10, method="wilson") has it.
    assert (got.low, got.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert scored(torch.ones(5), "accuracy").high == 1


def test_students_interval_of_a_mean():
    values = torch.tensor([1.0, 4.0, 2.5, 7.0, 3.0], dtype=torch.float64)
    low, high = 3.5 - 2.776445, 3.5 + 2.776445  # t(4) at 97.5 %; the standard error is 1
    got = scored(values, "mean squared error")
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.01)


def test_the_interval_of_a_difference_has_two_samples_more():
    a, b = [torch.ones(3, dtype=torch.float64)], [torch.zeros(3, dtype=torch.float64)]
    got = difference(a, b, "accuracy")
    half = 1.959964 * math.sqrt((4 / 5 - (3 / 5) ** 2) / 5)
    assert (got.value, got.low) == (1.0, pytest.approx(3 / 5 - half))
    assert difference(a, a, "accuracy").low < 0


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]), [1, 0]),
        (torch.tensor([[2.0], [-1.0]]), torch.tensor([[1], [1]]), [1, 0]),
        (torch.tensor([2.0, -1.0]), torch.tensor([1, 0]), [1, 1]),
        # (N, steps, classes), the second step of the first sample left out
        (torch.eye(2)[None].repeat(2, 1, 1), torch.tensor([[0, -100], [1, 1]]), [1, 0.5]),
        # (N, classes, H, W)
        (torch.eye(2).reshape(1, 2, 1, 2), torch.tensor([[[0, 0]]]), [0.5]),
    ],
)
def test_shares_of_right_answers(output, target, expected):
    assert metric_of(output, target) == "accuracy"
    assert score(output, target).tolist() == expected
