"""The controls: small networks without GhostNet's particulars, with any norm, at any depth.

The norm stands between a weight and its activation, save in `ResidualMLP`. Every weight keeps its
bias, so that a seed draws the same weights whatever the norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.nn import NormFactory, NormSpec, norm_layer

__all__ = ["MLP", "BasicBlock", "ResidualBlock", "ResidualMLP", "SmallResNet", "SmallVGG"]

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity}


class MLP(nn.Module):
    """(N, in_chans, image_size, image_size) -> flat -> `depth` hidden layers -> logits.

    A hidden layer is linear, norm, activation: "relu", "sigmoid", "tanh" or "none".
    Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        *,
        image_size: int = 28,
        depth: int = 3,
        width: int = 100,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _check_positive(image_size=image_size, depth=depth, width=width)
        make_norm, make_activation = norm_layer(norm, dim=1), _activation(activation)
        self.image_shape = (in_chans, image_size, image_size)
        self.hidden = nn.Sequential()
        for i in range(depth):
            linear = nn.Linear(width if i else in_chans * image_size**2, width)
            self.hidden.append(_named(linear=linear, norm=make_norm(width), act=make_activation()))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(_flat(x, self.image_shape)))
        return logits


class ResidualBlock(nn.Module):
    """x + linear(activation(norm(x))): (N, width) -> the same."""

    def __init__(self, width: int, norm: NormFactory, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm = norm(width)
        self.act = activation()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.linear(self.act(self.norm(x)))
        return x + branch


class ResidualMLP(nn.Module):
    """(N, in_chans, image_size, image_size) -> flat -> linear -> `depth` - 1 blocks -> logits.

    `depth` counts the hidden linear layers, as in `MLP`. Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        *,
        image_size: int = 28,
        depth: int = 3,
        width: int = 100,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _check_positive(image_size=image_size, depth=depth, width=width)
        make_norm, make_activation = norm_layer(norm, dim=1), _activation(activation)
        self.image_shape = (in_chans, image_size, image_size)
        self.linear = nn.Linear(in_chans * image_size**2, width)
        blocks = (ResidualBlock(width, make_norm, make_activation) for _ in range(depth - 1))
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.blocks(self.linear(_flat(x, self.image_shape))))
        return logits


class SmallVGG(nn.Module):
    """(N, in_chans, H, W) -> stages of (conv 3x3, norm, ReLU) -> mean over positions -> logits.

    A stage for each of `widths`, a 2x2 max-pool after each. `depth`, where given, is the number
    of convolutions in all, spread over the stages, the earlier taking what is left over.
    H and W are at least 2 to the number of stages. Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        *,
        widths: Sequence[int] = (16, 32, 64),
        convs_per_stage: int = 2,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm, dim=2)
        depth = convs_per_stage * len(widths) if depth is None else depth
        self.stages = nn.Sequential()
        chs = in_chans
        for width, convs in zip(widths, _spread(depth, widths), strict=True):
            stage = nn.Sequential()
            for _ in range(convs):
                conv = nn.Conv2d(chs, width, 3, padding=1)
                stage.append(_named(conv=conv, norm=make_norm(width), act=nn.ReLU()))
                chs = width
            self.stages.append(stage)
        self.classifier = nn.Linear(chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), 3x3 (He et al. 2016, figure 2).

    (N, in_chs, H, W) -> (N, out_chs, ceil(H / stride), ceil(W / stride)). Where shapes change the
    shortcut is a strided 1x1 convolution and a norm.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1)
        self.norm1 = norm(out_chs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1)
        self.norm2 = norm(out_chs)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_chs != out_chs:
            self.shortcut.extend([nn.Conv2d(in_chs, out_chs, 1, stride), norm(out_chs)])
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        y: Tensor = self.act2(branch + self.shortcut(x))
        return y


class SmallResNet(nn.Module):
    """(N, in_chans, H, W) -> conv, norm, ReLU -> stages of basic blocks -> mean -> logits.

    `depth` counts the 3x3 convolutions: the first and two in each block. Blocks are spread over the
    stages, one stage for each of `widths`; all but the first stage halve the image.
    Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        *,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 7,
    ) -> None:
        super().__init__()
        if depth % 2 == 0:
            raise UsageError(f"got depth={depth}; wanted an odd number: one, and two a block")
        make_norm = norm_layer(norm, dim=2)
        blocks = _spread(depth // 2, widths)
        self.conv = nn.Conv2d(in_chans, widths[0], 3, padding=1)
        self.norm = make_norm(widths[0])
        self.act = nn.ReLU()
        self.stages = nn.Sequential()
        chs = widths[0]
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(BasicBlock(chs, width, 2 if i and not j else 1, make_norm))
                chs = width
            self.stages.append(stage)
        self.classifier = nn.Linear(chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.act(self.norm(self.conv(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _activation(name: str) -> type[nn.Module]:
    if name not in _ACTIVATIONS:
        raise UsageError(f"got activation {name!r}; wanted one of: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"got {name}={size}; wanted 1 or more")


def _spread(total: int, widths: Sequence[int]) -> list[int]:
    """`total` over as many stages as there are widths, the earlier taking what is left over."""
    if not 1 <= len(widths) <= total:
        raise UsageError(
            f"got a depth that puts {total} convolutions or blocks into stages of widths "
            f"{tuple(widths)}; wanted at least one each. Use a greater depth or fewer widths"
        )
    share, left = divmod(total, len(widths))
    return [share + (i < left) for i in range(len(widths))]


def _flat(x: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    if x.shape[1:] != image_shape:
        raise UsageError(
            f"got images of shape {tuple(x.shape[1:])}; this model was made for {image_shape}. "
            "Make it with in_chans and image_size as the images have them"
        )
    return x.flatten(1)
