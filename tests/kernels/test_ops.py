"""Batch normalization, add and activation as one operation, on the kernels of `cpu`."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, leaves, on

pytest.register_assert_rewrite("table")
from table import *  # noqa: E402, F403
from table import check  # noqa: E402

from spiritlevel.kernels.ops import batch_norm_act  # noqa: E402

pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")

pytestmark = pytest.mark.slow  # kernels are compiled


@pytest.fixture(autouse=True)
def _on_cpu():
    with on("cpu"):
        yield


@pytest.fixture
def past_the_cache(monkeypatch):
    """Every tensor counts as too large for a cache, where its rows are whole vectors."""
    cpu = pytest.importorskip("spiritlevel.kernels.cpu")
    monkeypatch.setattr(cpu, "_UNCACHED", 0)
    cpu._plan.cache_clear()
    yield cpu
    cpu._plan.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 16, 24, 32), (19, 96, 4, 8), (33, 48)], ids=str)
def test_written_past_the_cache(shape, layout, dtype, past_the_cache):
    tensors = leaves(shape, dtype, layout)
    rows = not tensors[0].is_contiguous()
    assert past_the_cache._plan(torch.Size(shape), rows, dtype).past_cache
    check(tensors, "relu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_no_whole_vectors_are_not_written_past_the_cache(layout, past_the_cache):
    tensors = leaves((3, 5, 7, 9), layout=layout)
    rows = not tensors[0].is_contiguous()
    assert not past_the_cache._plan(tensors[0].shape, rows, torch.float32).past_cache
    check(tensors, "relu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["", "add"])
def test_what_a_compiler_is_told_of_the_operations_is_so(residual, dtype):
    x, weight, bias, added = (
        None if t is None else t.detach() for t in leaves((4, 6, 5, 5), dtype, residual=residual)
    )
    rest = (None, None, "relu", 0.01, 1e-5)
    checks = ("test_schema", "test_faketensor")
    operations = torch.ops.spiritlevel
    torch.library.opcheck(
        operations.batch_norm_act.default, (x, weight, bias, added, *rest), test_utils=checks
    )
    y, mean, var = operations.batch_norm_act(x, weight, bias, added, *rest)
    saved = (None, y if residual else None, mean, var)
    torch.library.opcheck(
        operations.batch_norm_act_backward.default,
        (y, x, weight, bias, *saved, *rest[2:], True),
        test_utils=checks,
    )
    batch_norm_act(x)
