"""What `spiritlevel env` knows, against slower ways to the same."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spiritlevel.study.environment import describe, gather


def gathered(code: str = "", **variables: str) -> dict:
    """In a fresh process, whose allocator and threads are as the system has them."""
    source = f"{code}\nimport json\nfrom spiritlevel.study.environment import gather\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}print(json.dumps(gather()))"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict:
    return gathered(OMP_NUM_THREADS="1", NUMBA_CACHE_DIR="/home/somebody/cache")


def test_versions_are_those_that_import(found):
    import numpy
    import plotly

    versions = found["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == numpy.__version__
    assert versions["plotly"] == plotly.__version__
    assert versions["python"].startswith(".".join(map(str, sys.version_info[:3])))


def test_threads_follow_the_variables_that_set_them(found):
    threads = found["threads"]
    assert threads["intra_op"] == 1
    assert threads["variables"]["OMP_NUM_THREADS"] == "1"
    assert threads["pool"] in ("OpenMP", "native thread pool")


def test_threads_of_either_kind_are_torchs():
    threads = gathered("import torch; torch.set_num_threads(2); torch.set_num_interop_threads(3)")
    assert (threads["threads"]["intra_op"], threads["threads"]["inter_op"]) == (2, 3)


def test_the_allocator_is_tuned_where_there_is_one_to_tune(found):
    libc = found["allocator"]["libc"] or ""
    assert found["allocator"]["tuned"] is libc.startswith("glibc")


def test_a_path_in_a_variable_is_not_shown(found):
    assert found["threads"]["variables"]["NUMBA_CACHE_DIR"] == "..."


def test_it_tells_nothing_private(found):
    told = json.dumps(found)
    private = {getpass.getuser(), socket.gethostname(), str(Path.home()), os.getcwd(), sys.prefix}
    words = set(re.findall(r"[\w./-]+", told))
    assert not private & words
    assert not [path for path in private if "/" in path and len(path) > 1 and path in told]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cores_are_those_this_process_may_use():
    one = min(os.sched_getaffinity(0))
    system = gathered(f"import os; os.sched_setaffinity(0, [{one}])")["system"]
    assert system["usable_cores"] == 1
    assert system["cores"] == os.cpu_count()


def test_numba_layer_is_the_one_that_numba_launches(found):
    """The slow twin: compile and run a parallel loop, then ask."""
    pytest.importorskip("numba")
    code = (
        "import numba\n"
        "@numba.njit(parallel=True)\n"
        "def loop(n):\n"
        "    total = 0\n"
        "    for i in numba.prange(n): total += i\n"
        "    return total\n"
        "assert loop(10) == 45\n"
        "print(numba.threading_layer())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found["threads"]["numba"] == done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("workqueue", "workqueue"),
        ("WORKQUEUE", "workqueue"),
        ("bogus", "The threading layer requested 'bogus' is unknown to Numba."),
    ],
)
def test_numba_layer_that_is_asked_for(asked, told):
    pytest.importorskip("numba")
    assert gathered(NUMBA_THREADING_LAYER=asked)["threads"]["numba"] == told


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_memory_in_gib(found):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert found["system"]["memory_gib"] == pytest.approx(pages, abs=0.1)
    assert 0 < found["system"]["free_gib"] <= found["system"]["memory_gib"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_an_allocator_that_was_preloaded_is_named(found, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a library of that name")
    library = tmp_path / "libjemalloc.so.2"
    subprocess.run(
        [compiler, "-shared", "-o", library, "-x", "c", "-"], input=b"int own;", check=True
    )
    assert found["allocator"]["preloaded"] is None
    assert gathered(LD_PRELOAD=str(library))["allocator"]["preloaded"] == "jemalloc"


def test_extras_name_what_is_missing():
    # To importlib.metadata a package is there if its folder is on the path: hide one of them.
    code = (
        "from importlib import metadata\n"
        "whole = metadata.version\n"
        "def version(name):\n"
        "    if name == 'plotly': raise metadata.PackageNotFoundError(name)\n"
        "    return whole(name)\n"
        "metadata.version = version"
    )
    extras = gathered(code)["extras"]
    assert extras["study"] == ["plotly"]
    assert extras["cpu"] == []
    assert not extras.keys() & {"all", "dev"}


def test_it_needs_none_of_the_extras():
    """It has to say that they are missing."""
    hidden = ("numba", "scipy", "joblib", "plotly", "jinja2", "sklearn", "mlxtend", "pooch", "PIL")
    code = f"import sys\nfor name in {hidden}: sys.modules[name] = None"
    assert gathered(code)["threads"]["numba"] is None


def test_a_run_writes_down_less():
    told = describe(jobs=3, threads=2, kernels="aten")
    assert told["kernels"] == "aten"
    assert told["workers"] == "3"
    assert told["threads a cell"] == "2"
    assert told["processor"] == gather()["system"]["processor"]
    assert all(isinstance(value, str) for value in told.values())
