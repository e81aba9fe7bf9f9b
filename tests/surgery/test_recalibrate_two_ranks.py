"""Two processes with gloo, in a few seconds; many more situations are in the slow tests."""

from __future__ import annotations

import pytest
import torch
from recalibrate_cases import images, moments, net, normalized, pairs
from recalibrate_start_ranks import outcomes

import spiritlevel as sl

STOPPED = (
    "got an error on rank 1, which says what it is; all ranks stop, and nothing is changed on any"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return outcomes(2, tmp_path_factory.mktemp("few") / "meeting", "few")


@pytest.mark.parametrize("sequential", [False, True])
def test_both_end_with_the_numbers_of_all_data(two, sequential):
    first, second = (each[f"uneven {sequential}"] for each in two)
    assert first == second  # bit for bit, with what is told
    state = sl.recalibrate(net(), pairs(), sequential=sequential).state_dict()
    expected = [state[name].tolist() for name in state if "running" in name]
    numbers, counts, (batches, *_, samples), _ = first
    for one, other in zip(numbers, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-12)
    assert (counts, batches, samples) == ([3, 3], 3, 17)


def test_both_raise_where_one_does(two):
    (told, same), (raised, also_same) = (each["a loader raises"] for each in two)
    assert told == STOPPED
    assert raised.startswith("got OSError: gone from the batches, after 1 of them")
    assert same
    assert also_same


@pytest.mark.parametrize(
    ("situation", "text"),
    [
        ("lazy", "got a model with lazy layers; run it once on a batch before it is measured"),
        ("no module", "got a int; wanted a torch.nn.Module"),
        ("type of an option", "got accuracy='no'; wanted True or False"),
    ],
)
def test_what_one_is_refused_stops_both(two, situation, text):
    assert [each[situation] for each in two] == [STOPPED, text]


def test_a_model_without_norms_on_one(two):
    text = "got other batch norms or options on some ranks; wanted the same on all"
    assert [each["no norms"] for each in two] == [text, text]


def test_a_forward_of_its_own_is_left_on_both(two):
    first, second = (each["own forward"] for each in two)
    assert first == second
    assert first[3][-1] == "left 1: its forward is its own, which can be tried in one process only"
    assert first[0][2:] == [[0, 0], [1, 1]]


def test_batches_that_are_others_on_one(two):
    first, second = (each["drifting"] for each in two)
    assert first == second
    assert first[3][0].endswith("; accuracy needs batches that can be read again")
    (told, same), (raised, also_same) = (each["drifting, in order"] for each in two)
    assert told == STOPPED
    assert raised.startswith("got other batches when they were read again: 3 with values")
    assert same
    assert also_same


@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_that_one_rank_calls_again(two, which):
    """The pass may not end behind its first call, on either."""
    first, second = (each[f"twice on {which}"] for each in two)
    assert first == second
    norm = torch.nn.BatchNorm2d(2).double()
    again = torch.cat([2 * normalized(norm, x) + 1 for x, _ in pairs()])
    mean, var = moments(torch.cat([images(), images(), again]))
    assert first[0] == [pytest.approx(mean.tolist()), pytest.approx(var.tolist())]
    assert first[1] == [9]
