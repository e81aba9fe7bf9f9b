"""Cells in processes: the same numbers whatever their count, faults kept to their cell."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from spiritlevel.data import load
from spiritlevel.kernels import backend
from spiritlevel.study.config import PRESETS
from spiritlevel.study.engine import run_cells
from spiritlevel.study.records import Cell
from spiritlevel.study.run import all_cells
from spiritlevel.study.tasks import TASKS

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def images():
    return load("digits")


@pytest.fixture
def run(tmp_path):
    def run(cells, images, jobs=1, threads=1, cost=lambda _: 0.0):
        found = run_cells(cells, images, jobs=jobs, threads=threads, cost=cost, scratch=tmp_path)
        return {record.key: record for record in found}

    return run


def some_cells() -> list[Cell]:
    """The first of each kind but the slowest."""
    first: dict[str, Cell] = {}
    for cell in all_cells(SMOKE):
        first.setdefault(cell.task, cell)
    return [cell for task, cell in first.items() if task not in ("ghostnet", "noise")]


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_numbers(run, images):
    cells = some_cells()
    alone, together = run(cells, images, jobs=1), run(cells, images, jobs=2)
    assert {key: record.result for key, record in alone.items()} == {
        key: record.result for key, record in together.items()
    }
    assert all(record.error is None for record in alone.values())


@pytest.mark.parametrize(("asked", "runs"), [(None, "aten"), ("reference", "reference")])
def test_a_cell_runs_on_torchs_kernels_unless_others_are_asked_for(
    run, images, monkeypatch, asked, runs
):
    if asked:
        monkeypatch.setenv("SPIRITLEVEL_KERNELS", asked)
    monkeypatch.setitem(TASKS, "invariance", lambda *_: {"kernels": backend.asked()})
    (record,) = run([Cell("invariance", {"seed": 1})], images).values()
    assert record.result == {"kernels": runs}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cell_runs_on_the_threads_it_is_given(run, images, monkeypatch, threads):
    """And torch's own setting is as before, afterwards."""
    monkeypatch.setitem(TASKS, "invariance", lambda *_: {"threads": torch.get_num_threads()})
    torch.set_num_threads(3)
    (record,) = run([Cell("invariance", {"seed": 1})], images, threads=threads).values()
    assert record.result == {"threads": threads}
    assert record.threads == threads
    assert torch.get_num_threads() == 3


def test_nothing_is_left_in_the_folder(run, images, tmp_path):
    run(some_cells()[:1], images)
    assert list(tmp_path.iterdir()) == []


def test_a_faulty_cell_does_not_cost_the_others(run, images):
    good = next(cell for cell in some_cells() if cell.task == "invariance")
    bad = Cell("depth", {"seed": 1})  # lacks all other settings
    found = run([bad, good], images)
    assert found[bad.key].error is not None
    assert found[bad.key].error.startswith("KeyError")
    assert found[bad.key].result is None
    assert found[good.key].error is None


def test_the_costly_start_first(run, images):
    cells = [Cell("invariance", {"seed": s, "batch_size": 8, "size": 14}) for s in (1, 2, 3)]
    found = run(cells, images, cost=lambda cell: cell.settings["seed"] % 3)
    assert [record.settings["seed"] for record in found.values()] == [2, 1, 3]


FULL = """
import resource, signal, sys
from pathlib import Path
from spiritlevel.data import load
from spiritlevel.kernels import backend
from spiritlevel.errors import RecordsError
from spiritlevel.study.engine import run_cells
from spiritlevel.study.records import Cell
folder, images = Path(sys.argv[1]), load("digits")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    list(run_cells([Cell("t", {})], images, jobs=2, threads=1, cost=lambda _: 0, scratch=folder))
except RecordsError as error:
    print(error)
"""


def test_no_room_for_the_images_is_told_and_nothing_is_left(tmp_path):
    pytest.importorskip("resource", reason="limits of files are POSIX")
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(f"got no room in {tmp_path} for the images"), done.stderr
    assert "go on by --resume, or choose another --out" in done.stdout
    assert list(tmp_path.iterdir()) == []
