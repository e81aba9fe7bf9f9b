"""Names that other code has for the parameters of our models, and ours for them.

timm's and Huawei's GhostNet and GhostNetV2, timm's GhostNetV3 and torchvision's ResNet-50 have our
names as they are. The rest:

- Huawei's GhostNetV3: each branch's norm is `bn`, not `bn1`.
- d-li14/ghostnet.pytorch: stages are `features.N`, the parts of a bottleneck numbers, and what
  `GhostNet(variant="d-li14")` computes otherwise. Linear layers there are 1x1 convolutions here.
- bvn1904/ghostnet: a ResNet-56 for CIFAR whose norms follow the concatenation, as
  `ResNet(placement="post-concat", ghost_stem=True, option_a=False)` has them.
- akamaster/pytorch_resnet_cifar10: the plain ResNet-56, whose last layer is `linear`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "in_our_names", "translated"]


@dataclass(frozen=True)
class Layout:
    """`mark` is in some name of each file of this kind; `rules` are tried in order on each name."""

    name: str
    mark: re.Pattern[str]
    rules: tuple[tuple[re.Pattern[str], str], ...]

    def describes(self, names: Collection[str]) -> bool:
        return any(self.mark.search(name) for name in names)

    def ours(self, name: str) -> str:
        for pattern, replacement in self.rules:
            new, found = pattern.subn(replacement, name)
            if found:
                return new
        return name


def _layout(name: str, mark: str, *rules: tuple[str, str]) -> Layout:
    compiled = tuple((re.compile(pattern), replacement) for pattern, replacement in rules)
    return Layout(name, re.compile(mark), compiled)


# `blocks.<stage>.<i>` of the n-th bottleneck, counted from 1 as d-li14's `features` are.
_PLACES = [
    (stage, i) for stage, count in enumerate((1, 1, 1, 1, 1, 1, 5, 1, 4)) for i in range(count)
]
_BOTTLENECK = (
    (r"conv\.0\.", "ghost1."),
    (r"conv\.1\.0\.", "conv_dw."),
    (r"conv\.1\.1\.", "bn_dw."),
    (r"conv\.2\.fc\.0\.", "se.conv_reduce."),
    (r"conv\.2\.fc\.2\.", "se.conv_expand."),
    (r"conv\.3\.", "ghost2."),
    (r"shortcut\.0\.0\.", "shortcut.0."),
    (r"shortcut\.0\.1\.", "shortcut.1."),
    (r"shortcut\.1\.", "shortcut.2."),
    (r"shortcut\.2\.", "shortcut.3."),
)

LAYOUTS = (
    _layout(
        "Huawei's GhostNetV3",
        r"_rpr_(conv\.\d+|scale)\.bn\.",
        (r"(_rpr_(?:conv\.\d+|scale))\.bn\.", r"\1.bn1."),
    ),
    _layout(
        "d-li14's ghostnet.pytorch",
        r"^features\.1\.conv\.0\.primary_conv\.",
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        *(
            (rf"^features\.{n}\.{theirs}", f"blocks.{stage}.{i}.{ours}")
            for n, (stage, i) in enumerate(_PLACES, 1)
            for theirs, ours in _BOTTLENECK
        ),
        (r"^squeeze\.0\.", "blocks.9.0.conv."),
        (r"^squeeze\.1\.", "blocks.9.0.bn1."),
        (r"^classifier\.0\.", "conv_head."),
        (r"^classifier\.1\.", "bn_head."),
        (r"^classifier\.4\.", "classifier."),
    ),
    _layout(
        "bvn1904's Ghost-ResNet-56",
        r"\.cheap_operations\.weight$",
        (r"^conv1\.primary_conv\.", "conv1.primary_conv.0."),
        (r"^conv1\.cheap_operations\.", "conv1.cheap_operation.0."),
        (r"^bn1\.", "conv1.bn."),
        (r"^(layer\d+\.\d+\.conv\d)\.primary_conv\.", r"\1.primary_conv.0."),
        (r"^(layer\d+\.\d+\.conv\d)\.cheap_operations\.", r"\1.cheap_operation.0."),
        (r"^(layer\d+\.\d+)\.bn(\d)\.", r"\1.conv\2.bn."),
        (r"^(layer\d+\.\d+)\.shortcut\.0\.primary_conv\.", r"\1.downsample.primary_conv.0."),
        (r"^(layer\d+\.\d+)\.shortcut\.0\.cheap_operations\.", r"\1.downsample.cheap_operation.0."),
        (r"^(layer\d+\.\d+)\.shortcut\.1\.", r"\1.downsample.bn."),
        (r"^linear\.", "fc."),
    ),
    _layout("akamaster's ResNet for CIFAR", r"^linear\.", (r"^linear\.", "fc.")),
)


def translated(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`state` under the names of `own`, where it is of a known layout and they are not its own."""
    if all(name in own for name in state):
        return dict(state)
    new = in_our_names(state)
    # Names of no use to the model: it is not of this layout after all.
    if len(new.keys() & own) <= len(state.keys() & own):
        return dict(state)
    return {name: _as_convolution(value, own.get(name)) for name, value in new.items()}


def in_our_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` as the layout that describes it translates it, if any does."""
    layout = next((layout for layout in LAYOUTS if layout.describes(state)), None)
    if layout is None:
        return dict(state)
    new = {layout.ours(name): value for name, value in state.items()}
    return new if len(new) == len(state) else dict(state)  # two names for one


def _as_convolution(value: Any, own: Any) -> Any:
    """A linear layer's weight (out, in) as a 1x1 convolution's where ours is one."""
    if not isinstance(value, Tensor) or not isinstance(own, Tensor):
        return value
    matrix = value.dim() == 2 and own.dim() == 4 and own.shape[2:] == (1, 1)
    return value[..., None, None] if matrix else value
