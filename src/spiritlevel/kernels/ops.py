"""Batch normalization, residual add and activation as one operation that differentiates twice.

`backend` says which kernels run it. The operations `torch.ops.spiritlevel.batch_norm_act` and
`.batch_norm_act_backward` are what torch.compile puts into its graphs; eager calls go to the
kernels without the dispatcher, which costs more than a small layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, reference
from spiritlevel.kernels.activations import Activation, activation
from spiritlevel.kernels.gradients import differentiable, left_to_torch

__all__ = ["OURS", "batch_norm_act", "forward", "kernels_of", "laid_out_as"]

Statistics = tuple[Tensor, Tensor]
Running = tuple[Tensor, Tensor, float | Tensor]
"""Running mean and variance, and the share, 0 to 1, by which they go towards those of the batch."""


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str | Activation = "identity",
    eps: float = 1e-5,
    statistics: Statistics | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = act((x - mean) / sqrt(var + eps) * weight + bias + residual), and that mean and variance.

    x is (N, C) or (N, C, *), residual like it; weight, bias, mean and var are (C,). Mean and biased
    variance are the batch's, over all axes but 1, in float64 where our kernels took them and in the
    type of weight or x elsewhere; or they are `statistics` (eval). Gradients go to x, weight, bias
    and residual, not to mean and variance; y has the type and the strides of x. Training is
    algorithm 1 of Ioffe and Szegedy 2015, its gradient section 3, eval algorithm 2. Raises
    UsageError for an unknown activation.

    With `groups`, which divide N and are more than one only where `takes_groups` says so, sample n
    is normalised with those of group n % groups; mean and variance are (groups, C).
    """
    act = activation(act)
    if torch.compiler.is_compiling():
        chosen = "cpu" if backend.traced(x, residual, weight) else "aten"
    else:
        chosen = backend.choose(x, residual, weight, bias, *(statistics or ()))
        backend.ran[chosen] += 1
    if chosen != "aten":
        return run(chosen, x, weight, bias, residual, act, eps, statistics, groups=groups)
    y, mean, var = _by_torch(x, weight, bias, eps, statistics)
    return act(y if residual is None else y + residual), mean, var


def run(
    kernels: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: Activation,
    eps: float,
    statistics: Statistics | None,
    running: Running | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """By our kernels, for tensors that `backend` has found fit for them; or by `reference`.

    What is `running` is updated in place, with the variance unbiased.
    """
    if kernels == "reference":
        y = reference.batch_norm(x, weight, bias, eps=eps, statistics=statistics)
        y = act(y if residual is None else y + residual)
        mean, var = statistics or statistics_of(x)
    elif torch.compiler.is_compiling():
        in_graph = torch.ops.spiritlevel.batch_norm_act
        given = statistics or (None, None)
        y, mean, var = in_graph(x, weight, bias, residual, *given, act.name, act.slope, eps)
    else:
        call = _Call(kernels, act, eps, statistics, groups)
        if running is not None and backend.follows(x, *running[:2]):
            count = x.numel() // x.shape[1]
            call.running = (*running[:2], float(running[2]), count / (count - 1))
            running = None
        y = _BatchNormAct.apply(x, weight, bias, residual, call)  # type: ignore[no-untyped-call]
        mean, var = call.statistics
    if running is not None:
        follow(running, (mean, var), x.numel() // x.shape[1])
    return y, mean, var


def _by_torch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics | None
) -> tuple[Tensor, Tensor, Tensor]:
    """By torch's own kernels, which tell the statistics that they took as running ones."""
    if statistics is not None:
        mean, var = (each.to(x.dtype) for each in statistics)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), *statistics
    if x.dim() < 2:  # no channels, hence no statistics; torch has an answer for nothing at all
        y = F.batch_norm(x, None, None, weight, bias, True, 1.0, eps)
        return y, x.new_empty(0), x.new_empty(0)
    halves = x.dtype in (torch.float16, torch.bfloat16)
    kind = weight.dtype if weight is not None else torch.float32 if halves else x.dtype
    mean, var = (x.new_zeros(x.shape[1], dtype=kind) for _ in range(2))
    y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    count = x.numel() // max(x.shape[1], 1)
    return y, mean, var * ((count - 1) / max(count, 1))


@torch.no_grad()
def follow(running: Running, batch: Statistics, count: int) -> None:
    """Running mean and variance go in place towards those of the batch.

    The batch's variance is the biased one of `count` values; it goes in unbiased.
    """
    mean, var, share = running
    if not torch.compiler.is_compiling():  # autograd is not told, nor does torch tell it
        mean, var = mean.data, var.data
    unbiased = batch[1] * (count / (count - 1))
    for one, of_batch in ((mean, batch[0]), (var, unbiased)):
        # Not lerp_, which makes NaN of an infinite mean.
        one.mul_(1 - share).add_((of_batch * share).to(one.dtype))


