"""What `gpu` is called for by others than the layers; and how it is cut, tuned and launched."""

from __future__ import annotations

import json
import math

import pytest
import torch
from cases import LAYOUTS, expected, leaves, tensor, where_gpu_runs
from ghost_cases import by as of_ghost
from tolerance import TOLERANCE

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import activation
from spiritlevel.kernels.ops import batch_norm_act

pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
import triton
import triton.language as tl

from spiritlevel.kernels import gpu, gpu_ghost, gpu_launch, gpu_passes, split

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
    x = torch.empty(1).expand(shape)
    with backend.use("gpu"):
        assert backend.by_us(x[:1], gpu=True)
        assert not backend.by_us(x, gpu=True)
        with pytest.raises(UsageError, match="more than 1073741824 values a channel; use kernels"):
            batch_norm_act(x)


@pytest.mark.parametrize("act", ["identity", "relu", "silu"])
@pytest.mark.parametrize("shape", [(4, 2, 6, 5), (1, 2, 6, 5), (4, 2, 7)], ids=str)
def test_one_channel_of_two(shape, act):
    wide = tensor(shape, layout="channels-last")
    x, weight, bias = (
        t.detach().requires_grad_() for t in (wide[:, :1], torch.ones(1), torch.zeros(1))
    )
    residual = tensor(shape, layout="channels-last", seed=1)[:, 1:].requires_grad_()
    assert not x.is_contiguous()
    grad = tensor(shape, layout="channels-last", seed=2)[:, :1]
    with backend.use("gpu"):
        y, *_ = batch_norm_act(x, weight, bias, residual, act=act)
    found = y, *torch.autograd.grad(y, [x, weight, bias, residual], grad)
    exact = expected([x, weight, bias, residual], grad, act)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, **TOLERANCE[torch.float32])


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


