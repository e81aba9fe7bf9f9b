"""Batch normalization over the batches of all ranks of a process group, on CPUs and on GPUs.

Training, for each channel over all axes but 1 of the batches of all ranks r, which need not be
equally large, and may be empty:

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual)

Forward, each rank sends its count of values, its mean and its sum of squares around that mean
(2C + 1 numbers in float64, one all-gather), and all merge them alike (Chan, Golub, LeVeque 1983):

    n = sum n_r        mean = sum n_r mean_r / n
    n var = sum M2_r + sum n_r (mean_r - mean)^2

No square of a mean is subtracted, so a mean far above the deviation costs no digits. Backward, with
g the gradient before the activation and xhat = (x - mean) / sqrt(var + eps), each rank sends its
sums of g and of g xhat (2C numbers in float64, one all-reduce); with their totals over the ranks

    grad_x = weight / sqrt(var + eps) * (g - sum g / n - xhat sum(g xhat) / n)

Where x wants no gradient, nothing is sent. The gradients of weight and bias are this rank's sums:
DistributedDataParallel averages them, as it does for torch's own layer. A device is waited for once
a forward pass, for n.

The running variance is unbiased by n. All ranks of the group have to call the layer equally often,
in one order, with an input that wants a gradient on all or on none; a rank without data calls it
with an empty batch. Checkpointing calls it twice a step, here as in torch: the running statistics
then move twice. Eval, a group of one and a process without a group send nothing: there it is the
batch normalization of `batch`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, ops, split
from spiritlevel.kernels.activations import Activation, activation
from spiritlevel.nn.batch import _Fused, _FusedAct
from spiritlevel.nn.observe import tell

__all__ = ["SyncBatchNorm", "alone"]


class SyncBatchNorm(_Fused):
    """act(bn(x) + residual) with the statistics of all ranks, as `nn.sync` has it.

    Input (N, C, *) of 2 to 5 axes, N may be 0; residual like it. With the constructor and the
    `state_dict` of torch's class; no subclass of it, which DistributedDataParallel refuses on CPUs,
    but one of torch's batch norm. `process_group` is the default group where it is None.

    Raises UsageError on all ranks where one cannot take its input, ValueError on all where the
    ranks have a single value per channel together.
    """

    stands_for: type[_BatchNorm] | None = None
    """What the layer is where nothing is synchronised, if `convert` or `norm_layer` knows it."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: str | Activation = "identity",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group
        self.act = activation(act)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        group = None if isinstance(input, Proxy) or not self.training else self._group()
        if group is None:
            return self._normalized(input, residual)
        return self._over_ranks(input, residual, group)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> NoReturn:
        """Torch's would make torch's own layers. Raises UsageError."""
        raise UsageError(
            "got spiritlevel's SyncBatchNorm.convert_sync_batchnorm, which would make torch's "
            "layers; use spiritlevel.convert(model, 'sync')"
        )

    @property
    def fused(self) -> bool:
        """Whether it is known to do more than normalize: to add, or to end in an activation."""
        kind = self.stands_for
        return self.act.name != "identity" or (kind is not None and issubclass(kind, _FusedAct))

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        memo[id(self.process_group)] = self.process_group  # no group can be copied
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def _group(self) -> Any:
        """The process group, where there are others in it to ask."""
        if _apart or not dist.is_available() or not dist.is_initialized():
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def _over_ranks(self, x: Tensor, residual: Tensor | None, group: Any) -> Tensor:
        if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
            raise UsageError(
                "got a SyncBatchNorm in training in a graph that leaves Python, where no rank can "
                "be asked; wanted the model in eval()"
            )
        own = _Own(self, x, residual)
        count, mean, var = _merged(own, group)
        if count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got one on all ranks "
                f"together; the input of this rank has size {tuple(x.shape)}"
            )
        if self.track_running_stats:
            self._take_in(count, mean, var)
        # A number, or what is to be spread over x, is added by torch's rules.
        inside = residual is None or backend.alike(residual, x)
        act = self.act if inside else Activation("identity")
        step = split.Step(own.kernels, self.weight, self.bias, mean, var, act, self.eps)
        tensors = (x, self.weight, self.bias, residual if inside else None)
        y: Tensor = _Synced.apply(*tensors, step, count, group)  # type: ignore[no-untyped-call]
        if not inside and residual is not None:
            y = self.act(y + residual)
        tell(self, x, y, (lambda: (mean, var)) if count else None)
        return y

    # Asking other processes is no part of a graph: torch.compile breaks its own here.
    _over_ranks._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _take_in(self, count: int, mean: Tensor, var: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running: Any = (self.running_mean, self.running_var)
        if count and running[0] is not None and (follows := self._follows(*running)) is not None:
            ops.follow(follows, (mean, var), count)

    def _beyond_torchs(self) -> str:
        return "collectives on CPUs" if self.act.name == "identity" else f"activation ({self.act})"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"  # type: ignore[no-untyped-call]


@contextmanager
def alone() -> Iterator[None]:
    """Within the block no layer of this process asks another: each takes its own batch for all."""
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


_apart = 0


class _Own:
    """This rank's part: what it sends, and by which kernels; looked at when `moments` is called."""

    kernels = "aten"

    def __init__(self, layer: SyncBatchNorm, x: Tensor, residual: Tensor | None) -> None:
        self.layer, self.x, self.residual = layer, x, residual

    def moments(self) -> tuple[int, Tensor | float, Tensor | float]:
        """Count, mean and sum of squares around it. Raises what one rank alone can know."""
        layer, x, residual = self.layer, self.x, self.residual
        if not isinstance(x, Tensor) or not isinstance(residual, Tensor | int | float | None):
            kinds = " and ".join(type(each).__name__ for each in (x, residual))
            raise UsageError(f"got {kinds} as input and residual; wanted tensors")
        layer._check_input_dim(x)
        if x.shape[1] != layer.num_features or not x.is_floating_point():
            raise UsageError(
                f"got an input of shape {tuple(x.shape)} and {x.dtype}; wanted floats, with "
                f"{layer.num_features} channels on axis 1"
            )
        if layer.eps <= 0.0:
            raise UsageError(f"got eps={layer.eps}; wanted a number above 0 in training")
        if isinstance(residual, Tensor):
            torch.broadcast_shapes(residual.shape, x.shape)  # type: ignore[no-untyped-call]
        self.kernels = backend.choose(x, residual, layer.weight, layer.bias)
        backend.ran[self.kernels] += 1
        count = x.numel() // x.shape[1]
        if count == 0:
            return 0, 0.0, 0.0
        with torch.no_grad():
            mean, var = split.moments(x, self.kernels)
        return count, mean, var * count


def _merged(own: _Own, group: Any) -> tuple[int, Tensor, Tensor]:
    """Count, mean and biased variance of all ranks, the same bits on each, in one collective.

    The mean and the variance are float64 (C,) on the device of x. Where one rank raises, all do,
    lest the others wait for it.
    """
    C = own.layer.num_features
    held = (own.x, own.layer.weight, own.layer.running_mean)
    device = next((t.device for t in held if isinstance(t, Tensor)), None)
    row = torch.zeros(1 + 2 * C, dtype=torch.float64, device=device)
    raised: Exception | None = None
    try:
        row[0], row[1 : C + 1], row[C + 1 :] = own.moments()
    except Exception as error:
        raised, row[0] = error, -1.0
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    if raised is not None:
        raise raised
    table = torch.stack(rows)
    counts, means, squares = torch.split(table, [1, C, C], dim=1)
    sizes = counts[:, 0].tolist()
    if any(size < 0 for size in sizes):
        failed = ", ".join(str(rank) for rank, size in enumerate(sizes) if size < 0)
        raise UsageError(
            f"got an error in a SyncBatchNorm on rank {failed} of its group, which says what it "
            "is; all ranks stop"
        )
    count = sum(sizes)
    if not count:
        return 0, means[0], squares[0]
    if backend.by_triton(table):  # the same on all ranks, whatever each took its own moments by
        from spiritlevel.kernels import gpu

        return int(count), *gpu.merged(table)
    mean = (counts * means).sum(0) / count
    apart = squares + counts * (means - mean).square()
    return int(count), mean, apart.sum(0) / count


class _Synced(Function):
    """(x, weight, bias, residual, step, count, group) -> y."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, _, _, residual, step, count, group = inputs
        y = split.applied(x, residual, step)
        ctx.act, ctx.eps, ctx.kernels = step.act, step.eps, step.kernels
        ctx.count, ctx.group = count, group
        ctx.bias_type = None if step.bias is None else step.bias.dtype
        # What tells the activation's slope: a relu's own output, which its consumer keeps anyway.
        linear = step.act.name == "identity"
        masks = step.act.name == "relu" and residual is not None
        bias, kept = None if linear else step.bias, None if linear or masks else residual
        of_channels = (step.mean, step.var)
        ctx.save_for_backward(x, step.weight, bias, kept, y if masks else None, *of_channels)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, y, mean, var = ctx.saved_tensors
        step = split.Step(ctx.kernels, weight, bias, mean, var, ctx.act, ctx.eps)
        of_weight, of_bias, before = split.reduced(grad, x, residual, y, step)
        wants, grad_x = ctx.needs_input_grad, None
        if wants[0]:
            sums = torch.cat([of_weight, of_bias]).double()
            dist.all_reduce(sums, group=ctx.group)
            totals = sums.chunk(2)
            grad_x = split.descended(grad, x, before, totals[0], totals[1], ctx.count, step)
        return (
            grad_x,
            of_weight.to(weight.dtype) if wants[1] else None,
            of_bias.to(ctx.bias_type) if wants[2] else None,
            (grad if before is None else before) if wants[3] else None,
            *(None,) * 3,
        )
