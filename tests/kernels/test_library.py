"""Kernels are compiled once, kept on disk, and run on any number of threads."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from cases import LAYOUTS, tensor
from torch.utils.data import DataLoader, Dataset

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.ops import batch_norm_act

pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")

from numba import njit

from spiritlevel.kernels import activations, compiled, cpu, formulas, team

pytestmark = pytest.mark.slow  # kernels are compiled


@pytest.fixture(autouse=True)
def _on_cpu():
    with backend.use("cpu"):
        yield


def test_finite_is_not_fooled_by_sums_that_may_be_reordered():
    """math.isfinite is: it became `x - x`, in which the infinite terms cancel."""

    @compiled.jit
    def of_sum(a, b, c):
        return compiled.finite(a + b + c)

    @njit
    def seen(a, b, c):
        return of_sum(a, b, c)

    for bad in (math.inf, -math.inf, math.nan):
        assert not seen(bad, 1.0, 2.0)
        assert not seen(np.float32(bad), np.float32(1), np.float32(2))
    assert seen(3e38, 1.0, 2.0)


def step(shape, layout):
    x = tensor(shape, layout=layout).requires_grad_()
    weight, bias = tensor(shape[1:2], seed=1), tensor(shape[1:2], seed=2)
    y, mean, var = batch_norm_act(x, weight.requires_grad_(), bias.requires_grad_(), act="relu")
    grads = torch.autograd.grad(y, [x, weight, bias], tensor(shape, seed=3))
    return [y.detach(), mean, var, *grads]


SHAPES = [(16, 24, 33, 31), (8, 3, 120, 121), (32, 300, 5, 5), (4096, 33)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape, layout):
    results = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        assert team.threads() == count
        results.append(step(shape, layout))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_what_is_done_at_once_for_a_chunk_is_cut_alike_in_each_stage():
    """Else a group of channels does not stay in cache, nor is it shared among threads."""
    plan = cpu._plan(torch.Size(SHAPES[0]), False, torch.float32)
    assert plan.whole
    for what in ("forward", "backward"):
        stages = plan.stages(what, "relu", "")
        assert {stage[1:3] for stage in stages} == {(plan.chunks, plan.group)}
    assert plan.chunks > 2


def test_python_threads_stand_in_for_openmp(monkeypatch):
    torch.set_num_threads(3)
    expected = step(SHAPES[0], "channels-last")
    monkeypatch.setattr(team, "_gnu_openmp", lambda: None)
    team._pool.cache_clear()  # other tests may have made some
    before = set(threading.enumerate())
    assert all(map(torch.equal, expected, step(SHAPES[0], "channels-last")))
    new = set(threading.enumerate()) - before
    assert len([each for each in new if each.name.startswith("spiritlevel")]) == 2


def test_several_python_threads_at_once():
    torch.set_num_threads(2)
    expected = step(SHAPES[0], "contiguous")
    wrong = []

    def work():
        for _ in range(5):
            if not all(map(torch.equal, expected, step(SHAPES[0], "contiguous"))):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_after_a_fork_one_thread_does_the_work():
    torch.set_num_threads(2)
    x, weight, bias = tensor(SHAPES[0]), tensor((24,), seed=1), tensor((24,), seed=2)
    with torch.no_grad():
        expected = batch_norm_act(x, weight, bias, act="relu")[0].numpy()
        child = os.fork()
        if child == 0:  # torch's own operations would wait for threads that are not there
            signal.alarm(60)
            y = batch_norm_act(x, weight, bias, act="relu")[0].numpy()
            os._exit(0 if team.threads() == 1 and (y == expected).all() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


class Normalized(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        with backend.use("cpu"):
            return batch_norm_act(tensor((64, 8, 9, 9), seed=index))[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_in_the_workers_of_a_data_loader():
    torch.set_num_threads(2)
    data = Normalized()
    expected = torch.stack([data[i] for i in range(4)])
    (got,) = DataLoader(data, batch_size=4, num_workers=1)
    assert torch.equal(got, expected)


CODE = """
import sys
import torch
from spiritlevel.kernels import backend, library
from spiritlevel.kernels.ops import batch_norm_act
with backend.use("cpu"):
    y, _, _ = batch_norm_act(torch.arange(12.0).view(3, 4), act="relu")
print(sum(sum(k.cache_hits.values()) if hasattr(k.cache_hits, "values") else k.cache_hits
          for k in library._ALIVE), len(library._ALIVE), round(float(y.sum()), 3))
"""


def run(folder, before="", **environment):
    return subprocess.run(
        [sys.executable, "-c", before + CODE],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_second_process_compiles_nothing(tmp_path):
    first, second = (run(tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    hits, count, value = first.stdout.split()
    assert (hits, value) == ("0", "4.899")
    assert second.stdout.split() == [count, count, value]


def test_each_kernel_has_files_of_its_own(tmp_path):
    """In a common index two processes that write at once can point one kernel at another's code."""
    done = run(tmp_path)
    _, count, _ = done.stdout.split()
    assert len(list(tmp_path.rglob("*.nbi"))) == len(list(tmp_path.rglob("*.nbc"))) == int(count)