@pytest.mark.parametrize("act", ["relu", "identity"])
def test_each_tensor_is_read_in_no_more_passes_than_its_sums_need(act, monkeypatch):
    ran = []
    for module in (gpu, gpu_ghost):
        monkeypatch.setattr(
            module,
            "launch",
            lambda k, *given: (ran.append(k.__name__), gpu_launch.launch(k, *given)),
        )
    x, weight, bias, residual = leaves((4, 6, 5, 5), layout="channels-last", residual=True)
    with backend.use("gpu"):
        y, *_ = batch_norm_act(x, weight, bias, residual, act=act)
        y.backward(torch.ones_like(y))
    assert ran == ["collect", "apply", "reduce", "descend"]
    ran.clear()
    of_ghost(gpu_ghost, (2, 6, 5, 5), act, adds=False)
    back = ["reduce", "descend", "unjoin", "descend"]
    assert ran == ["collect", "apply", "convolve", "apply", *back]


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_what_comes_first_may_be_far_from_the_rest(far, monkeypatch):
    """Around the mean of the first tile, 4e-4 of the variance would be lost here."""
    monkeypatch.setattr(gpu, "multiprocessors", lambda: 132)
    gpu._plan.cache_clear()
    x = tensor((4096, 512))
    x[: gpu._planned(x).summed[0].how["BLOCK_R"]] = far
    _, var = gpu.statistics(x)
    gpu._plan.cache_clear()
    torch.testing.assert_close(var, x.double().var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_squares_beyond_float32_are_infinite_and_no_nan(monkeypatch):
    monkeypatch.setattr(gpu, "multiprocessors", lambda: 132)
    gpu._plan.cache_clear()
    x = tensor((4096, 512))
    x[100, 7] = 1e30
    mean, var = gpu.statistics(x)
    gpu._plan.cache_clear()
    assert var[7] == torch.inf
    assert torch.isfinite(var).sum() == 511
    torch.testing.assert_close(mean[7], x[:, 7].double().mean(), rtol=1e-5, atol=0)


def test_sums_of_halves_are_not_rounded_to_halves(monkeypatch):
    monkeypatch.setattr(gpu, "_TILE", 256)
    gpu._plan.cache_clear()
    x = tensor((4096, 8), torch.bfloat16, mean=3)
    mean, var = gpu.statistics(x)
    gpu._plan.cache_clear()
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(var, exact.var(0, correction=0), rtol=1e-5, atol=0)


@triton.jit
def place(out, row, outer, inner, PLANES: tl.constexpr, S: tl.constexpr, UNIT: tl.constexpr):
    rows = row + tl.arange(0, 2).to(tl.int64)
    at = gpu_passes._at(rows, tl.arange(0, 2), 8, 1, outer, inner, PLANES, S, UNIT)
    tl.store(out + tl.arange(0, 2)[:, None] * 2 + tl.arange(0, 2)[None, :], at)


@pytest.mark.parametrize(("planes", "S"), [(True, 1 << 24), (False, 1 << 10), (False, 1)])
def test_places_beyond_32_bits(planes, S):
    """As in maps of 16 GB, whose samples are that far apart."""
    outer, unit = (128, 1) if planes else ((1 << 21, 1 << 10) if S > 1 else (1 << 6, 16))
    row = 3 * S if S > 1 else 1 << 29
    out = torch.empty(2, 2, dtype=torch.int64)
    place[(1,)](out, row, outer, 8 if S > 1 else 1, planes, S, unit)
    step, inner = (S, 1) if planes else (1, 8 * unit if S > 1 else outer * unit)
    first = 3 * outer * S if planes else 3 * outer * unit if S > 1 else row * outer * unit
    assert first > 1 << 31
    assert out.tolist() == [[first + r * inner + c * step for c in range(2)] for r in range(2)]


@pytest.mark.parametrize(("numbers", "wide"), [((1 << 30) - 4, False), (1 << 30, True)])
def test_large_tensors_are_told_to_the_kernels(numbers, wide):
    plan = gpu._plan(torch.Size([numbers // 4, 4]), False, torch.float32, 1)
    assert all(way.how["WIDE"] is wide for way in (*plan.summed, *plan.written))


def test_what_is_not_what_lies_in_memory_is_not_taken():
    turned = torch._neg_view(torch.ones(4, 6, 2, 2))
    assert gpu.layout(turned) is None
    with backend.use("gpu"):
        y, mean, _ = batch_norm_act(turned + tensor((4, 6, 2, 2)))
        z, middle, _ = batch_norm_act(torch._neg_view(-(turned + tensor((4, 6, 2, 2)))))
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(middle, mean.to(middle.dtype))


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


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"reduce": "fast"}', "\udcff", "[" * 200_000], ids=len
)
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


@pytest.fixture
def timed(kept, monkeypatch):
    """As on a GPU, whose clock says what a test wants; how often it was asked."""
    asked = []

    def milliseconds(kernel, way, *_):
        asked.append(way)
        return [5.0, 4.0, math.inf, 2.0][(len(asked) - 1) % 4]

    monkeypatch.setattr(gpu_launch, "INTERPRETED", False)
    monkeypatch.setattr(gpu, "multiprocessors", lambda: 132)
    monkeypatch.setattr(gpu_launch, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "one")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    gpu._plan.cache_clear()
    yield asked
    gpu._plan.cache_clear()


def best(x, kernel=gpu_passes.collect):
    plan = gpu._planned(x)
    return plan.summed.index(gpu_launch._best(kernel, x, plan, (), ()))


def test_the_fastest_way_is_taken_and_found_again(timed):
    x = torch.empty(1 << 15, 256, device="meta")
    assert best(x) == 3
    assert len(timed) == 4
    gpu_launch._kept.cache_clear()  # as another process
    gpu._plan.cache_clear()
    assert best(x) == 3
    assert len(timed) == 4


def test_the_first_way_where_bits_must_not_depend_on_a_clock(timed):
    x = torch.empty(1 << 15, 256, device="meta")
    torch.use_deterministic_algorithms(True)
    try:
        assert best(x) == 0
        assert gpu._planned(x).taken == {}, "once it is off, the fastest is looked for"
    finally:
        torch.use_deterministic_algorithms(False)
    assert timed == []
    assert best(torch.empty(1 << 14, 256, device="meta")) == 0, "few numbers"
    assert timed == []


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
