"""PyTorch's own samples of batch normalization, run on our layers and kernels.

The samples are those that torch's test suite draws its tests from: `ModuleInfo` of the three
layers and `OpInfo` of `nn.functional.batch_norm`. The checks are torch's too: values, gradients,
gradcheck, gradgradcheck, batched gradients, memory format, inputs with gaps, errors.

Everything runs under `use("cpu")`, and each forward pass says which kernels ran. `NOT_OURS` lists
all that our kernels leave to torch's or refuse, with the reason; an entry that no longer applies
fails, and so does a sample that is left out without one.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, ops
from spiritlevel.nn import batch as snn

pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")

pytestmark = pytest.mark.slow  # kernels are compiled, and torch's samples take 5 s to import

EMPTY = "an empty batch: there is nothing to do, and torch's own result is handed back"
FLAT = "one axis, so no channels: torch's own result is handed back"
HALF = "torch.float16 numbers"
GAPS = "an input with gaps, or neither contiguous nor channels-last"
NOT_OURS = {
    "BatchNorm1d zero_batch": EMPTY,
    "BatchNorm2d zero_batch": EMPTY,
    "BatchNorm3d zero_batch": EMPTY,
    "batch_norm (0,) training": FLAT,
    "batch_norm (0,) eval": FLAT,
    "float16": HALF,
    "with gaps": GAPS,
}
"""Sample, or kind of it -> why our kernels do not run. HALF and GAPS are UsageError's words."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CLOSE = {
    # Some ten float32 roundings of numbers up to 10, in another order; the same for float64.
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    # Both round to 8 bits, input, output and gradient: one unit of 2**-7 apart at worst.
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
LAYERS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")


@cache
def module_info(name):
    from torch.testing._internal.common_modules import module_db

    (info,) = (info for info in module_db if info.name == f"nn.{name}")
    return info


@cache
def op_infos():
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if op.name == "nn.functional.batch_norm"]


def module_samples(name, dtype, training):
    """(what it is called, arguments of the constructor, the forward pass's input)."""
    info = module_info(name)
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    ):
        (x,) = sample.forward_input.args
        assert not sample.forward_input.kwargs
        assert x.requires_grad
        yield f"{name} {sample.desc}".strip(), sample.constructor_input, x


def op_samples(dtype):
    """(what it is called, input, arguments by name) of each sample of each variant."""
    for op in op_infos():
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            names = ("running_mean", "running_var", "weight", "bias")
            options = {**dict(zip(names, sample.args, strict=True)), **sample.kwargs}
            mode = "training" if options.get("training") else "eval"
            yield f"batch_norm {tuple(sample.input.shape)} {mode}", sample.input, options


class Ran:
    """Within the block our kernels run, in each forward pass; torch's where `NOT_OURS` says so."""

    def __init__(self, sample):
        self.expected = "aten" if sample in NOT_OURS else "cpu"

    def __enter__(self):
        self.before, self.use = backend.ran.copy(), backend.use("cpu")
        self.use.__enter__()

    def __exit__(self, *error):
        self.use.__exit__(*error)
        assert error[0] is not None or set(backend.ran - self.before) == {self.expected}


def pair(name, construct, dtype, training):
    """Our layer and torch's, with the same weights, all of them other than 0 and 1."""
    torch.manual_seed(5)
    theirs = getattr(nn, name)(*construct.args, **construct.kwargs, dtype=dtype)
    ours = getattr(snn, name)(*construct.args, **construct.kwargs, dtype=dtype)
    with torch.no_grad():
        for t in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
            if t is not None:
                t.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours.train(training), theirs.train(training)


