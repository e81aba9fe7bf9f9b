"""Starting weights. Each function draws from torch's global generator and returns the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.models.ghost import GhostBottleneck
from spiritlevel.models.plain import BasicBlock, ResidualBlock
from spiritlevel.models.resnet import OptionA, ResidualUnit

__all__ = ["init_he_", "init_normal_", "init_xavier_", "zero_branches_"]

_Model = TypeVar("_Model", bound=nn.Module)


def init_he_(model: _Model, scale: float = 1.0) -> _Model:
    """Weights of every convolution and linear layer ~ Normal(0, scale^2 * 2 / fan_in), biases 0.

    He et al. 2015, section 2.2: with `scale` 1 the size of ReLU features is kept. The fan is of
    one group: 9 for a depthwise 3x3 kernel. That is why it is fan_in: torch's
    `kaiming_normal_(mode="fan_out")` counts the outputs of all groups, for a depthwise kernel of C
    channels a deviation sqrt(C) times too small.
    """
    return _fill(model, lambda weight: nn.init.kaiming_normal_(weight).mul_(scale))


def init_xavier_(model: _Model) -> _Model:
    """Weights ~ U(-a, a), a = sqrt(6 / (fan_in + fan_out)), biases 0.

    Glorot & Bengio 2010, equation 16.
    """
    return _fill(model, nn.init.xavier_uniform_)


def init_normal_(model: _Model, std: float) -> _Model:
    """Weights ~ Normal(0, std^2), biases 0."""
    return _fill(model, lambda weight: nn.init.normal_(weight, std=std))


@torch.no_grad()
def zero_branches_(model: _Model) -> _Model:
    """Let every residual block start as its shortcut, as Fixup and SkipInit do.

    Zeroes what the branch ends with: weight and bias of the norm where it learns them, else those
    of the convolution or linear layer. In a Ghost bottleneck that is both halves of the second
    module; the cheap half learns from the second step on, when the first has left zero. Branches
    beside a shortcut without weights that pads new channels with zeros stay as they are.
    Raises UsageError for a model without residual blocks.
    """
    ends = [end for module in model.modules() for end in _branch_ends(module)]
    if not ends:
        raise UsageError(
            f"got {type(model).__name__}, which has no residual branch to zero; wanted a GhostNet, "
            "a ResNet or residual_mlp"
        )
    for layer, norm in ends:
        for parameter in [*norm.parameters()] or layer.parameters():
            parameter.zero_()
    return model


@torch.no_grad()
def _fill(model: _Model, fill: Callable[[Tensor], Tensor]) -> _Model:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            fill(module.weight)
            if module.bias is not None:
                module.bias.zero_()
    return model


def _branch_ends(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The layers whose sum or concatenation is the branch, each with the norm after it."""
    if isinstance(module, GhostBottleneck):
        return module.ghost2.ends()
    if isinstance(module, ResidualUnit):
        # The zeros that option A pads with, plus those of a branch, would be dead behind the ReLU.
        return [] if isinstance(module.downsample, OptionA) else module.ends()
    if isinstance(module, BasicBlock):
        return [(module.conv2, module.norm2)]
    if isinstance(module, ResidualBlock):
        return [(module.linear, nn.Identity())]
    return []
