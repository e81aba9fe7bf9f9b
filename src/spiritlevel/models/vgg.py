"""VGG-16 for small images (Simonyan & Zisserman 2015), and Ghost-VGG-16 (Han et al. 2020, table 3).

Thirteen 3x3 convolutions, each with its norm, and one linear layer, as results on CIFAR-10 have it.
"""

from __future__ import annotations

from torch import Tensor, nn

from spiritlevel.models.convolved import convolved
from spiritlevel.models.ghost import GhostModule
from spiritlevel.models.layers import ConvNormAct, Layers, make_divisible
from spiritlevel.models.staged import Staged
from spiritlevel.nn import NormSpec

__all__ = ["VGG16"]

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Staged):
    """(N, in_chans, H, W) -> logits (N, num_classes), H and W from 16 up.

    Five stages of (3x3 convolution, norm, activation), a 2x2 max-pool before each but the first;
    the mean over what is left, dropout and a linear layer. `s` = 1 is the plain network; above, all
    convolutions but the first are Ghost modules, with `d` and `placement` as there. `width` scales
    all channels, to multiples of 4. `act` and `checkpoint` are as in `GhostNet`. Raises UsageError.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm: NormSpec = "batch",
        in_chans: int = 3,
        *,
        width: float = 1.0,
        s: int = 2,
        d: int = 3,
        placement: str = "per-branch",
        drop_rate: float = 0.0,
        act: str = "relu",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        layers = Layers.of(norm, act)
        self.features = nn.Sequential()
        chs = 0
        for widths in _STAGES:
            stage = nn.Sequential(nn.MaxPool2d(2)) if chs else nn.Sequential()
            for out_chs in (make_divisible(full * width) for full in widths):
                if s == 1 or not chs:
                    unit: nn.Module = ConvNormAct(chs or in_chans, out_chs, layers, 3)
                else:
                    unit = GhostModule(
                        chs, out_chs, layers, kernel=3, s=s, d=d, placement=placement
                    )
                stage.append(unit)
                chs = out_chs
            self.features.append(stage)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(chs, num_classes)
        self.checkpointing = checkpoint

    def stem(self, x: Tensor) -> Tensor:
        return x

    def stages(self) -> nn.Sequential:
        return self.features

    def halvings(self) -> tuple[int, ...]:
        return tuple(range(1, len(_STAGES)))

    def head(self, x: Tensor) -> Tensor:
        logits: Tensor = convolved(self.classifier, self.dropout(x.mean((2, 3))))
        return logits
