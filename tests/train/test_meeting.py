"""Processes that start anew in a store where those before have left their words; as threads."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from spiritlevel.train.meeting import named

PATIENCE = timedelta(seconds=20)


def met(store, late, size=3):
    """The names that `size` processes have found, one of them 0.2 s after the others."""

    def come(rank):
        time.sleep(0.2 * (rank == late))
        return named(store, rank, size, PATIENCE)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(come, range(size)))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_start_takes_no_word_of_the_one_before(late):
    store = dist.HashStore()
    starts = [met(store, late) for _ in range(3)]
    assert [len(set(names)) for names in starts] == [1, 1, 1]
    assert len({names[0] for names in starts}) == 3


@pytest.mark.parametrize("size", [1, 2, 4])
def test_more_or_fewer_may_come_than_before(size):
    store = dist.HashStore()
    before, names = met(store, late=0), met(store, late=0, size=size)
    assert len(set(names)) == 1
    assert names[0] != before[0]


def test_who_does_not_come_is_waited_for_no_longer_than_was_said():
    store = dist.HashStore()
    met(store, late=0, size=2)
    with pytest.raises(dist.DistStoreError, match="have come within 0:00:00"):
        named(store, 0, 2, timedelta(seconds=0.1))
