"""Which kernels run, what is said where they are not ours, and how they are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.ops import batch_norm_act
from spiritlevel.nn import batch as snn

pytestmark = pytest.mark.slow  # kernels are compiled
LARGE = (4, 16, 32, 33)


@pytest.fixture
def fresh():
    """Nothing has been warned of yet."""
    backend._warn_once.cache_clear()
    yield
    backend._warn_once.cache_clear()


def which(x, **others):
    before = backend.ran.copy()
    batch_norm_act(x, **others)
    (name,) = backend.ran - before
    return name


def test_auto_takes_ours_where_there_is_enough_to_do():
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    assert which(torch.randn(LARGE)) == "cpu"
    assert which(torch.randn(4, 16, 32, 31)) == "aten"
    with backend.use("cpu"):
        assert which(torch.randn(2, 3)) == "cpu"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.randn(LARGE).half(), "torch.float16 numbers"),
        (lambda: torch.randn(4, 16, 32, 66)[..., ::2], "an input with gaps, or neither"),
        (lambda: torch.randn(32, 4, 16, 33).permute(1, 2, 0, 3), "neither contiguous nor"),
    ],
    ids=["half", "gaps", "order"],
)
def test_what_ours_cannot_take_goes_to_torchs_with_one_warning(make, reason):
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    x = make()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert which(x) == which(x) == "aten"
    (only,) = told
    assert "runs on torch's own kernels, which are slower, for" in str(only.message)
    assert reason in str(only.message)
    with (
        backend.use("cpu"),
        pytest.raises(UsageError, match=r"got kernels 'cpu' and .*use kernels"),
    ):
        batch_norm_act(x)


@pytest.mark.parametrize(
    "others",
    [
        {"weight": torch.ones(15)},
        {"bias": torch.ones(17)},
        {"residual": torch.ones(4, 16, 32, 32)},
        {"weight": torch.ones(16, device="meta")},
        {"statistics": (torch.ones(15).double(), torch.ones(15).double())},
    ],
    ids=["weight", "bias", "residual", "device", "statistics"],
)
@pytest.mark.filterwarnings("ignore:batch normalization runs on torch's own kernels")
def test_tensors_that_do_not_fit_are_torchs_error_and_no_memory_is_read(others):
    with pytest.raises((RuntimeError, NotImplementedError)):
        batch_norm_act(torch.randn(LARGE), **others)


def test_use_ends_with_its_block_also_where_that_raises():
    with backend.use("reference"):
        with pytest.raises(ZeroDivisionError), backend.use("aten"):
            raise ZeroDivisionError(which(torch.randn(LARGE)))
        assert which(torch.randn(LARGE)) == "reference"
    assert backend.asked() == "auto"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fast", "got kernels.use 'fast'; wanted one of auto, cpu, aten, reference, gpu"),
    ],
)
def test_a_name_that_there_is_not(name, told):
    with pytest.raises(UsageError) as caught, backend.use(name):
        pass
    assert str(caught.value) == told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_of_a_gpu_that_is_not_there_are_refused():
    pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
    assert asked_for_gpu("", TRITON_INTERPRET="0") == (
        "got kernels.use 'gpu', but torch sees no GPU here (TRITON_INTERPRET=1, set before, runs "
        "them on a processor)"
    )


def test_without_triton_kernels_of_a_gpu_are_refused():
    hidden = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
"""
    told = "triton is not installed: pip install 'spiritlevel[triton]'"
    assert asked_for_gpu(hidden) == f"got kernels.use 'gpu', but {told}"


def asked_for_gpu(before, **environment):
    code = f"""
{before}
from spiritlevel import kernels
from spiritlevel.errors import UsageError
try:
    with kernels.use("gpu"):
        pass
except UsageError as error:
    print(error)
"""
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_backward_pass_runs_the_kernels_of_its_forward_pass():
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    x = torch.randn(LARGE).requires_grad_()
    with backend.use("cpu"):
        y, _, _ = batch_norm_act(x)
    with backend.use("reference"):
        y.backward(torch.ones_like(y))
    assert type(y.grad_fn).__name__ == "_BatchNormActBackward"
    assert x.grad.abs().max() < 1e-5


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


