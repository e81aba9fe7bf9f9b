"""What `gpu` is called for by others than the layers; and how it is cut, tuned and launched."""

from __future__ import annotations

import json

import pytest
import torch
from cases import LAYOUTS, expected, leaves, tensor, where_gpu_runs
from tolerance import TOLERANCE

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import activation
from spiritlevel.kernels.ops import batch_norm_act

pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
from spiritlevel.kernels import gpu, gpu_launch, split

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


@pytest.fixture(autouse=True)
def _device():
    with torch.device(where_gpu_runs()):
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slice_of_the_channels_is_written_where_it_belongs(layout):
    x, weight, bias, _ = leaves((3, 12, 5, 7), layout=layout)
    wide = torch.full_like(tensor((3, 24, 5, 7), layout=layout), 7.0)
    with torch.no_grad():
        y, mean, var = gpu.forward(x, weight, bias, None, "relu", 0.0, 1e-5, None)
        gpu.forward(x, weight, bias, None, "relu", 0.0, 1e-5, (mean, var), out=wide[:, 12:])
        wide_grad = tensor((3, 24, 5, 7), layout=layout, seed=5)
        grad = wide_grad[:, 12:]
        whole = gpu.backward(
            grad.clone(), x, weight, bias, None, None, mean, var, "relu", 0.0, 1e-5, True
        )
        part = gpu.backward(grad, x, weight, bias, None, None, mean, var, "relu", 0.0, 1e-5, True)
    assert torch.equal(wide[:, 12:], y)
    assert torch.equal(wide[:, :12], torch.full_like(y, 7.0))
    assert all(map(torch.equal, whole[:3], part[:3]))


@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_steps_of_a_batch_that_is_a_part_of_one(layout, act):
    x, weight, bias, residual = (
        t.detach() for t in leaves((6, 5, 3, 7), layout=layout, residual=True)
    )
    grad = torch.empty_like(x).copy_(tensor((6, 5, 3, 7), seed=9))
    exact = expected([x, weight, bias, residual], grad, act)
    mean, var = split.moments(x, "gpu")
    step = split.Step("gpu", weight, bias, mean, var, activation(act), 1e-5)
    y = split.applied(x, residual, step)
    halves = [
        split.reduced(grad[at], x[at], residual[at], y[at] if act == "relu" else None, step)
        for at in (slice(0, 2), slice(2, 6))
    ]
    of_weight, of_bias = (a + b for a, b in zip(halves[0][:2], halves[1][:2], strict=True))
    before = None if halves[0][2] is None else torch.cat([halves[0][2], halves[1][2]])
    count = x.numel() / 5
    grad_x = split.descended(grad, x, before, of_weight, of_bias, count, step)
    found = [y, grad_x, of_weight, of_bias, grad if before is None else before]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCE[torch.float32])


