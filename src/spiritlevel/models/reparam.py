"""Convolutions that train as a sum of branches and are deployed as one (Ding et al. 2021).

The branches of a convolution called `name` are, as in GhostNetV3's published weights,

    name_rpr_conv.0, .1, ...    convolution and norm
    name_rpr_scale              1x1 convolution and norm
    name_rpr_skip               a norm alone, where input and output have the same shape
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.errors import UsageError
from spiritlevel.models.aside import may_run, stands_alone
from spiritlevel.models.branched import halved_sum
from spiritlevel.models.convolved import convolved
from spiritlevel.models.layers import ConvNormAct, Layers
from spiritlevel.models.normed import normed
from spiritlevel.nn import (
    BatchNormAct2d,
    FrozenBatchNorm,
    FrozenBatchNormAct,
    MomentNoise,
    SyncBatchNorm,
)
from spiritlevel.nn.affine import factor_and_shift

__all__ = ["Reparameterised", "deploy", "deploy_", "merged"]


def deploy(model: nn.Module) -> nn.Module:
    """A copy, in eval(), whose branches are merged: the numbers of `model` in eval(), for less.

    Only GhostNetV3 has branches; other models come back as copies. Norms that follow one
    convolution alone stay. Raises UsageError for norms that are no fixed factor and shift in eval.
    """
    return deploy_(copy.deepcopy(model))


def deploy_(model: nn.Module) -> nn.Module:
    """As `deploy`, in place: the same module comes back."""
    branched = [m for m in model.modules() if isinstance(m, Reparameterised) and m.branched]
    for module in branched:
        module.deploy_()
    model.eval()
    made_as = getattr(model, "made_as", None)
    if branched and isinstance(made_as, dict):
        made_as["deployed"] = True
    return model


class Reparameterised(nn.Module):
    """A module some of whose convolutions are sums of branches, as this file's head has it.

    `branched` tells whether they still are.
    """

    branched: bool = False

    def add_branches(
        self,
        name: str,
        in_chs: int,
        out_chs: int,
        layers: Layers,
        kernel: int,
        *,
        count: int,
        stride: int = 1,
        groups: int = 1,
        scale: bool = False,
        skip: bool = False,
    ) -> None:
        """Those of the convolution `name`: `count` of its kernel, and the two others if wanted."""
        shape: dict[str, Any] = {"stride": stride, "groups": groups, "act": False}

        def branch(kernel: int) -> nn.Module:
            return ConvNormAct(in_chs, out_chs, layers, kernel, **shape)

        if skip:
            self.add_module(f"{name}_rpr_skip", layers.norm(out_chs))
        self.add_module(f"{name}_rpr_conv", nn.ModuleList(branch(kernel) for _ in range(count)))
        if scale:
            self.add_module(f"{name}_rpr_scale", branch(1))
        self.branched = True

    def branches(self, name: str) -> list[nn.Module]:
        """Those of the convolution `name`, in the order in which they are summed."""
        alone = (self._modules.get(f"{name}_rpr_{kind}") for kind in ("scale", "skip"))
        convs = self.get_submodule(f"{name}_rpr_conv")
        return [branch for branch in alone if branch is not None] + list(convs.children())

    def summed(self, name: str, x: Tensor, act: nn.Module | None = None) -> Tensor:
        """The sum of the branches' outputs, and an activation of it."""
        branches = self.branches(name)
        halved = halved_sum(branches, x) if act is None and self.training else None
        if halved is not None:
            return halved
        first, *others = branches
        y: Tensor = first(x)
        for branch in others[:-1]:
            y = _added(y, branch, x, None)
        if others:
            return _added(y, others[-1], x, act)
        return y if act is None else act(y)

    def merge_(self, name: str) -> nn.Conv2d:
        """`merged` of the branches, which are taken out of the module."""
        conv = merged(self.branches(name))
        for kind in ("conv", "scale", "skip"):
            self._modules.pop(f"{name}_rpr_{kind}", None)
        return conv

    def deploy_(self) -> None:
        """Replace each sum of branches by the one convolution that gives the same in eval."""
        raise NotImplementedError


def _added(y: Tensor, branch: Any, x: Tensor, act: nn.Module | None) -> Tensor:
    """act(y + branch(x)), within the branch's norm where nobody sees the branch called."""
    if may_run(x, dense=False):
        if not isinstance(branch, ConvNormAct):
            return normed(branch, act, x, y)
        parts = branch, branch.act1
        own = type(branch) is ConvNormAct and type(branch.act1) is nn.Identity
        if own and all(map(stands_alone, parts)):
            return normed(branch.bn1, act, convolved(branch.conv, x), y)
    y = y + branch(x)
    return y if act is None else act(y)


@torch.no_grad()
def merged(branches: Sequence[nn.Module]) -> nn.Conv2d:
    """One convolution with bias that gives the sum of the branches in eval, computed in float64.

    A branch is a convolution and its norm (`ConvNormAct` without activation), or a norm alone. The
    first with the largest kernel lends its shape; smaller kernels stand in its centre, a norm alone
    there as the identity. Raises UsageError.
    """
    convs = [branch.conv for branch in branches if isinstance(branch, ConvNormAct)]
    first = max(convs, key=lambda conv: conv.kernel_size)
    weight = torch.zeros_like(first.weight, dtype=torch.float64)
    bias = weight.new_zeros(len(weight))
    for branch in branches:
        kernel, start, norm = _parts(branch, first)
        factor, shift = _in_eval(norm, bias)
        weight += kernel * factor[:, None, None, None]
        bias += start * factor + shift
    # Not a copy of the first, which may have hooks and parametrizations of its own weight.
    conv = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d,
        first.in_channels,
        first.out_channels,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        groups=first.groups,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)
    return conv.requires_grad_(any(p.requires_grad for p in first.parameters())).eval()


def _parts(branch: nn.Module, shape: nn.Conv2d) -> tuple[Tensor, Tensor, nn.Module]:
    """Kernel (out, in / groups, k, k) and bias (out,) in float64, and the norm after them."""
    height, width = shape.kernel_size
    if isinstance(branch, ConvNormAct):
        conv, kernel = branch.conv, branch.conv.weight.double()
        rows, columns = (height - kernel.shape[2]) // 2, (width - kernel.shape[3]) // 2
        start = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.double()
        return F.pad(kernel, (columns, columns, rows, rows)), start, branch.bn1
    kernel = torch.zeros_like(shape.weight, dtype=torch.float64)
    outputs = torch.arange(len(kernel), device=kernel.device)
    kernel[outputs, outputs % kernel.shape[1], height // 2, width // 2] = 1
    return kernel, kernel.new_zeros(len(kernel)), branch


def _in_eval(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm does in eval, as a factor and a shift (C,) in float64. Raises UsageError."""
    if isinstance(norm, nn.Identity | MomentNoise):
        return torch.ones_like(like), torch.zeros_like(like)
    synced = isinstance(norm, SyncBatchNorm) and norm.fused
    if synced or isinstance(norm, BatchNormAct2d | FrozenBatchNormAct):
        raise UsageError(
            "got a model whose norms are fused with what follows them; wanted one as it was made. "
            "Deploy first, then fuse the copy"
        )
    fixed = isinstance(norm, _BatchNorm | FrozenBatchNorm) and norm.running_mean is not None
    if not fixed:
        raise UsageError(
            f"got {type(norm).__name__} after a convolution that is to be merged with others; "
            "wanted a norm that is a fixed factor and shift in eval, as batch normalization with "
            "running statistics is. Deploy a model made with norm='batch', or use this one as it is"
        )
    return factor_and_shift(norm)