def batch_norm(x, running_mean, running_var, weight, bias, training=False, momentum=0.1, eps=1e-5):
    """`F.batch_norm` as our layers put it together."""
    running = None if running_mean is None else (running_mean, running_var)
    statistics = None if training else running
    y, *batch = ops.batch_norm_act(x, weight, bias, eps=eps, statistics=statistics)
    if training and running is not None and x.numel() > 0:
        ops.follow((*running, momentum), batch, x.numel() // x.shape[1])
    return y


def leaf(x):
    return x.detach().clone().requires_grad_(x.requires_grad)


def copied(options):
    return {k: leaf(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def wanted(x, options):
    return [x, *(t for t in options.values() if isinstance(t, torch.Tensor) and t.requires_grad)]


def with_gaps(x):
    """The same values, each with a stranger after it in memory."""
    x = x.detach()
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_()


# Layers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward_of_layers(name, training, dtype):
    for sample, construct, x in module_samples(name, dtype, training):
        ours, theirs = pair(name, construct, dtype, training)
        for step in range(2):
            x, z = leaf(x + step), leaf(x + step)
            with Ran(sample):
                y = ours(x)
            expected = theirs(z)
            assert y.dtype is dtype
            torch.testing.assert_close(y, expected, **CLOSE[dtype])
            upstream = torch.randn_like(y)
            got = torch.autograd.grad(y, [x, *ours.parameters()], upstream)
            exact = torch.autograd.grad(expected, [z, *theirs.parameters()], upstream)
            # A weight's gradient is a sum over the batch, of numbers up to 10.
            atol = 4 * CLOSE[dtype]["atol"]
            torch.testing.assert_close(got, exact, rtol=CLOSE[dtype]["rtol"], atol=atol)
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **CLOSE[dtype])


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_and_gradgradcheck_of_layers(name, training):
    for sample, construct, x in module_samples(name, torch.float64, training):
        ours, _ = pair(name, construct, torch.float64, training)
        names = [name for name, _ in ours.named_parameters()]

        def forward(x, *parameters, layer=ours, names=names):
            return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

        inputs = [x, *ours.parameters()]
        with Ran(sample):
            assert torch.autograd.gradcheck(forward, inputs, fast_mode=True)
            assert torch.autograd.gradgradcheck(forward, inputs, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("of_layer", [True, False], ids=["layer", ""])
@pytest.mark.parametrize("of_input", [True, False], ids=["input", ""])
@pytest.mark.parametrize("name", LAYERS[1:])
def test_memory_format_of_layers(name, of_input, of_layer, training):
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    for sample, construct, x in module_samples(name, torch.float32, training):
        ours, theirs = pair(name, construct, torch.float32, training)
        there = last[x.dim()]
        if of_layer:
            ours.to(memory_format=there)
        x, z = x.detach(), leaf(x)
        x = (x.contiguous(memory_format=there) if of_input else x).requires_grad_()
        with Ran(sample):
            y = ours(x)
        assert y.is_contiguous(memory_format=there if of_input else torch.contiguous_format)
        expected = theirs(z)
        torch.testing.assert_close(y, expected, **CLOSE[torch.float32])
        for grad in (torch.randn_like(y), torch.randn_like(z)):  # in either memory format
            got = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
            exact = torch.autograd.grad(expected, z, grad, retain_graph=True)[0]
            torch.testing.assert_close(got, exact, **CLOSE[torch.float32])
            if sample not in NOT_OURS:
                assert got.stride() == x.stride()


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_of_layers_with_gaps(name, training):
    for sample, construct, x in module_samples(name, torch.float32, training):
        ours, theirs = pair(name, construct, torch.float32, training)
        x = with_gaps(x)
        if sample not in NOT_OURS:
            with pytest.raises(UsageError) as told, backend.use("cpu"):
                copy.deepcopy(ours)(x)
            assert NOT_OURS["with gaps"] in str(told.value)
        assert torch.equal(ours(x), theirs(x))  # where nothing is asked for


@pytest.mark.parametrize("name", LAYERS)
def test_errors_of_layers(name):
    """In training: torch's own test has no other."""
    errors = module_info(name).module_error_inputs_func(
        module_info(name), device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    assert errors
    for error in errors:
        construct, forward = (
            getattr(error.module_error_input, f"{part}_input")
            for part in ("constructor", "forward")
        )
        layer = getattr(snn, name)(*construct.args, **construct.kwargs, dtype=torch.float64)
        with pytest.raises(error.error_type, match=error.error_regex), backend.use("cpu"):
            layer(*forward.args, **forward.kwargs)


# The operation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_of_the_operation(dtype):
    for sample, x, options in op_samples(dtype):
        here, there = copied(options), copied(options)
        x, z = leaf(x), leaf(x)
        with Ran(sample):
            y = batch_norm(x, **here)
        expected = F.batch_norm(z, **there)
        torch.testing.assert_close(y, expected, **CLOSE[dtype])
        upstream = torch.randn_like(y)
        got = torch.autograd.grad(y, wanted(x, here), upstream)
        exact = torch.autograd.grad(expected, wanted(z, there), upstream)
        atol = 4 * CLOSE[dtype]["atol"]
        torch.testing.assert_close(got, exact, rtol=CLOSE[dtype]["rtol"], atol=atol)
        for k in ("running_mean", "running_var"):
            if here[k] is not None:
                torch.testing.assert_close(here[k], there[k], **CLOSE[dtype])


def check_gradients(check, **options):
    for sample, x, others in op_samples(torch.float64):
        names = [k for k, t in others.items() if isinstance(t, torch.Tensor) and t.requires_grad]
        inputs = [x, *(others[k] for k in names)]

        def forward(x, *tensors, others=others, names=names):
            given = {k: t.clone() if isinstance(t, torch.Tensor) else t for k, t in others.items()}
            return batch_norm(x, **given | dict(zip(names, tensors, strict=True)))

        with Ran(sample):
            assert check(forward, inputs, **options)


def test_gradcheck_and_gradgradcheck_of_the_operation():
    check_gradients(torch.autograd.gradcheck)
    check_gradients(torch.autograd.gradgradcheck)


def test_batched_gradients_of_the_operation():
    assert all(op.check_batched_grad for op in op_infos())
    check_gradients(torch.autograd.gradcheck, check_batched_grad=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_format_of_the_operation(dtype):
    seen = 0
    for sample, x, options in op_samples(dtype):
        if x.dim() != 4:
            continue
        seen += 1
        expected = F.batch_norm(x, **copied(options))
        x = x.detach().contiguous(memory_format=torch.channels_last)
        with Ran(sample):
            y = batch_norm(x, **copied(options))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, expected, **CLOSE[dtype])
    assert seen == 2 * len(op_infos())


def test_inputs_of_the_operation_with_gaps():
    for sample, x, options in op_samples(torch.float32):
        if sample in NOT_OURS:
            continue
        x = with_gaps(x)
        with pytest.raises(UsageError) as told, backend.use("cpu"):
            batch_norm(x, **copied(options))
        assert NOT_OURS["with gaps"] in str(told.value)
        y, expected = batch_norm(x, **copied(options)), F.batch_norm(x, **copied(options))
        torch.testing.assert_close(y, expected, **CLOSE[torch.float32])


def test_float16_is_refused_and_torchs_when_nothing_is_asked_for():
    for sample, x, options in op_samples(torch.float16):
        if sample in NOT_OURS:
            continue
        with pytest.raises(UsageError) as told, backend.use("cpu"):
            batch_norm(x, **copied(options))
        assert NOT_OURS["float16"] in str(told.value)
        y, expected = batch_norm(x, **copied(options)), F.batch_norm(x, **copied(options))
        torch.testing.assert_close(y, expected)  # one rounding: the statistics go by buffers


# The table


def test_what_is_left_out_is_what_the_table_says():
    """That each entry is met, and torch's types are all here or in the table."""
    samples = {sample for sample, _, _ in op_samples(torch.float32)}
    for name in LAYERS:
        for training in (True, False):
            samples |= {sample for sample, *_ in module_samples(name, torch.float32, training)}
        assert set(module_info(name).dtypes) <= set(DTYPES)
    assert set(NOT_OURS) - samples == {"float16", "with gaps"}  # kinds, each with its test above
    (types,) = (op.dtypes for op in op_infos() if op.dtypes)
    assert set(types) == {*DTYPES, torch.float16}
    assert len(samples) >= 32  # as many as torch 2.13 has


def test_an_empty_batch_costs_the_operation_no_warning():
    batch_norm(torch.randn(0, 3, 2), None, None, None, None, training=True)