def test_layouts():
    x = torch.empty(3, 6, 4, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    assert gpu.layout(x) == (True, 6)
    assert gpu.layout(x[:, 2:5]) == (True, 6)
    assert gpu.layout(last) == (False, 6)
    assert gpu.layout(last[:, 2:5]) == (False, 6)
    assert gpu.layout(torch.empty(5, 6)) == gpu.layout(torch.empty(5, 6, 1, 1)) == (False, 6)
    for other in (x[:, :, ::2], x.transpose(2, 3), x.transpose(0, 1), last[:, :, 1:], x[:1, :1, 0]):
        assert gpu.layout(other) is None or other.is_contiguous()
    assert gpu.layout(torch.empty(6)) is None
    assert gpu.layout(torch.empty(5, 24)[:, :16]) is None, (
        "rows of vectors of 16 that are apart by 24"
    )
    assert gpu.layout(torch.empty(5, 24)[:, 8:]) is None
    assert gpu.layout(torch.empty(5, 48)[:, :16]) is None, "more than twice as wide"
    assert gpu.layout(torch.empty(2, gpu.MOST, 2)) == (True, gpu.MOST)
    assert gpu.layout(torch.empty(2, gpu.MOST + 1, 2)) is None, "a GPU takes no more on this axis"
    assert gpu.layout(torch.empty(1, 6, 1, 1).expand(3, 6, 4, 8)) is None


@pytest.mark.parametrize("shape", [(3, 5, 1 << 29), (1025, 4, 1024, 1024), (1 << 31, 4)], ids=str)
def test_more_values_a_channel_than_are_counted(shape):
    x = torch.empty(shape, device="meta")
    assert gpu.layout(x) is None
    assert gpu.layout(x[: len(x) // 2]) is not None
    with (
        backend.use("gpu"),
        pytest.raises(UsageError, match="and more than 1073741824 values a channel; use kernels"),
    ):
        batch_norm_act(torch.empty(1).expand(shape))


def test_ranks_are_merged_as_one_batch():
    chance = torch.Generator("cpu").manual_seed(0)
    made = [torch.randn(n, 150, generator=chance, device="cpu") * 3 + 1e4 for n in (7, 0, 1, 40)]
    whole, rows = torch.cat(made).double(), []
    for x in made:
        mean = x.double().mean(0) if len(x) else torch.zeros(150, device="cpu").double()
        squares = (x.double() - mean).square().sum(0)
        count = torch.tensor([float(len(x))], dtype=torch.float64, device="cpu")
        rows.append(torch.cat([count, mean, squares]))
    mean, var = gpu.merged(torch.stack(rows).to(torch.get_default_device()))
    exact_var, exact_mean = torch.var_mean(whole, 0, correction=0)
    torch.testing.assert_close(mean.cpu(), exact_mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(var.cpu(), exact_var, rtol=1e-10, atol=0)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRITLEVEL_CACHE", str(tmp_path / "cache"))
    gpu_launch._kept.cache_clear()
    yield tmp_path / "cache"
    gpu_launch._kept.cache_clear()


def test_what_was_fastest_is_kept_for_a_device(kept):
    gpu_launch._keep("NVIDIA H100", "reduce 8x8 lanes", 2)
    gpu_launch._keep("NVIDIA H100", "apply 8x8 lanes", 1)
    gpu_launch._kept.cache_clear()
    assert gpu_launch._kept("NVIDIA H100") == {"reduce 8x8 lanes": 2, "apply 8x8 lanes": 1}
    assert gpu_launch._kept("another") == {}
    (place,) = kept.iterdir()
    assert place.name.startswith("kernels-nvidia-h100-triton-")


def test_it_is_kept_in_the_cache_folder_which_may_be_in_ones_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPIRITLEVEL_CACHE", "~/another")
    assert gpu_launch._place("one").parent == tmp_path / "another"


@pytest.mark.parametrize("content", ["{", "[1]", '{"reduce": "fast"}', "\udcff"])
def test_a_damaged_file_counts_as_none(content, kept):
    kept.mkdir()
    gpu_launch._place("one").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert gpu_launch._kept("one") == {}
    gpu_launch._keep("one", "reduce", 1)
    assert json.loads(gpu_launch._place("one").read_text()) == {"reduce": 1}


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(kept):
    kept.write_text("a file")
    gpu_launch._keep("one", "reduce", 1)
    assert gpu_launch._kept("one") == {"reduce": 1}


def test_ways_hold_all_rows_and_the_first_is_taken_untimed():
    plan = gpu._planned(torch.empty(64, 40, 30, 30))
    for way in (*plan.summed, *plan.written):
        parts, part = way.grid[0], way.cut[-1]
        assert parts * part >= 64 * 900 > (parts - 1) * part
        assert part % way.how["BLOCK_R"] == 0
        assert parts <= plan.parts or way in plan.written
    if gpu_launch.INTERPRETED:
        gpu.statistics(torch.ones(64, 40, 3, 3))
        small = gpu._planned(torch.empty(64, 40, 3, 3))
        assert small.taken["collect", None] is small.summed[0]


@pytest.mark.parametrize("C", [1, 3, 8, 20, 36, 72, 100, 240, 336, 480, 513, 960, 2048])
def test_few_lanes_are_in_vain(C):
    K, block = gpu._side_by_side(C)
    lanes = C * K
    assert block & (block - 1) == 0
    assert lanes / (-(-lanes // block) * block) >= 0.75
    assert K == 1 or lanes <= block


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_ways_are_timed_once(kept):
    x = torch.randn(64, 64, 64, 64)
    gpu._plan.cache_clear()
    first, second = gpu.statistics(x), gpu.statistics(x)
    assert all(map(torch.equal, first, second))
    (place,) = kept.iterdir()
    assert list(json.loads(place.read_text())) == ["collect 64x64x64x64 planes 1 torch.float32"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_two_graphs_captured_before_either_is_replayed():
    x = torch.randn(64, 24, 9, 9)
    wanted = gpu.statistics(x)
    torch.cuda.synchronize()
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    found = []
    for graph in graphs:
        with torch.cuda.graph(graph):
            found.append(gpu.statistics(x))
    for graph, each in reversed([*zip(graphs, found, strict=True)]):
        for _ in range(2):
            graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, each, wanted))
