"""ResNet-50 and ResNet-56 (He et al. 2016), plain or with Ghost modules (Han et al. 2020, 4.2).

The plain ResNet-50's `state_dict` has the keys and shapes of torchvision's, whose stride stands in
the 3x3 convolution. ResNet-56 is the one for CIFAR: 16, 32 and 64 channels, shortcuts without
weights (option A). In a Ghost ResNet every convolution but the first is a Ghost module, that of a
shortcut too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.models.aside import stands_alone
from spiritlevel.models.convolved import convolved
from spiritlevel.models.ghost import GhostModule
from spiritlevel.models.layers import Layers, stem_stride
from spiritlevel.models.normed import normed
from spiritlevel.models.staged import Staged
from spiritlevel.nn import NormSpec

__all__ = ["OptionA", "ResNet", "ResidualUnit"]

Kernels = tuple[int, ...]
_BASIC: Kernels = (3, 3)
_BOTTLENECK: Kernels = (1, 3, 1)
_EXPANSION = 4  # of a bottleneck's last convolution


class OptionA(nn.Module):
    """Every `stride`-th position, and zeros for the channels that are new.

    (N, in_chs, H, W) -> (N, out_chs, ceil(H / stride), ceil(W / stride)); He et al. 2016, 3.3.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_chs - in_chs) // 2
        self.pad = (0, 0, 0, 0, before, out_chs - in_chs - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)


class ResidualUnit(nn.Module):
    """act(shortcut(x) + convolutions(x)).

    (N, in_chs, H, W) -> (N, out_chs, ceil(H / stride), ceil(W / stride)). `kernels` are (3, 3), or
    (1, 3, 1) with a quarter of `out_chs` between; the first 3x3 one is strided. With `ghost`
    options they are Ghost modules, which bring their own norms and activations. Where shapes change
    the shortcut is `OptionA`, or a strided 1x1 convolution.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        layers: Layers,
        kernels: Kernels,
        stride: int,
        ghost: dict[str, Any] | None,
        option_a: bool,
    ) -> None:
        super().__init__()
        self.count = len(kernels)
        mid_chs = out_chs // _EXPANSION if kernels == _BOTTLENECK else out_chs
        chs, strided = in_chs, kernels.index(3)
        for i, kernel in enumerate(kernels):
            last = i == self.count - 1
            width = out_chs if last else mid_chs
            step = stride if i == strided else 1
            if ghost is None:
                conv: nn.Module = layers.conv(chs, width, kernel, stride=step)
                norm, act = layers.norm(width), layers.activation(not last)
            else:
                conv = GhostModule(
                    chs, width, layers, kernel=kernel, stride=step, act=not last, **ghost
                )
                norm, act = nn.Identity(), nn.Identity()
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", norm)
            self.add_module(f"act{i + 1}", act)
            chs = width
        self.downsample: nn.Module = nn.Sequential()
        if option_a and (stride > 1 or in_chs != out_chs):
            self.downsample = OptionA(in_chs, out_chs, stride)
        elif stride > 1 or in_chs != out_chs:
            self.downsample = _projection(in_chs, out_chs, layers, stride, ghost)
        self.act = layers.activation()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count):
            conv, norm, act = self._layers(i)
            y = normed(norm, act, conv(y))
        conv, norm, act = self._layers(self.count)
        if not _is_nothing(act):
            result: Tensor = self.act(act(norm(conv(y))) + self.downsample(x))
        elif isinstance(conv, GhostModule) and _is_nothing(norm):
            result = self.act(conv.plus(y, lambda: self.downsample(x)))
        else:
            result = normed(norm, self.act, conv(y), self.downsample(x))
        return result

    def _layers(self, i: int) -> list[Any]:
        return [self._modules[f"{kind}{i}"] for kind in ("conv", "bn", "act")]

    def ends(self) -> list[tuple[nn.Module, nn.Module]]:
        """The layers whose sum or concatenation the branch is, each with the norm after it."""
        conv = self.get_submodule(f"conv{self.count}")
        if isinstance(conv, GhostModule):
            return conv.ends()
        return [(conv, self.get_submodule(f"bn{self.count}"))]


def _is_nothing(layer: nn.Module) -> bool:
    return type(layer) is nn.Identity and stands_alone(layer)


def _projection(
    in_chs: int, out_chs: int, layers: Layers, stride: int, ghost: dict[str, Any] | None
) -> nn.Module:
    if ghost is not None:
        return GhostModule(in_chs, out_chs, layers, stride=stride, act=False, **ghost)
    return nn.Sequential(layers.conv(in_chs, out_chs, 1, stride=stride), layers.norm(out_chs))


class ResNet(Staged):
    """(N, in_chans, H, W) -> logits (N, num_classes), H and W from 28 up.

    `widths` and `depths` are the channels and units of each stage; all but the first halve the map.
    `stem="imagenet"` is a strided 7x7 convolution and a max-pool, "cifar" a 3x3 convolution.
    `s` = 1 is the plain network; above, convolutions are Ghost modules, with `d` and `placement` as
    there, the first one only with `ghost_stem`. Shortcuts where shapes change are `OptionA` in
    networks of 3x3 convolutions, else 1x1 convolutions, or as `option_a` says. `drop_rate`, `act`
    and `checkpoint` are as in `GhostNet`. Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        stem: str = "imagenet",
        *,
        widths: tuple[int, ...] = (256, 512, 1024, 2048),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        kernels: Kernels = _BOTTLENECK,
        option_a: bool | None = None,
        ghost_stem: bool = False,
        s: int = 2,
        d: int = 3,
        placement: str = "per-branch",
        drop_rate: float = 0.0,
        act: str = "relu",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        layers = Layers.of(norm, act)
        ghost: dict[str, Any] | None = None
        if s != 1:
            ghost = {"s": s, "d": d, "placement": placement}
        chs = widths[0] // _EXPANSION if kernels == _BOTTLENECK else widths[0]
        option_a = kernels == _BASIC if option_a is None else option_a
        large = stem_stride(stem) == 2
        first: dict[str, Any] = {"kernel": 7 if large else 3, "stride": stem_stride(stem)}
        if ghost_stem and ghost is not None:
            self.conv1: nn.Module = GhostModule(in_chans, chs, layers, **first, **ghost)
            self.bn1: nn.Module = nn.Identity()
            self.act1: nn.Module = nn.Identity()
        else:
            self.conv1 = layers.conv(in_chans, chs, **first)
            self.bn1, self.act1 = layers.norm(chs), layers.activation()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                stride = 2 if i and not j else 1
                unit = ResidualUnit(chs, width, layers, kernels, stride, ghost, option_a)
                stage.append(unit)
                chs = width
            self.add_module(f"layer{i + 1}", stage)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(chs, num_classes)
        self.count = len(widths)
        self.checkpointing = checkpoint

    def stem(self, x: Tensor) -> Tensor:
        return normed(self.bn1, self.act1, self.conv1(x))

    def stages(self) -> list[nn.Module]:
        layers = [self.get_submodule(f"layer{i + 1}") for i in range(self.count)]
        return layers if isinstance(self.maxpool, nn.Identity) else [self.maxpool, *layers]

    def halvings(self) -> tuple[int, ...]:
        later = range(1, self.count)
        pooled = not isinstance(self.maxpool, nn.Identity)
        return (0, *(i + 1 for i in later)) if pooled else tuple(later)

    def head(self, x: Tensor) -> Tensor:
        logits: Tensor = convolved(self.fc, self.dropout(x.mean((2, 3))))
        return logits
