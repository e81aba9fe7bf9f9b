"""The rules by which a file is right: rounding, ties, classes, accuracy."""

from __future__ import annotations

import pytest
import torch

from spiritlevel.export.compare import MOST_CHANGED, MOST_LOST, TIE, TOLERANCE, Comparison

LOGITS = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.5 - 0.9e-4, 0.0], [0.0, 8.0, 7.9]])


def compared(expected, found, target=None, kind="float32", on="data"):
    comparison = Comparison(on, kind)
    comparison.add([expected], [found], target)
    return comparison


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(("share", "ok"), [(0.9, True), (1.1, False)])
def test_a_difference_is_held_against_the_largest_output(kind, share, ok):
    expected = torch.tensor([[100.0], [-400.0], [0.0]], dtype=kind)
    found = expected.clone()
    found[2] += share * TOLERANCE[kind] * 400
    row = compared(expected, found).row()
    assert row.ok is ok
    assert row.difference == pytest.approx(share * TOLERANCE[kind] * 400, rel=1e-3)
    assert row.tolerance == pytest.approx(TOLERANCE[kind] * 400)
    assert ("the output differs by" in row.why) is not ok


def test_the_worst_batch_decides_not_the_largest_difference():
    comparison = Comparison("data")
    comparison.add([torch.full((2, 1), 1000.0)], [torch.full((2, 1), 1000.05)], None)
    assert comparison.row().ok
    comparison.add([torch.ones(2, 1)], [torch.ones(2, 1) + 1e-3], None)
    row = comparison.row()
    assert not row.ok
    assert row.difference == pytest.approx(1e-3, rel=1e-3)
    assert (row.batch, row.samples) == (2, 4)


def test_a_tie_may_fall_either_way_and_is_listed():
    found = LOGITS.clone()
    found[1, :2] = found[1, :2].flip(0)
    comparison = compared(LOGITS, found)
    (tie,) = comparison.differs
    assert (tie.index, tie.model, tie.file, tie.tie) == (1, 0, 1, True)
    assert 0 < tie.gap <= TIE
    row = comparison.row()
    assert row.ok
    assert row.agreement == pytest.approx(2 / 3)


def test_logits_that_are_equal_are_no_difference():
    torch.manual_seed(0)
    tied = torch.randint(0, 3, (200, 10)).float()
    tied[3] = torch.nan
    comparison = compared(tied, tied.clone(), tied.argmax(1))
    assert comparison.differs == []
    assert (comparison.right_model, comparison.right_file) == (200, 200)
    assert comparison.row().agreement == 1.0


def test_outputs_near_zero_may_differ_by_a_share_of_a_thousandth():
    nothing = torch.zeros(4, 1)
    assert compared(nothing, nothing + 0.9e-7).row().ok
    assert not compared(nothing, nothing + 1.1e-7).row().ok


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_where_nothing_is_finite_nothing_was_compared(kind):
    nothing = torch.full((3, 4), torch.nan)
    row = compared(nothing, nothing.clone(), None, kind).row()
    assert (row.ok, row.why) == (False, "no output is finite, so nothing was compared")
    part = torch.tensor([[torch.nan, 1.0, -torch.inf]])
    assert compared(part, part.clone()).row().ok


def test_no_other_sample_may_change_its_class():
    """All within the tolerance, 1e-4 of the largest output, yet the class is another."""
    expected = torch.tensor([[5000.0, 0.0, 0.0], [0.0, 1.0, 1.1]])
    found = torch.tensor([[5000.0, 0.0, 0.0], [0.0, 1.2, 1.1]])
    row = compared(expected, found).row()
    assert row.difference < row.tolerance
    assert (row.ok, row.why) == (False, "1 samples in another class")


def test_indices_go_on_from_batch_to_batch():
    comparison = Comparison("data")
    comparison.add([LOGITS], [LOGITS], None)
    comparison.add([LOGITS], [LOGITS.roll(1, 1)], None)
    assert [each.index for each in comparison.differs] == [3, 4, 5]


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "the output is (2, 4) for (2, 3)"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), "infinite or NaN elsewhere"),
        (torch.tensor([1.0, torch.inf]), torch.ones(2), "infinite or NaN elsewhere"),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf]), "infinite or NaN else"),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.nan]), "infinite or NaN else"),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1]), "the output differs by 1.0e+00"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), "is torch.float64 for torch.float32"),
        (torch.ones(3, dtype=torch.int64), torch.ones(3), "is torch.float32 for torch.int64"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "the output differs by 1.0e+00"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "the output differs"),
    ],
)
def test_what_differs_is_told(expected, found, told):
    row = compared(expected, found).row()
    assert not row.ok
    assert told in row.why
    assert compared(expected, expected).row().ok


def test_another_number_of_outputs():
    comparison = Comparison("data")
    comparison.add([torch.ones(2), torch.ones(2)], [torch.ones(2)], None)
    assert comparison.row().why == "1 outputs for 2"


def many(wrong, of=200):
    """Logits whose class is 0, and those of a file that gets the first `wrong` of them wrong."""
    expected = torch.tensor([[1.0, 0.0]]).repeat(of, 1)
    found = expected.clone()
    found[:wrong] = found[:wrong].flip(1)
    return expected, found


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_less_precision_is_judged_by_what_accuracy_it_loses(kind):
    target = torch.zeros(200, dtype=torch.int64)
    allowed = round(MOST_LOST * 200)
    assert compared(*many(allowed), target, kind).row().ok
    row = compared(*many(allowed + 1), target, kind).row()
    assert row.why == "it loses 1.5 points of accuracy, of 1 allowed"
    gains = compared(*reversed(many(50)), target, kind).row()
    assert gains.ok


def test_without_targets_by_how_many_classes_it_changes():
    allowed = round(MOST_CHANGED * 200)
    assert compared(*many(allowed), None, "int8").row().ok
    row = compared(*many(allowed + 1), None, "int8").row()
    assert row.why == "5.5% of the samples in another class, of 5 allowed"
    assert compared(*many(100), None, "int8", "example").row().ok


def test_accuracy_counts_both():
    target = torch.zeros(200, dtype=torch.int64)
    comparison = compared(*many(7), target)
    assert (comparison.judged, comparison.right_model, comparison.right_file) == (200, 200, 193)
    for other in (torch.zeros(200), torch.zeros(200, 2, dtype=torch.int64), None):
        assert compared(*many(7), other).judged == 0
