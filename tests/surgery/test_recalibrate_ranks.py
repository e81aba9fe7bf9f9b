"""Two processes with gloo: the same numbers on both, those of one process on all data."""

from __future__ import annotations

import pytest
from recalibrate_cases import net, pairs
from recalibrate_start_ranks import outcomes

import spiritlevel as sl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return outcomes(2, tmp_path_factory.mktemp("two") / "meeting")


def alone(sequential):
    model = sl.recalibrate(net(), pairs(), sequential=sequential)
    state = model.state_dict()
    return model, [state[name].tolist() for name in state if "running" in name]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    "situation",
    ["uneven", "one is empty", "parallel", "parallel, one is empty", "synced", "a generator"],
)
def test_ranks_end_with_the_numbers_of_all_data(two, situation, sequential):
    first, second = (each[f"{situation} {sequential}"] for each in two)
    assert first == second  # bit for bit, with what is told
    model, expected = alone(sequential)
    numbers, counts, (batches, before, after, samples), told = first
    for one, other in zip(numbers, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-12)
    assert counts == [3, 3]
    assert batches == 3
    assert "3 batches on 2 ranks" in told[0]
    whole = model.spiritlevel_log[0]
    if situation == "a generator" and not sequential:
        assert before is None  # on one rank the batches cannot be read again
    else:
        assert (before, after, samples) == (whole.before, whole.after, 17)


@pytest.mark.parametrize("sequential", [False, True])
def test_all_raise_where_all_are_empty(two, sequential):
    for each in two:
        text, unchanged = each[f"all are empty {sequential}"]
        assert text == "got no batches; wanted an iterable of at least one"
        assert unchanged


@pytest.mark.parametrize("sequential", [False, True])
def test_all_raise_where_one_does(two, sequential):
    (told, same), (raised, also_same) = (each[f"a loader raises {sequential}"] for each in two)
    assert told == (
        "got an error on rank 1, which says what it is; all ranks stop, and nothing is changed on "
        "any"
    )
    assert raised.startswith("got OSError: gone from the batches, after 1 of them")
    assert same
    assert also_same


@pytest.mark.parametrize("sequential", [False, True])
def test_a_single_value_a_rank_is_enough(two, sequential):
    first, second = (each[f"one value each {sequential}"] for each in two)
    assert first == second
    assert first[0][1] == pytest.approx([0.5, 0.5])


def test_ranks_that_want_different_things(two):
    for each in two:
        text, unchanged = each["other options"]
        assert text == "got other batch norms or options on some ranks; wanted the same on all"
        assert unchanged


def test_a_group_of_one(tmp_path):
    (found,) = outcomes(1, tmp_path / "meeting")
    for sequential in (False, True):
        assert found[f"uneven {sequential}"][0] == alone(sequential)[1]
        assert found[f"synced {sequential}"][0] == alone(sequential)[1]
