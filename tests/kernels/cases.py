"""Tensors for the kernels, and what the reference makes of them in float64."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import torch

from spiritlevel.kernels import backend, reference
from spiritlevel.kernels.activations import activation

LAYOUTS = ("contiguous", "channels-last")


@contextmanager
def on(kernels):
    """Run by these kernels, on their device, where the tests' tensors are made; and by no other."""
    device = where_gpu_runs() if kernels == "gpu" else "cpu"
    before = backend.ran[kernels]
    with backend.use(kernels), torch.device(device):
        yield
    assert backend.ran[kernels] > before, "the test ran on other kernels"


def where_gpu_runs():
    """A GPU, or the processor, by Triton's interpreter.

    That would ask of each sum of whole numbers whether it fits, in half of its time.
    """
    if torch.cuda.is_available():
        return "cuda"
    interpreter = importlib.import_module("triton.runtime.interpreter")
    unasked = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.interpreter_builder.options = unasked
    return "cpu"


def tensor(shape, dtype=torch.float32, layout="contiguous", seed=0, scale=1.0, mean=0.0):
    chance = torch.Generator("cpu").manual_seed(seed)
    made = torch.randn(shape, dtype=torch.float64, generator=chance, device="cpu")
    made = (made * scale + mean).to(torch.get_default_device(), dtype)
    if layout == "channels-last" and len(shape) > 2:
        made = made.movedim(1, -1).contiguous().movedim(-1, 1)
    return made


def leaves(shape, dtype=torch.float32, layout="contiguous", residual=False, affine=True):
    """x, weight, bias and residual, or None in their place."""
    channels = shape[1]
    x = tensor(shape, dtype, layout, scale=2, mean=0.5)
    weight = tensor((channels,), dtype, seed=1, scale=0.2, mean=1) if affine else None
    bias = tensor((channels,), dtype, seed=2) if affine else None
    added = tensor(shape, dtype, layout, seed=3) if residual else None
    return [None if t is None else t.requires_grad_() for t in (x, weight, bias, added)]


def expected(tensors, grad, act, eps=1e-5, statistics=None):
    """y and all gradients, by the reference, in float64."""
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    x, weight, bias, residual = doubles
    y = reference.batch_norm(x, weight, bias, eps=eps, statistics=statistics)
    y = activation(act)(y if residual is None else y + residual)
    wanted = [t for t in doubles if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.double())]


def last(t):
    return t.contiguous(memory_format=torch.channels_last)


def apart(ours, exact):
    """In units of the largest number, which is a difference of larger ones where it is below 1."""
    return ((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1)).item()


def same_on_any_number_of_threads(run):
    """Whether the tensors that `run` gives have the same bits."""
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run())
    return all(all(map(torch.equal, others, found[0])) for others in found[1:])


@contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