@torch.no_grad()
def statistics_of(x: Tensor, kernels: str = "aten") -> Statistics:
    """Mean and biased variance over all axes but 1, (C,), in the type of x; by ours in float64."""
    if kernels in OURS and not torch.compiler.is_compiling():
        found: Statistics = kernels_of(kernels).statistics(x)
        return found
    var, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
    return mean, var


def takes_groups(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> bool:
    """Whether the kernels that run for x normalise so many groups of its samples at once."""
    if torch.compiler.is_compiling() or backend.choose(x, None, weight, bias) != "gpu":
        return False
    lanes = x.dim() > 2 and backend.layout(x) == "rows"
    return bool(lanes and groups <= kernels_of("gpu").MOST)


class _Call:
    """What one eager forward pass is told beside tensors, and what it tells: its statistics."""

    def __init__(
        self, kernels: str, act: Activation, eps: float, statistics: Statistics | None, groups: int
    ) -> None:
        self.kernels, self.groups = kernels, groups
        self.act, self.eps, self.given = act, eps, statistics
        self.running: Any = None
        self.statistics: Any = None


class _BatchNormAct(torch.autograd.Function):
    """(x, weight, bias, residual, call) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call = inputs
        given = call.given or (None, None)
        if call.given is not None and any(ctx.needs_input_grad):  # what is running changes in place
            given = tuple(t.clone() for t in call.given)
        options = *given, *call.act, call.eps
        more = {"groups": call.groups} if call.groups > 1 else {}
        output = forward(call.kernels, *tensors, *options, call.running, **more)  # type: ignore[call-arg]
        _keep(ctx, (*tensors, *options), output)
        ctx.kernels, ctx.groups = call.kernels, call.groups
        y, *call.statistics = output
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grads[0], partial(_backward, ctx.kernels, ctx.groups))[:5]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, residual, given, _, ctx.act, ctx.slope, ctx.eps = inputs
    y, mean, var = output
    ctx.set_materialize_grads(False)
    ctx.training, ctx.added = given is None, residual is not None
    # What tells the activation's slope: a relu's own output, which its consumer keeps anyway.
    linear = ctx.act == "identity"
    masks = ctx.act == "relu" and ctx.added
    kept = None if linear or masks else residual
    ctx.save_for_backward(
        x, weight, None if linear else bias, kept, y if masks else None, mean, var
    )
    ctx.bias_type = None if bias is None else bias.dtype


def _keep_in_graph(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _keep(ctx, inputs, output)  # type: ignore[arg-type]


def _gradients(ctx: Any, grad: Tensor | None, run: Any) -> tuple[Tensor | None, ...]:
    """Of each input, where it is wanted."""
    nothing, wants = (None,) * 9, ctx.needs_input_grad
    if grad is None:
        return nothing
    if left_to_torch(grad):
        return (*_differentiable(ctx, grad), *nothing[4:])
    x, weight, bias, residual, y, mean, var = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_residual = run(
        grad, x, weight, bias, residual, y, mean, var, ctx.act, ctx.slope, ctx.eps, ctx.training
    )
    if grad_residual is None and wants[3]:
        grad_residual = grad
    return (
        grad_x if wants[0] else None,
        grad_weight.to(weight.dtype) if wants[1] else None,
        grad_bias.to(ctx.bias_type) if wants[2] else None,
        grad_residual if wants[3] else None,
        *nothing[4:],
    )


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's own operations, so that they have gradients themselves."""
    x, weight, bias, residual, y, mean, var = ctx.saved_tensors
    statistics = None if ctx.training else (mean, var)
    act = Activation(ctx.act, ctx.slope)
    with torch.enable_grad():
        if y is not None:
            grad, act, y = grad * (y > 0), Activation("identity"), None
        if bias is None:  # no activation, or one whose slope is in the mask
            bias = x.new_zeros(x.shape[1], requires_grad=ctx.needs_input_grad[2])
        z = _grouped(x, weight, bias, ctx.eps, statistics, getattr(ctx, "groups", 1))
        summand = residual
        if summand is None and ctx.added:
            summand = torch.zeros_like(x, requires_grad=ctx.needs_input_grad[3])
        out = act(z if summand is None else z + summand)
        return differentiable(out, (x, weight, bias, summand), ctx.needs_input_grad[:4], grad)


def _grouped(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Statistics | None,
    groups: int,
) -> Tensor:
    """By the reference; x (g * groups, C, *) seen as (g, groups * C, *)."""
    if groups == 1:
        return reference.batch_norm(x, weight, bias, eps=eps, statistics=statistics)
    weight, bias = (None if t is None else t.repeat(groups) for t in (weight, bias))
    dealt = x.reshape(len(x) // groups, groups * x.shape[1], *x.shape[2:])
    return reference.batch_norm(dealt, weight, bias, eps=eps).reshape(x.shape)


OURS = ("cpu", "gpu")


def kernels_of(name: str) -> Any:
    """The module with the kernels of `cpu` or `gpu`."""
    if name == "gpu":
        from spiritlevel.kernels import gpu

        return gpu
    from spiritlevel.kernels import cpu

    return cpu


def forward(
    kernels: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    act: str,
    slope: float,
    eps: float,
    running: Any = None,
    **more: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = None
    if mean is not None and var is not None:
        if kernels == "cpu":
            mean, var = mean.double(), var.double()
        statistics = mean.contiguous(), var.contiguous()
    if residual is not None:
        residual = laid_out_as(x, residual, kernels)
    given = x, weight, bias, residual, act, slope, eps, statistics, running
    found: tuple[Tensor, Tensor, Tensor] = kernels_of(kernels).forward(*given, **more)
    return found


def _backward(
    kernels: str,
    groups: int,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    residual, *others = rest
    residual = None if residual is None else laid_out_as(x, residual, kernels)
    given = laid_out_as(x, grad, kernels), x, weight, bias, residual, *others
    more = {} if groups == 1 else {"groups": groups}
    grad_x, of_weight, of_bias, before = kernels_of(kernels).backward(*given, **more)
    if groups > 1:
        of_weight, of_bias = of_weight.sum(0), of_bias.sum(0)
    return grad_x, of_weight, of_bias, before


def laid_out_as(x: Tensor, t: Tensor, kernels: str = "cpu") -> Tensor:
    """t, or a copy of it, with the memory order of x; those of `gpu` see to that themselves."""
    if kernels == "gpu":
        return t
    t = t.resolve_neg()
    same = t.is_contiguous() if x.is_contiguous() else t.movedim(1, -1).is_contiguous()
    return t if same and t.dtype is x.dtype else torch.empty_like(x).copy_(t)


_ARGUMENTS = "Tensor{0} mean, Tensor{0} var, str act, float slope, float eps"
_WEIGHTS = "Tensor? weight, Tensor? bias, Tensor? residual"

torch.library.define(
    "spiritlevel::batch_norm_act",
    f"(Tensor x, {_WEIGHTS}, {_ARGUMENTS.format('?')}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "spiritlevel::batch_norm_act_backward",
    f"(Tensor grad, Tensor x, {_WEIGHTS}, Tensor? y, {_ARGUMENTS.format('')}, bool training) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("spiritlevel::batch_norm_act", "CPU")
def _batch_norm_act(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, residual, mean, var, *_ = rest
    if not backend.fit(x, residual, weight, bias, mean, var):
        shapes = [None if t is None else tuple(t.shape) for t in (x, *rest[:5])]
        raise UsageError(
            f"got tensors of shapes {shapes} in a graph of torch.compile; wanted an input (N, C, "
            "*), a residual like it, and C numbers in each of the others"
        )
    y, mean, var = forward("cpu", x, *rest)
    given = rest[3] is not None  # an operation may not hand back what it was given
    return (y, mean.clone(), var.clone()) if given else (y, mean, var)


@torch.library.register_fake("spiritlevel::batch_norm_act")  # type: ignore[untyped-decorator]
def _batch_norm_act_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))
    return torch.empty_like(x), mean, var


@torch.library.impl("spiritlevel::batch_norm_act_backward", "CPU")
def _batch_norm_act_backward(
    grad: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *found, last = _backward("cpu", 1, grad, x, *rest)
    return *found, x.new_empty(0) if last is None else last  # type: ignore[return-value]


@torch.library.register_fake("spiritlevel::batch_norm_act_backward")  # type: ignore[untyped-decorator]
def _batch_norm_act_backward_fake(
    grad: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    through = rest[2] is not None or rest[3] is not None
    number = backend.number_of(x.dtype)
    grad_weight, grad_bias = (x.new_empty(x.shape[1], dtype=number) for _ in range(2))
    grad_residual = torch.empty_like(x) if through else x.new_empty(0)
    return torch.empty_like(x), grad_weight, grad_bias, grad_residual


def _backward_in_graph(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    *found, last = torch.ops.spiritlevel.batch_norm_act_backward(*arguments)
    return *found, last if last.numel() else None


torch.library.register_autograd(
    "spiritlevel::batch_norm_act",
    lambda ctx, *grads: _gradients(ctx, grads[0], _backward_in_graph),
    setup_context=lambda ctx, inputs, output: _keep_in_graph(ctx, inputs, output),
)
