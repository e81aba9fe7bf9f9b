"""SyncBatchNorm on two real processes against torch's batch norm of the whole batch in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import several
import torch
from sync_cases import (
    BF16,
    F16,
    F32,
    F64,
    UNEVEN,
    Case,
    by_triton,
    cases,
    expected,
    images,
    net,
    part,
    trained,
    with_kernels,
)
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.kernels import split
from spiritlevel.kernels.activations import activation
from spiritlevel.nn import SyncBatchNorm
from spiritlevel.train import in_step, share_statistics_

CLOSE = {
    # Some ten roundings of numbers up to 30, in another order.
    F64: {"rtol": 1e-12, "atol": 1e-12},
    F32: {"rtol": 2e-5, "atol": 2e-5},
    # y and the gradients are stored with 8 and 11 bits; sums are of such numbers.
    BF16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    F16: {"rtol": 2e-3, "atol": 2e-3},
}
FAR = {
    # The last digit of a mean of 1e6, 1e-10, is 1e-8 of the deviation; gradients are near 100.
    F64: {"rtol": 1e-7, "atol": 2e-6},
    # The mean is known in float64; gradients are near 10.
    F32: {"rtol": 2e-5, "atol": 2e-4},
}
SUMMED = ("grad_weight", "grad_bias")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return several.run(2, "sync_cases.quick", tmp_path_factory.mktemp("two"))


def assert_as_one(case: Case, ranks, close):
    """What the ranks have, put together, is what one process has of the whole batch."""
    for name, whole in expected(case).items():
        parts = [rank[name] for rank in ranks]
        if name == "num_batches_tracked":
            assert [int(each) for each in parts] == [int(whole)] * len(ranks)
            continue
        if name in SUMMED:
            assert all(each is not None for each in parts)
            found = sum(each.double() for each in parts)
        elif name.startswith("running"):
            assert all(torch.equal(each, parts[0]) for each in parts)  # bit for bit
            found = parts[0].double()
        else:
            assert [len(each) for each in parts] == list(case.sizes)
            found = torch.cat(parts).double()
        torch.testing.assert_close(found, whole.double(), **close, msg=lambda m, n=name: f"{n} {m}")
    assert [rank["forward"] for rank in ranks] == [1] * len(ranks)
    assert [rank["both"] for rank in ranks] == [2] * len(ranks)
    assert all(rank["strides"] for rank in ranks if len(rank["y"]) > 1)
    assert all(rank["y"].dtype is case.dtype for rank in ranks)


@pytest.mark.parametrize("name", cases())
def test_as_one_process_on_the_whole_batch(two, name):
    case = cases()[name]
    close = (FAR if name.startswith("far") else CLOSE)[case.dtype]
    assert_as_one(case, [rank[name] for rank in two], close)


def test_all_ranks_raise_alike(two):
    first, second = (rank["refused"] for rank in two)
    for rank, shape in ((first, (1, 3)), (second, (0, 3))):
        kind, text = rank["one value"]
        assert kind == "ValueError"
        assert text.startswith("Expected more than 1 value per channel when training")
        assert text.endswith(f"has size {shape}")
    told = (
        "UsageError",
        "got an error in a SyncBatchNorm on rank {} of its group, which says what it is; all ranks "
        "stop",
    )
    on_1, on_0 = ((told[0], told[1].format(each)) for each in (1, 0))
    assert first["channels on 1"] == first["residual on 1"] == on_1
    wanted = "wanted floats, with 3 channels on axis 1"
    assert second["channels on 1"][1].startswith("got an input of shape (4, 4) and torch.float32;")
    assert second["channels on 1"][1].endswith(wanted)
    assert second["residual on 1"][0] == "RuntimeError"
    assert second["dim on 0"] == on_0
    assert first["dim on 0"] == ("ValueError", "expected at least 2D input (got 1D input)")
    nothing = "got NoneType and NoneType as input and residual; wanted tensors"
    text = "got Tensor and str as input and residual; wanted tensors"
    assert (first["nothing on 1"], second["nothing on 1"]) == (on_1, ("UsageError", nothing))
    assert (first["text on 0"], second["text on 0"]) == (("UsageError", text), on_0)
    for rank in (first, second):
        assert rank["eps"] == ("UsageError", "got eps=0.0; wanted a number above 0 in training")
        assert "graph that leaves Python" in rank["traced"][1]
        assert rank["same"]  # nothing was counted or moved
    goes_on = torch.cat([first["after"], second["after"]])
    whole = F.batch_norm(torch.arange(12.0).reshape(4, 3), None, None, training=True)
    torch.testing.assert_close(goes_on, whole, **CLOSE[F32])


def test_when_all_are_empty_nothing_moves(two):
    for rank in two:
        shape, grad, var = rank["refused"]["all empty"]
        assert shape == (0, 3)
        assert grad.tolist() == [0, 0, 0]
        assert var.tolist() == [1, 1, 1]


def test_eval_and_a_group_of_one_send_nothing(two):
    assert [rank["silent"] for rank in two] == [(0, True, True)] * 2


def test_twice_in_a_step(two):
    x, _, grad, weight, bias = (t.requires_grad_() for t in Case().data())
    inner = F.batch_norm(x, None, None, weight, bias, True).square()
    F.batch_norm(inner, None, None, weight, bias, True).backward(grad.detach())
    sent, grads, of_weight, counted = zip(*(rank["twice"] for rank in two), strict=True)
    assert sent == (4, 4)
    assert counted == (2, 2)
    torch.testing.assert_close(torch.cat(grads), x.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sum(of_weight), weight.grad, rtol=1e-11, atol=1e-11)


def test_what_wants_no_gradient_sends_none(two):
    whole = expected(Case())["y"]
    for number, rank in enumerate(two):
        forward, after, y = rank["without_grad"]
        assert (forward, after) == (2, 2)
        torch.testing.assert_close(y, *part(Case(), number, whole), **CLOSE[F64])


def test_it_is_differentiated_once(two):
    for rank in two:
        found = rank["differentiated_twice"]
        assert found[0] == "RuntimeError"
        assert "marked with @once_differentiable" in found[1]


def test_in_autocast(two):
    assert [rank["in_autocast"] for rank in two] == [(BF16, F32, True)] * 2


def test_observers_are_told_the_statistics_of_all(two):
    x = Case().data()[0]
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    for rank, size in zip(two, Case().sizes, strict=True):
        ((shape, statistics),) = rank["told"]
        assert shape[0] == size
        for found, whole in zip(statistics, (mean, var), strict=True):
            torch.testing.assert_close(found, whole, **CLOSE[F64])


def test_a_residual_that_is_spread_or_of_another_type(two):
    case = Case(dtype=F32, act="relu")
    x, residual, _, weight, bias = case.data()
    z = F.batch_norm(x, None, None, weight.float(), bias.float(), True)
    for each, added in enumerate((residual[:, :1], residual.double(), 0.5)):
        found = torch.cat([rank["wide_residual"][each] for rank in two])
        torch.testing.assert_close(found, torch.relu(z + added), **CLOSE[F32])


def test_a_copy_is_in_the_same_group(two):
    assert [rank["copies"] for rank in two] == [(True, True, False)] * 2


# ---- whole models --------------------------------------------------------------------------------


def assert_same_state(found, whole):
    for name, values in whole.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-10, msg=name)


def test_a_parallel_model_trains_as_one_process(two):
    whole = trained(net("batch"), ((*images(8, step), 1.0) for step in range(5)))
    for rank in two:
        assert_same_state(rank["parallel"], whole)


def test_uneven_ranks_train_as_one_process(two):
    """Four batches on one rank, one on the other, which goes on with empty ones."""
    padded = [*UNEVEN[1], None, None, None]
    steps = []
    for pair in zip(UNEVEN[0], padded, strict=True):
        parts = [images(*each) for each in pair if each]
        steps.append((*(torch.cat(each) for each in zip(*parts, strict=True)), 1.0))
    whole = trained(net("batch"), iter(steps))
    for rank in two:
        found, _, collectives = rank["uneven"]
        assert_same_state(found, whole)
        assert collectives == 5  # one a step, and one to see that all are done
    first, second = (rank["uneven"][1] for rank in two)
    assert first == [(3, 2 * 3 / 9), (4, 2.0), (2, 2.0), (5, 2.0)]
    assert second == [(6, 2 * 6 / 9), (0, 0.0), (0, 0.0), (0, 0.0)]


def test_uneven_ranks_raise_alike(two):
    first, second = (rank["uneven_errors"] for rank in two)
    none = (
        "UsageError",
        "got no batch at all on rank 1, where an empty one would have to be made from it; wanted "
        "one or more on each rank",
    )
    assert first["none on 1"] == second["none on 1"] == none
    assert first["none at all"] == second["none at all"] == "done"
    assert second["stops"] == ("OSError", "gone")
    assert first["stops"][1].startswith("got an error on rank 1, which says what it is")
    assert second["no tensor"][1].startswith(
        "got a batch, a str, without a tensor that has an axis"
    )
    assert first["dict"] == [(3, 2.0, "a"), (4, 2.0, "a"), (2, 2.0, "a"), (5, 2.0, "a")]
    assert second["dict"] == [(6, 2.0, "a"), *[(0, 2.0, "a")] * 3]


def test_statistics_are_shared_in_one_collective(two):
    (one, after, *rest), (other, also, *more) = (rank["statistics"] for rank in two)
    assert rest == more == [1, True, False]
    for name in after:
        if name.startswith("2."):  # frozen: each keeps its own
            assert torch.equal(after[name], one[name])
            assert torch.equal(also[name], other[name])
            continue
        assert torch.equal(after[name], also[name])
        if "running" in name:
            torch.testing.assert_close(after[name], (one[name] + other[name]) / 2)
        if "tracked" in name:
            assert int(after[name]) == 2


@pytest.mark.slow
def test_by_our_kernels(tmp_path):
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    ranks = several.run(2, "sync_cases.kernels", tmp_path, seconds=600)
    for name, case in with_kernels().items():
        close = FAR if name == "far mean" else CLOSE
        assert_as_one(case, [rank[name] for rank in ranks], close[case.dtype])


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they are not interpreted")
def test_by_the_kernels_of_a_gpu(tmp_path):
    pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")
    ranks = several.run(2, "sync_cases.triton", tmp_path, seconds=300)
    for rank in ranks:
        merges = rank.pop("merges")
        assert len(merges) >= len(rank)
        assert set(merges) == {2}
    for name, case in by_triton().items():
        assert_as_one(case, [rank[name] for rank in ranks], CLOSE[case.dtype])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_on_a_gpu(tmp_path):
    ranks = several.run(2, "sync_cases.on_gpu", tmp_path)
    for name, case in cases().items():
        close = (FAR if name.startswith("far") else CLOSE)[case.dtype]
        assert_as_one(case, [rank[name] for rank in ranks], close)


@pytest.mark.slow
def test_three_processes_and_a_group_of_two(tmp_path):
    ranks = several.run(3, "sync_cases.three", tmp_path)
    whole = Case(sizes=(2, 5, 0), act="relu", residual=True)
    assert_as_one(whole, [rank[0] for rank in ranks], CLOSE[F64])
    pair = [{**ranks[each][1], "forward": 1, "both": 2} for each in (0, 2)]
    assert_as_one(Case(sizes=(3, 4), act="silu"), pair, CLOSE[F64])
    # Groups of their own count their own collectives; that of one rank has none to count.
    alone = {**ranks[1][1], "forward": 1, "both": 2}
    assert_as_one(Case(sizes=(6,)), [alone], CLOSE[F64])
    assert [rank[2] for rank in ranks] == [[2 * 1 / 4], [1.0], [2 * 3 / 4]]
    assert [rank[3].tolist() for rank in ranks] == [[1, 1]] * 3


@pytest.fixture(scope="module")
def imported_more(tmp_path_factory):
    """What takes seconds to import."""
    return several.run(2, "sync_cases.slow", tmp_path_factory.mktemp("slow"))


@pytest.mark.slow
def test_compiled_models_break_their_graph_there(imported_more):
    for rank in imported_more:
        (count, *eager), (also, *graph) = rank["compiled"]
        assert count == also
        torch.testing.assert_close(graph, eager, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_recomputed_in_the_backward_pass(imported_more):
    for rank in imported_more:
        (plain, once, *grads), (again, twice, *others) = rank["recomputed"]
        assert (plain, again) == (2, 3)  # collectives
        assert (once, twice) == (1, 2)  # batches that the running statistics have taken in
        assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


# ---- one process ---------------------------------------------------------------------------------


def test_gradients_are_summed_in_float64():
    """In float32 the one is lost beside 2 ** 26, and what is left is nothing."""
    grad = torch.tensor([2.0**26, 1.0, -(2.0**26)])[:, None]
    x, none, one = torch.ones(3, 1), torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    step = split.Step("aten", None, None, none, one, activation("identity"), 0.0)
    of_weight, of_bias, _ = split.reduced(grad, x, None, None, step)
    assert (of_weight.item(), of_bias.item()) == (1.0, 1.0)


@pytest.mark.parametrize("rest", [(), (4,), (3, 3), (2, 2, 2)])
def test_alone_it_is_the_batch_norm_of_its_axes(rest):
    case = Case(sizes=(5,), rest=rest, act="silu", residual=True)
    x, residual, *_ = case.data()
    layer = case.layer()
    plain = getattr(sl.nn, f"BatchNormAct{max(len(rest), 1)}d")(5, "silu", dtype=F64)
    plain.load_state_dict(layer.state_dict())
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x, residual), plain.train(mode)(x, residual))
    assert_equal_state(layer, plain)


def assert_equal_state(one, other):
    found, wanted = one.state_dict(), other.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_it_has_torchs_signature():
    layer = SyncBatchNorm(3, 1e-3, None, False, False, None, "cpu", F64, act="relu")
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert not isinstance(layer, nn.SyncBatchNorm)  # which DistributedDataParallel refuses on CPUs
    told = "3, eps=0.001, momentum=None, affine=False, bias=False, track_running_stats=False"
    assert repr(layer) == f"SyncBatchNorm({told}, act=relu)"
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)  # noqa: S301
    with pytest.raises(UsageError, match="got activation 'tanh'"):
        SyncBatchNorm(3, act="tanh")
    with pytest.raises(UsageError, match=r"use spiritlevel\.convert\(model, 'sync'\)"):
        SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))
    for one, dropped in (
        (layer, r"activation \(relu\)"),
        (SyncBatchNorm(3), "collectives on CPUs"),
    ):
        with pytest.raises(UsageError, match=f"would drop its {dropped}"):
            nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(one))


def test_a_trace_has_one_node():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), SyncBatchNorm(3, act="relu"))
    nodes = [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
    assert nodes == ["placeholder", "call_module", "call_module", "output"]


@pytest.mark.slow
def test_in_eval_it_is_exported_as_torchs_operations():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), SyncBatchNorm(3, act="relu")).eval()
    model[1].running_mean.uniform_()
    x = torch.randn(2, 2, 4, 4)
    exported = torch.export.export(model, (x,))
    assert not [n for n in exported.graph.nodes if "spiritlevel" in str(n.target)]
    torch.testing.assert_close(exported.module()(x), model(x))


def test_one_process_shares_nothing_and_is_in_step():
    model = net("batch")
    before = copy.deepcopy(model.state_dict())
    assert share_statistics_(model) is model
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    batches = [images(3), images(2)]
    found = list(in_step(batches))
    assert [share for _, share in found] == [1.0, 1.0]
    assert all(a is b for (a, _), b in zip(found, batches, strict=True))
    with pytest.raises(UsageError, match="got int to share; wanted a torch"):
        share_statistics_(7)
