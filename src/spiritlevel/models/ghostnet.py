"""GhostNet (Han et al. 2020, table 1), with any normalization or none after its convolutions.

With batch normalization the `state_dict` has the keys, order and shapes of the published weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.models.ghost import ConvNormAct, GhostBottleneck, convolution, make_divisible
from spiritlevel.nn import NormFactory, NormSpec, norm_layer, normalizes

__all__ = ["GhostNet", "stem_stride"]

_STEM_STRIDES = {"imagenet": 2, "cifar": 1}

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


def stem_stride(stem: str) -> int:
    """The stride of the first convolution. Raises UsageError."""
    if stem not in _STEM_STRIDES:
        raise UsageError(f"got stem {stem!r}; wanted one of: {', '.join(_STEM_STRIDES)}")
    return _STEM_STRIDES[stem]


class GhostNet(nn.Module):
    """(N, in_chans, H, W) -> logits (N, num_classes), H and W from 28 up.

    `stem="imagenet"` halves the image in the first convolution, "cifar" does not; four more
    halvings follow. `width` scales all channels but the head's. `drop_rate` is the dropout before
    the classifier. A convolution has a bias only where `norm` does not normalize, or where the
    paper has no norm (squeeze-excitation, head). Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        stem: str = "imagenet",
        *,
        width: float = 1.0,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        make_norm, bias = norm_layer(norm, dim=2), not normalizes(norm)
        chs = make_divisible(_STEM * width)
        stride = stem_stride(stem)
        self.conv_stem = convolution(in_chans, chs, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = make_norm(chs)
        self.act1 = nn.ReLU()
        self.blocks = _blocks(chs, width, make_norm, bias)
        self.conv_head = nn.Conv2d(make_divisible(_TAIL * width), _HEAD, 1)
        self.act2 = nn.ReLU()
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(_HEAD, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        x = self.act2(self.conv_head(x.mean((2, 3), keepdim=True)))
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


def _blocks(chs: int, width: float, norm: NormFactory, bias: bool) -> nn.Sequential:
    """The stages of table 1, from `chs` channels, and the 1x1 convolution after them."""
    stages = []
    for rows in _STAGES:
        stage = []
        for kernel, expansion, channels, se, stride in rows:
            mid_chs, out_chs = make_divisible(expansion * width), make_divisible(channels * width)
            stage.append(GhostBottleneck(chs, mid_chs, out_chs, kernel, se, stride, norm, bias))
            chs = out_chs
        stages.append(nn.Sequential(*stage))
    tail = ConvNormAct(chs, make_divisible(_TAIL * width), norm, bias)
    return nn.Sequential(*stages, nn.Sequential(tail))