NONSENSE = "got SPIRITLEVEL_KERNELS 'nonsense'; wanted one of auto, cpu, aten, reference, gpu"


@pytest.mark.parametrize(("name", "told"), [("aten", "aten"), ("nonsense", NONSENSE)])
def test_the_variable_asks_for_kernels(name, told):
    code = f"""
import torch
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.ops import batch_norm_act
try:
    batch_norm_act(torch.randn{LARGE})
    print(*backend.ran)
except UsageError as error:
    print(error)
"""
    done = run(code, SPIRITLEVEL_KERNELS=name)
    assert done.stdout.strip() == told, done.stderr


def test_without_numba_torchs_kernels_run_after_one_warning_that_says_what_is_lost():
    code = f"""
import sys
sys.modules["numba"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
import torch
from torch import nn
from spiritlevel.nn import batch as snn
layer, x = snn.BatchNormAct2d(16), torch.randn{LARGE}
for _ in range(3):
    y = layer(x)
assert torch.equal(y, torch.relu(nn.BatchNorm2d(16)(x)))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("runs on torch's own kernels, which are slower") == 1
    assert "numba is not installed: pip install 'spiritlevel[cpu]'" in done.stderr


def test_a_numba_whose_insides_are_unknown_is_left_alone_and_named():
    code = f"""
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.61.2" if name == "numba" else real(name)
import torch
from spiritlevel import kernels
from spiritlevel.errors import UsageError
from spiritlevel.nn import batch as snn
layer, x = snn.BatchNormAct2d(16), torch.randn{LARGE}
layer(x), layer(x)
try:
    with kernels.use("cpu"):
        pass
except UsageError as error:
    print(error)
"""
    done = run(code)
    told = "numba is 0.61.2, not 0.68: pip install 'spiritlevel[cpu]'"
    assert done.stderr.count(told) == 1, done.stderr
    assert done.stdout.strip() == f"got kernels.use 'cpu', but {told}"


def test_a_numba_that_does_not_import_is_named_and_torchs_kernels_run(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba/__init__.py").write_text('raise ImportError("Numba needs an older NumPy")')
    code = f"""
import torch
from torch import nn
from spiritlevel.nn import batch as snn
x = torch.randn{LARGE}
for _ in range(2):
    y = snn.BatchNorm2d(16)(x)
assert torch.equal(y, nn.BatchNorm2d(16)(x))
"""
    done = run(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba does not import (Numba needs an older NumPy)") == 1


def test_a_triton_that_does_not_import_or_builds_nothing_is_told_what_it_lacks(monkeypatch):
    pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
    from spiritlevel.kernels import gpu

    def fails():
        raise RuntimeError("Failed to find C compiler.\nSee the log")

    ask = backend._missing_on_gpu.__wrapped__
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "built", fails)
    told = ask()
    assert told.startswith("triton builds no kernel here (Failed to find C compiler.): it wants a")
    monkeypatch.setattr(backend, "import_module", lambda name: 1 / 0)
    assert ask() == "triton does not import (division by zero): pip install 'spiritlevel[triton]'"


def test_compiled_without_numba_it_says_so_once():
    code = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
import torch
from spiritlevel.nn import batch as snn
layer = torch.compile(snn.BatchNormAct2d(16), fullgraph=True, backend="aot_eager")
for _ in range(2):
    layer(torch.randn{LARGE})
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba is not installed: pip install 'spiritlevel[cpu]'") == 1


def test_a_tensor_that_stands_for_its_negative_goes_to_torchs():
    x = torch.randn(LARGE) + 2
    assert which(torch._neg_view(x)) == "aten"
    torch.testing.assert_close(batch_norm_act(torch._neg_view(x))[1], -x.mean((0, 2, 3)))


def test_a_small_layer_costs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = snn.BatchNorm2d(3)(torch.randn(2, 3, 4, 4).half().float())
    assert y.shape == (2, 3, 4, 4)
