"""What GhostNets are built of: Ghost module and Ghost bottleneck, for all three versions.

Han et al. 2020, section 3, with the attention of GhostNetV2 (Tang et al. 2022) and the branches of
GhostNetV3 (Liu et al. 2024) as arguments. Attribute names are those of the published weights, so
`bn1` and `bn_dw` are whatever norm was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.models.aside import stands_alone
from spiritlevel.models.attention import SqueezeExcite, dfc_attention, gated
from spiritlevel.models.branched import branched_module
from spiritlevel.models.convolved import chained, convolved
from spiritlevel.models.fused import ghost_module
from spiritlevel.models.layers import Layers
from spiritlevel.models.reparam import Reparameterised

__all__ = ["PLACEMENTS", "GhostBottleneck", "GhostModule"]

PLACEMENTS = ("per-branch", "post-concat", "both", "none")


class GhostModule(Reparameterised):
    """A share 1 / s of the features by a convolution, the rest from those by cheap depthwise ones.

    (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride). `kernel` is the convolution's, `d`
    the cheap ones'; `act=False` leaves every activation out.

    `placement` says where norm and activation stand: "per-branch" after either convolution, as in
    the paper, so that the cheap one is fed with finished features; "post-concat" once, after both;
    "both"; or "none", activations alone, per branch, whose convolutions then have a bias.

    `attention` multiplies by GhostNetV2's gate. With `branches` above 0 either convolution trains
    as a sum of so many and is merged by `deploy`, as in GhostNetV3. Raises UsageError.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        layers: Layers,
        *,
        kernel: int = 1,
        stride: int = 1,
        s: int = 2,
        d: int = 3,
        act: bool = True,
        placement: str = "per-branch",
        attention: bool = False,
        branches: int = 0,
    ) -> None:
        super().__init__()
        _check(s, d, placement, branches)
        self.out_chs = out_chs
        first = math.ceil(out_chs / s)
        cheap = first * (s - 1)
        self.surplus = first + cheap > out_chs
        each = Layers(nn.Identity, True, layers.act) if placement == "none" else layers
        self.primary_conv, self.cheap_operation = nn.Sequential(), nn.Sequential()
        if branches:
            self.add_branches(
                "primary", in_chs, first, layers, kernel, count=branches, stride=stride
            )
            self.primary_activation = layers.activation(act)
            self.add_branches(
                "cheap",
                first,
                cheap,
                layers,
                d,
                count=branches,
                groups=first,
                scale=True,
                skip=cheap == first,
            )
            self.cheap_activation = layers.activation(act)
        else:
            late = placement == "post-concat"
            self.primary_conv = nn.Sequential(
                each.conv(in_chs, first, kernel, stride=stride), *_after(first, each, act, late)
            )
            self.cheap_operation = nn.Sequential(
                each.conv(first, cheap, d, groups=first), *_after(cheap, each, act, late)
            )
        joined = placement in ("post-concat", "both")
        self.bn = layers.norm(out_chs) if joined else nn.Identity()
        self.act = layers.activation(act and joined)
        self.short_conv = (
            dfc_attention(in_chs, out_chs, layers, kernel, stride) if attention else nn.Identity()
        )
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        y = self._as_one(x)
        if y is None:
            y = self._by_layers(x)
        return gated(y, x, self.short_conv) if self.attention else y

    def plus(self, x: Tensor, residual: Callable[[], Tensor]) -> Tensor:
        """self(x) + residual(), which stands in the output from the start where that can be.

        Nothing else is to read x.
        """
        alone = type(self) is GhostModule and not self.attention and stands_alone(self)
        y = self._as_one(x, residual, alone=True) if alone else None
        return self(x) + residual() if y is None else y

    def _as_one(
        self, x: Tensor, *added: Callable[[], Tensor], alone: bool = False
    ) -> Tensor | None:
        return (branched_module if self.branched else ghost_module)(self, x, *added, alone=alone)

    def _by_layers(self, x: Tensor) -> Tensor:
        if self.branched:
            primary = self.summed("primary", x, self.primary_activation)
            cheap = self.summed("cheap", primary, self.cheap_activation)
        else:
            primary = self.primary_conv(x)
            cheap = self.cheap_operation(primary)
        y = torch.cat([primary, cheap], dim=1)
        if self.surplus:
            y = y[:, : self.out_chs]
        joined: Tensor = self.act(self.bn(y))
        return joined

    def deploy_(self) -> None:
        if self.branched:
            self.primary_conv = nn.Sequential(self.merge_("primary"), self.primary_activation)
            self.cheap_operation = nn.Sequential(self.merge_("cheap"), self.cheap_activation)
            del self.primary_activation, self.cheap_activation
            self.branched = False

    def ends(self) -> list[tuple[nn.Module, nn.Module]]:
        """The layers whose sum or concatenation is the output, each with the norm after it."""
        if self.branched:
            sums = [*self.branches("primary"), *self.branches("cheap")]
            return [(getattr(b, "conv", nn.Identity()), getattr(b, "bn1", b)) for b in sums]
        if not isinstance(self.bn, nn.Identity):
            return [(nn.Identity(), self.bn)]
        halves = self.primary_conv, self.cheap_operation
        return [(half[0], half[1]) for half in halves]


