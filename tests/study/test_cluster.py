"""Cells on a real Dask cluster: a scheduler and two workers, each a process of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cloudpickle
import pytest

import spiritlevel as sl
from spiritlevel.data import load
from spiritlevel.errors import UsageError
from spiritlevel.study import Study
from spiritlevel.study.config import PRESETS, Asked, plan_study
from spiritlevel.study.factory import load_factory
from spiritlevel.study.records import Cell
from spiritlevel.study.run import all_cells

cluster = pytest.importorskip("spiritlevel.study.cluster", reason="needs the extra dask")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers know no tests

SMOKE = {cell.key: cell for cell in all_cells(PRESETS["smoke"])}


# ---- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"backend": "ray"}, "got backend 'ray'; wanted loky or dask"),
        ({"backend": "dask"}, "got backend dask without a scheduler"),
        ({"scheduler": "tcp://a:1"}, "got scheduler tcp://a:1 with backend loky"),
        ({"backend": "dask", "scheduler": "here"}, "got scheduler 'here'; wanted tcp://HOST:PORT"),
        ({"backend": "dask", "scheduler": "tcp://a:b"}, "got scheduler 'tcp://a:b'; wanted tcp"),
        ({"backend": "dask", "scheduler": "http://a:1"}, "got scheduler 'http://a:1'; wanted tcp"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(tmp_path, asked, told):
    with pytest.raises(UsageError, match=told):
        sl.study(preset="smoke", out=tmp_path / "run", **asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "one that never answers"])
def test_no_scheduler_at_the_address_is_told_and_nothing_is_written(tmp_path, monkeypatch, listens):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        with pytest.raises(UsageError, match=f"got no Dask scheduler at {address}"):
            sl.study(preset="smoke", out=tmp_path / "run", backend="dask", scheduler=address)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_another_version_is_refused():
    here = cluster._about()
    cluster._check_versions("the worker tcp://a:1", here)
    with pytest.raises(UsageError, match=r"got torch 1.0 on the worker tcp://a:1; wanted torch 2"):
        cluster._check_versions("the worker tcp://a:1", here | {"torch": "1.0"})
    with pytest.raises(UsageError, match="got ModuleNotFoundError: none from the worker"):
        cluster._check_versions("the worker tcp://a:1", ModuleNotFoundError("none"))


# ---- what comes of it ----------------------------------------------------------------------------


@dataclass
class Processes:
    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def processes(folder: Path, *options: str, workers: int = 2, **environment: str):
    """A scheduler and workers without a nanny: one that is killed stays away."""
    address = folder / "scheduler.json"
    started: list[subprocess.Popen[bytes]] = []

    def start(what: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (folder / "dask.log").open("ab")
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard"]
        with log:
            started.append(
                subprocess.Popen(
                    [*command, "--scheduler-file", str(address), *arguments],
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=os.environ | environment,
                )
            )
        return started[-1]

    try:
        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
        assert wait_until(lambda: address.exists() and address.read_text().endswith("}"), 60)
        options = options or ("--nthreads", "1")
        ours = [start("worker", "--no-nanny", *options) for _ in range(workers)]
        yield Processes(json.loads(address.read_text())["address"], scheduler, ours)
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def on_both(client) -> None:
    client.wait_for_workers(2, timeout=60)


def results(folder: Path) -> dict[str, dict]:
    return {record.key: record.result for record in Study.load(folder).records}


def keys(folder: Path) -> Counter[str]:
    """How often each cell stands in the file."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["key"] for line in lines)