def test_two_processes_may_fill_the_same_cache(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {words[2] for words in told} == {"4.899"}
    assert list(tmp_path.rglob("*.nbc"))


READ_ONLY = """
from numba.core.caching import _CacheLocator
def refuse(self):
    raise OSError(30, "Read-only file system")
_CacheLocator.ensure_cache_path = refuse
"""
FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""
UNKEPT = "kernels could not be kept on disk"


def test_where_nothing_can_be_written_each_process_compiles_and_says_so_once(tmp_path):
    done = run(tmp_path, READ_ONLY)
    assert done.returncode == 0, done.stderr
    hits, _, value = done.stdout.split()
    assert (hits, value) == ("0", "4.899")
    assert done.stderr.count(UNKEPT) == 1
    assert "set NUMBA_CACHE_DIR to a folder that can be written to" in done.stderr
    assert not list(tmp_path.rglob("*.nbi"))


def test_kernels_that_were_kept_are_read_where_nothing_can_be_written(tmp_path):
    assert run(tmp_path).returncode == 0
    done = run(tmp_path, READ_ONLY)
    hits, count, value = done.stdout.split()
    assert (hits, value) == (count, "4.899")
    assert UNKEPT not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is of Linux")
def test_a_disk_that_is_full_is_no_error(tmp_path):
    done = run(tmp_path, FULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "4.899"
    assert 1 <= done.stderr.count(UNKEPT) <= 2  # of an index, and of code
    assert "File too large" in done.stderr


@pytest.mark.parametrize(("ending", "size"), [(".nbc", 100), (".nbi", 0), (".nbi", 30)])
def test_a_damaged_file_is_written_anew(tmp_path, ending, size):
    run(tmp_path)
    for file in tmp_path.rglob(f"*{ending}"):
        os.truncate(file, size)
    mended, after = run(tmp_path), run(tmp_path)
    assert mended.returncode == 0, mended.stderr
    hits, count, value = mended.stdout.split()
    assert (hits, value) == ("0", "4.899")
    assert after.stdout.split() == [count, count, value]


def test_the_first_process_has_the_bits_of_those_after_it(tmp_path):
    """A kernel that was compiled just now is the one that is kept."""
    code = """
import torch
from spiritlevel.kernels import backend
from spiritlevel.kernels.ops import batch_norm_act
torch.manual_seed(0)
with backend.use("cpu"):
    x = torch.randn(8, 16, 20, 21, requires_grad=True)
    y, _, _ = batch_norm_act(x, act="silu")
    y.square().sum().backward()
print(y.detach().numpy().tobytes().hex(), x.grad.numpy().tobytes().hex())
"""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for _ in range(2)
    )
    assert len(first) > 1000
    assert first == second
    assert list(tmp_path.rglob("*.nbc"))


def test_numba_num_threads_is_the_most_that_run(tmp_path):
    told = """
import torch
from spiritlevel.kernels import team
torch.set_num_threads(5)
print(team.threads())
"""
    for given, most in (("2", "2"), ("9", "5"), ("", "5")):
        done = subprocess.run(
            [sys.executable, "-c", told],
            env=os.environ | {"NUMBA_NUM_THREADS": given},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == most, done.stderr


FORMULA = """
import sys
import torch
from spiritlevel.kernels import activations, backend, batch_norm_act, formulas
from spiritlevel.kernels.compiled import jit

activations.ACTIVATIONS["mine"] = lambda z: z

def mine(number):
    return jit(lambda z, slope: {formula}), jit(lambda z, slope, g: g)

formulas.add("mine", mine)
statistics = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
with backend.use("cpu"):
    y, _, _ = batch_norm_act(torch.full((4, 1), 2.0), act="mine", eps=0.0, statistics=statistics)
print(y[0].item())
"""


def test_a_formula_of_ones_own_is_compiled_anew_when_it_changes(tmp_path):
    """The package's are kept by its sources, in which this one does not stand."""
    for formula, wanted in (("z * z", "4.0"), ("z * z * z", "8.0")):
        done = subprocess.run(
            [sys.executable, "-c", FORMULA.format(formula=formula)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == wanted, done.stderr


def test_a_formula_that_changes_in_the_process_counts_at_once(monkeypatch):
    monkeypatch.setitem(activations.ACTIVATIONS, "mine", lambda z: z)
    monkeypatch.setattr(formulas, "_BY_NAME", dict(formulas._BY_NAME))
    x = torch.full((4, 1), 2.0, requires_grad=True)
    of = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    square = lambda z, slope: z * z, lambda z, slope, g: (z + z) * g
    cube = lambda z, slope: z * z * z, lambda z, slope, g: (z * z + z * z + z * z) * g
    for pair, wanted in ((square, (4, 4)), (cube, (8, 12)), (square, (4, 4))):
        formulas.add("mine", lambda _, pair=pair: tuple(map(compiled.jit, pair)))
        y, _, _ = batch_norm_act(x, act="mine", eps=0.0, statistics=of)
        (back,) = torch.autograd.grad(y.sum(), x)
        assert (y[0].item(), back[0].item()) == wanted


@pytest.mark.parametrize("name", ["relu", "identity"])
def test_a_formula_of_the_packages_is_not_replaced(name):
    before = formulas._BY_NAME[name]
    with pytest.raises(UsageError, match=f"got a formula for '{name}', which is the package's own"):
        formulas.add(name, lambda number: (None, None))
    assert formulas._BY_NAME[name] is before


def test_what_makes_no_formulas_is_refused():
    with pytest.raises(UsageError, match="got None for 'nothing'; wanted a function"):
        formulas.add("nothing", None)
    assert "nothing" not in formulas._BY_NAME