class GhostBottleneck(Reparameterised):
    """Expand, (stride), (squeeze-excitation), project, add the shortcut; nothing after the sum.

    (N, in_chs, H, W) -> (N, out_chs, ceil(H / stride), ceil(W / stride)), `mid_chs` between the two
    Ghost modules. `kernel` is that of the strided convolution and of the shortcut's depthwise one;
    `gate` that of the squeeze-excitation, "" for none. `attention` is the first module's,
    `branches` also the strided convolution's; `s`, `d` and `placement` are both modules'.
    `variant` is that of `GhostNet`. Raises UsageError.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        layers: Layers,
        *,
        kernel: int = 3,
        stride: int = 1,
        gate: str = "",
        s: int = 2,
        d: int = 3,
        placement: str = "per-branch",
        attention: bool = False,
        branches: int = 0,
        variant: str = "huawei",
    ) -> None:
        super().__init__()

        def ghost(in_chs: int, out_chs: int, act: bool, attention: bool) -> GhostModule:
            return GhostModule(
                in_chs,
                out_chs,
                layers,
                s=s,
                d=d,
                act=act,
                placement=placement,
                attention=attention,
                branches=branches,
            )

        strided = stride > 1
        self.ghost1 = ghost(in_chs, mid_chs, act=True, attention=attention)
        self.conv_dw: nn.Module = nn.Identity()
        self.bn_dw: nn.Module = nn.Identity()
        if strided and branches:
            self.add_branches(
                "dw",
                mid_chs,
                mid_chs,
                layers,
                kernel,
                count=branches,
                stride=stride,
                groups=mid_chs,
                scale=True,
            )
        elif strided:
            self.conv_dw = layers.depthwise(mid_chs, kernel, stride=stride)
            self.bn_dw = layers.norm(mid_chs)
        theirs = variant == "d-li14"
        reduced_chs = mid_chs // 4 if theirs else 0
        self.se = SqueezeExcite(mid_chs, gate, reduced_chs) if gate else nn.Identity()
        self.ghost2 = ghost(mid_chs, out_chs, act=False, attention=False)
        self.shortcut = nn.Sequential()
        if strided or in_chs != out_chs:
            short_kernel = 3 if theirs else kernel
            self.shortcut.append(layers.depthwise(in_chs, short_kernel, stride=stride))
            self.shortcut.append(layers.norm(in_chs))
            if theirs:
                self.shortcut.add_module("act", layers.activation())
            self.shortcut.add_module("2", layers.conv(in_chs, out_chs, 1))
            self.shortcut.add_module("3", layers.norm(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost1(x)
        y = self.summed("dw", y) if self.branched else self.bn_dw(convolved(self.conv_dw, y))
        y = self.se(y)
        if isinstance(self.ghost2, GhostModule):
            return self.ghost2.plus(y, lambda: chained(self.shortcut, x))
        result: Tensor = self.ghost2(y) + chained(self.shortcut, x)
        return result

    def deploy_(self) -> None:
        if self.branched:
            self.conv_dw = self.merge_("dw")
            self.branched = False


def _after(chs: int, layers: Layers, act: bool, late: bool) -> tuple[nn.Module, nn.Module]:
    """Norm and activation of one branch; `late`: both come after the concatenation."""
    if late:
        return nn.Identity(), nn.Identity()
    return layers.norm(chs), layers.activation(act)


def _check(s: int, d: int, placement: str, branches: int) -> None:
    for name, value in (("s", s), ("d", d), ("branches", branches)):
        if not isinstance(value, int):
            raise UsageError(f"got {name}={value!r}; wanted a whole number")
    if s < 2:
        raise UsageError(f"got {s=}; wanted 2 or more, as 1 / s of the features are not cheap")
    if d < 1 or d % 2 == 0:
        raise UsageError(f"got {d=}; wanted an odd kernel: 1, 3, 5, 7 ...")
    if placement not in PLACEMENTS:
        raise UsageError(f"got placement {placement!r}; wanted one of: {', '.join(PLACEMENTS)}")
    if branches and placement != "per-branch":
        raise UsageError(
            f"got {placement=} for a module with branches, each of which has its norm; wanted "
            "'per-branch'. Use another placement with GhostNet or GhostNetV2"
        )
