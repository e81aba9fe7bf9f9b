"""GhostNet, GhostNetV2 and GhostNetV3, with any normalization or none after their convolutions.

One table of layers (Han et al. 2020, table 1) serves all three. GhostNetV2 (Tang et al. 2022) adds
attention to all bottlenecks but the first two; GhostNetV3 (Liu et al. 2024) trains GhostNetV2's
convolutions as sums of branches, without the attention's own. With batch normalization the
`state_dict` has the keys, order and shapes of the published weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.models.convolved import convolved
from spiritlevel.models.ghost import GhostBottleneck
from spiritlevel.models.layers import ConvNormAct, Layers, make_divisible, stem_stride
from spiritlevel.models.normed import normed
from spiritlevel.models.reparam import deploy_
from spiritlevel.models.staged import Staged
from spiritlevel.nn import NormSpec

__all__ = ["GhostNet"]

# A row of table 1: kernel (which the table leaves out), expansion, channels, squeeze-excitation,
# stride. One inner tuple is one `blocks.<i>` of the published weights.
_STAGES = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    (
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
    ),
    ((5, 672, 160, True, 2),),
    (
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
    ),
)
_STEM, _TAIL, _HEAD = 16, 960, 1280  # channels; the head's are the same at every width
_WITHOUT_ATTENTION = 2  # bottlenecks at the start
_BRANCHES = 3
_VARIANTS = ("huawei", "d-li14")


class GhostNet(Staged):
    """(N, in_chans, H, W) -> logits (N, num_classes), H and W from 28 up.

    The last map of a small image is one pixel, so that batch normalization needs more than one
    image in training there. `stem="imagenet"` halves the image in the first convolution, "cifar"
    does not; four more halvings follow. `width` scales all channels but the head's; `version` is 1,
    2 or 3.
    `drop_rate` is the dropout before the classifier. `act` is an activation of `kernels`, `gate`
    "hard" or "clamped" that of squeeze-excitation, `s`, `d` and `placement` are those of
    `GhostModule`, and `checkpoint` sets `checkpointing`. A convolution has a bias only where `norm`
    does not normalize, or where the paper has no norm (squeeze-excitation, head). `deployed` merges
    the branches of version 3 at once, as `deploy` does, for weights that were saved so.

    `variant="d-li14"` is the network that the weights of d-li14/ghostnet.pytorch are of: its gate
    is clamped unless given, its squeeze-excitation a quarter rounded down, the depthwise
    convolution of its shortcuts 3x3 with an activation, and its head has a norm in place of a bias.
    Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        stem: str = "imagenet",
        *,
        width: float = 1.0,
        version: int = 1,
        drop_rate: float = 0.2,
        act: str = "relu",
        gate: str | None = None,
        s: int = 2,
        d: int = 3,
        placement: str = "per-branch",
        checkpoint: bool = False,
        variant: str = "huawei",
        deployed: bool = False,
    ) -> None:
        super().__init__()
        _check_variant(variant, version, deployed)
        theirs = variant == "d-li14"
        gate = gate or ("clamped" if theirs else "hard")
        layers = Layers.of(norm, act)
        chs = make_divisible(_STEM * width)
        self.conv_stem = layers.conv(in_chans, chs, 3, stride=stem_stride(stem))
        self.bn1 = layers.norm(chs)
        self.act1 = layers.activation()
        options = {"s": s, "d": d, "placement": placement, "variant": variant}
        self.blocks = _blocks(chs, width, layers, version, gate, options)
        tail_chs = make_divisible(_TAIL * width)
        self.conv_head = (
            layers.conv(tail_chs, _HEAD, 1) if theirs else nn.Conv2d(tail_chs, _HEAD, 1)
        )
        self.bn_head = layers.norm(_HEAD) if theirs else nn.Identity()
        self.act2 = layers.activation()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier: nn.Module = nn.Linear(_HEAD, num_classes)
        self.checkpointing = checkpoint
        if deployed:
            deploy_(self).train()

    def stem(self, x: Tensor) -> Tensor:
        return normed(self.bn1, self.act1, convolved(self.conv_stem, x))

    def stages(self) -> nn.Sequential:
        return self.blocks

    def halvings(self) -> tuple[int, ...]:
        return tuple(i for i, rows in enumerate(_STAGES) if rows[0][-1] == 2)

    def head(self, x: Tensor) -> Tensor:
        return convolved(self.classifier, self.pre_logits(x))

    def pre_logits(self, x: Tensor) -> Tensor:
        """The last map -> what the classifier gets, (N, 1280)."""
        x = convolved(self.conv_head, x.mean((2, 3), keepdim=True))
        x = self.act2(self.bn_head(x))
        features: Tensor = self.dropout(x.flatten(1))
        return features


def _check_variant(variant: str, version: int, deployed: bool) -> None:
    if variant not in _VARIANTS:
        raise UsageError(f"got variant {variant!r}; wanted one of: {', '.join(_VARIANTS)}")
    if variant != "huawei" and version != 1:
        raise UsageError(f"got {variant=} of GhostNetV{version}; wanted a ghostnet_*, as it has")
    if deployed and version != 3:
        raise UsageError(
            f"got {deployed=} of GhostNet version {version}, which has no branches to merge; "
            "wanted a ghostnetv3_*. Leave it out"
        )


def _blocks(
    chs: int, width: float, layers: Layers, version: int, gate: str, options: dict[str, Any]
) -> nn.Sequential:
    """The stages of table 1, from `chs` channels, and the 1x1 convolution after them."""
    stages, before = [], 0
    branches = _BRANCHES if version == 3 else 0
    for rows in _STAGES:
        stage = nn.Sequential()
        for kernel, expansion, channels, se, stride in rows:
            mid_chs, out_chs = make_divisible(expansion * width), make_divisible(channels * width)
            attention = version > 1 and before >= _WITHOUT_ATTENTION
            block = GhostBottleneck(
                chs,
                mid_chs,
                out_chs,
                layers,
                kernel=kernel,
                stride=stride,
                gate=gate if se else "",
                attention=attention,
                branches=branches,
                **options,
            )
            stage.append(block)
            chs, before = out_chs, before + 1
        stages.append(stage)
    tail = ConvNormAct(chs, make_divisible(_TAIL * width), layers)
    return nn.Sequential(*stages, nn.Sequential(tail))
