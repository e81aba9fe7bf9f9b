"""SL209: what ranks tell each other, in threads with one store and in processes with gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from case_book import small_net
from torch import distributed as dist

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.check import RULES
from spiritlevel.probe import ranks as exchanges
from spiritlevel.probe.ranks import Ranks, across_ranks, exchange


def values(rank, call=0):
    return {"1": ([float(rank), float(call)], [1.0, 2.0])}


def judged(statistics, world=None, rank=0):
    case = Case(small_net())
    case.__dict__["ranks"] = Ranks(world or len(statistics), rank, statistics, 10.0)
    return [(f.severity, f.module, f.message) for f in RULES["SL209"](case)]


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_that_call_together_have_the_same(world):
    store = dist.HashStore()
    with ThreadPoolExecutor(world) as pool:
        for call in range(4):  # at once again, so that offers of the call before are still there
            jobs = [
                pool.submit(exchange, store, rank, world, values(rank, call), 60.0)
                for rank in range(world)
            ]
            expected = {rank: {"1": tuple(values(rank, call)["1"])} for rank in range(world)}
            for job in jobs:
                found = job.result()
                assert {r: {"1": tuple(s["1"])} for r, s in found.items()} == expected


def test_ranks_may_run_ahead_by_a_call():
    """Each goes through its calls at its own pace; none may read what is of a call before."""
    store = dist.HashStore()

    def calls(rank):
        found = [exchange(store, rank, 3, values(rank, call), 60.0) for call in range(20)]
        return [[statistics["1"][0][1] for statistics in each.values()] for each in found]

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(calls, range(3)):
            assert found == [[float(call)] * 3 for call in range(20)]


def test_a_rank_alone_goes_on_and_leaves_no_offer():
    store = dist.HashStore()
    assert exchange(store, 0, 2, values(0), 0.05) == {0: values(0)}
    assert exchange(store, 1, 2, values(1), 0.05) == {1: values(1)}  # rank 0 has gone


def test_one_process_has_no_ranks():
    assert across_ranks(small_net()) is None
    assert list(RULES["SL209"](Case(small_net()))) == []


def test_of_a_layer_a_spread_of_channels_is_told():
    mean = torch.arange(1000.0)
    assert len(exchanges._some(mean)) <= exchanges.CHANNELS
    assert exchanges._some(mean)[0] == 0.0
    assert exchanges._some(mean)[-1] > 900
    assert exchanges._some(mean[:5]) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_furthest_two_ranks_are_named_with_their_distance():
    apart = {0: {"1": ([0.0], [4.0])}, 1: {"1": ([1.0], [4.0])}, 2: {"1": ([-2.0], [4.0])}}
    ((severity, module, message),) = judged(apart)
    assert (severity, module) == ("warning", "1")
    assert "on ranks 1 and 2 the running means are 1.5 standard deviations apart" in message


def test_a_batchs_share_is_info_and_rounding_is_nothing():
    def apart(by):
        return judged({0: {"1": ([0.0], [1.0])}, 1: {"1": ([by], [1.0])}})

    assert [severity for severity, _, _ in apart(0.05)] == ["info"]
    assert apart(1e-6) == []
    assert [severity for severity, _, _ in apart(0.2)] == ["warning"]


def test_variances_alone_may_be_apart():
    ((severity, _, message),) = judged({0: {"1": ([0.0], [1.0])}, 1: {"1": ([0.0], [2.0])}})
    assert severity == "warning"
    assert "the variances 0.69" in message


def test_dead_channels_and_broken_numbers_are_not_compared():
    dead = {0: {"1": ([0.0, 0.0], [1.0, 0.0])}, 1: {"1": ([0.0, 1e-9], [1.0, 1e-30])}}
    assert judged(dead) == []
    assert judged({0: {"1": ([float("nan")], [1.0])}, 1: {"1": ([0.0], [1.0])}}) == []


def test_layers_that_not_all_have_are_left_out():
    assert judged({0: {"1": ([0.0], [1.0])}, 1: {"4": ([9.0], [1.0])}}) == []


def test_who_did_not_answer_is_told():
    ((severity, module, message),) = judged({0: values(0)}, world=3)
    assert (severity, module) == ("info", "")
    assert message.startswith("2 of 3 ranks did not answer in 10 s: 1, 2")


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The bug and its twin of the book, and what DistributedDataParallel does by default."""
    here = Path(__file__).parent
    children = [
        subprocess.Popen(
            [sys.executable, here / "on_rank.py", str(rank), "2", str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=here,
        )
        for rank in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], outputs
    first, second = (json.loads(output) for output, _ in outputs)

    ((_, severity, module, _),) = first["bug"]
    assert (severity, module) == ("warning", "1")
    assert first["twin"] == []
    assert [severity for _, severity, _, _ in first["default"]] in (["info"], [])
    assert first["at once again"] == first["default"]
    ((_, severity, _, message),) = first["alone"]
    assert severity == "info"
    assert "1 of 2 ranks did not answer in 0.2 s: 1" in message
    assert first["together after that"] == first["default"]
    assert second == {step: found for step, found in first.items() if step != "alone"}