def hears_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begun(folder: Path, address: str) -> subprocess.Popen[str]:
    """A study that has written a few records."""
    command = [sys.executable, "-m", "spiritlevel", "study", "--preset", "smoke"]
    process = subprocess.Popen(
        [*command, "--backend", "dask", "--scheduler", address, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    file = folder / "records.jsonl"
    assert wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 8, 120)
    assert process.poll() is None
    return process


@pytest.fixture(scope="module")
def survived(tmp_path_factory) -> tuple[Path, subprocess.Popen[str], str]:
    """A study one of whose two workers was killed in the middle."""
    folder = tmp_path_factory.mktemp("survived")
    with processes(folder) as there:
        run = begun(folder / "run", there.address)
        with cluster.connected(there.address) as seen:
            assert len(seen.workers) == 2
        there.workers[0].kill()
        _, stderr = run.communicate(timeout=400)
    return folder / "run", run, stderr


@pytest.mark.slow  # a minute, which two others share
def test_a_worker_killed_in_the_middle_costs_no_cell(survived):
    folder, run, stderr = survived
    assert run.returncode == 0, stderr
    assert keys(folder) == Counter(list(SMOKE))  # one record for every cell
    assert not Study.load(folder).records.failed()


@pytest.mark.slow
def test_what_it_ran_on_is_written_down(survived):
    told = json.loads((survived[0] / "environment.json").read_text())
    assert told["backend"] == "dask"
    assert told["workers"].endswith("on 1 machine(s)")
    assert told["versions of workers"] == "spiritlevel, python, torch, numpy: the same everywhere"


def busy() -> bool:
    """Whether a cell is being computed in this process, which is a worker."""
    import sys

    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "measure":
                return True
            frame = frame.f_back
    return False


def idle(address: str) -> bool:
    """No worker computes, and none has anything to do."""
    with cluster.connected(address) as there:
        return not any(there.client.run(busy).values()) and not any(
            there.client.processing().values()
        )


def stopped(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """A study that is sent a signal in the middle; on return no worker computes for it."""
    with processes(folder.parent) as there:
        run = begun(folder, there.address)
        run.send_signal(number)
        _, stderr = run.communicate(timeout=30)
        assert wait_until(lambda: idle(there.address), 60)
    assert 8 <= keys(folder).total() < len(SMOKE)
    return run.returncode, stderr


@pytest.mark.slow
def test_ctrl_c_leaves_no_cell_behind_and_the_study_goes_on_here(survived, tmp_path):
    """With the numbers of the cluster, on the processes of this machine."""
    folder = tmp_path / "run"
    code, stderr = stopped(folder, signal.SIGINT)
    assert code == 130
    assert stderr.splitlines()[-1].endswith(f"spiritlevel study --resume --out {folder}")
    assert "Traceback" not in stderr
    sl.study(resume=True, out=folder, jobs=2)
    assert keys(folder) == Counter(list(SMOKE))
    assert results(folder) == results(survived[0])


@pytest.mark.slow
def test_kill_9_of_the_study_leaves_no_cell_behind(tmp_path):
    stopped(tmp_path / "run", signal.SIGKILL)


@pytest.mark.slow
def test_a_cell_that_has_long_to_go_is_ended_with_its_study(tmp_path):
    (cell, *_) = [c for c in SMOKE.values() if c.task == "train"]
    endless = Cell("train", {**cell.settings, "steps": 10**8})
    with processes(tmp_path) as there:
        with cluster.connected(there.address) as seen:
            on_both(seen.client)
            images = load("digits")
            quick = next(c for c in SMOKE.values() if c.task == "invariance")
            found = seen.run_cells(
                [endless, quick], images, jobs=None, threads=1, cost=lambda c: len(c.settings)
            )
            with closing(found):
                assert next(found).key == quick.key
                assert wait_until(lambda: any(seen.client.run(busy).values()), 30)
        assert wait_until(lambda: idle(there.address), 30)


@pytest.mark.slow
def test_a_lost_scheduler_is_told(tmp_path):
    folder = tmp_path / "run"
    with processes(tmp_path) as there:
        run = begun(folder, there.address)
        there.scheduler.kill()
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 2, stderr
    *before, last = stderr.splitlines()
    assert last.startswith("spiritlevel: got no more answers from the scheduler")
    assert [line for line in before if "distributed" in line or "Traceback" in line] == []
    assert set(keys(folder).values()) == {1}


MINE = """
import os
from torch import nn
from spiritlevel.nn import norm_layer

def build(num_classes, in_chans, norm):
    if norm == "none" and "A_WORKER" in os.environ:
        os._exit(1)
    layers = nn.Conv2d(in_chans, 8, 3, 2), norm_layer(norm)(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.LazyLinear(num_classes))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_on_dask.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield load_factory("mine_on_dask:build")
    sys.modules.pop("mine_on_dask", None)


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_becomes_an_error_and_costs_no_other(tmp_path, mine):
    plan = replace(plan_study(Asked(preset="smoke", data="digits", model=mine.spec)), threads=1)
    cells = {c.settings["norm"]: c for c in all_cells(plan) if c.task == "train"}
    images = load("digits")
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0", "A_WORKER": "1"}
    with processes(tmp_path, **once) as there, cluster.connected(there.address) as seen:
        on_both(seen.client)
        seen.try_factory(mine)
        found = seen.run_cells(
            [cells["batch"], cells["none"]],
            images,
            jobs=1,
            threads=1,
            cost=lambda _: 0,
            factory=mine,
        )
        records = {record.settings["norm"]: record for record in found}
    assert records["batch"].error is None
    assert records["none"].error.startswith("KilledWorker: 1 workers died while they ran it")


@pytest.mark.slow
def test_a_network_that_differs_there_is_refused(tmp_path, mine):
    with processes(tmp_path, workers=1) as there, cluster.connected(there.address) as seen:
        seen.try_factory(mine)
        (tmp_path / "mine_on_dask.py").write_text(MINE + "\n# another\n")
        seen.try_factory(mine)  # the files are read anew, here and there
        (tmp_path / "mine_on_dask.py").unlink()
        seen.client.run(lambda: sys.modules.pop("mine_on_dask"))
        with pytest.raises(UsageError, match=r"on the worker tcp://.*there is no module mine_on"):
            seen.try_factory(mine)


@pytest.mark.slow
def test_a_worker_of_several_threads_is_refused(tmp_path):
    with (
        processes(tmp_path, "--nthreads", "2", workers=1) as there,
        pytest.raises(UsageError, match=r"of 2 threads; wanted one cell a process.*--nthreads 1"),
        cluster.connected(there.address),
    ):
        pass
