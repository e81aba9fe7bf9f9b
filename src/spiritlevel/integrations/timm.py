"""spiritlevel in timm: its norm with activation in timm's models, and GhostNets by timm's registry.

from spiritlevel.integrations.timm import register

register()
timm.create_model("spiritlevel_ghostnet_100", num_classes=10)
timm.create_model("efficientnet_b0", norm_layer=spiritlevel.nn.BatchNormAct2d)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from spiritlevel.errors import SpiritlevelError, UsageError, require
from spiritlevel.models import create_model, list_models
from spiritlevel.models.ghostnet import GhostNet
from spiritlevel.nn import as_timm, batch

__all__ = ["PREFIX", "TimmGhostNet", "register"]

PREFIX = "spiritlevel_"
"""Before our names in timm's registry, where some of them stand for timm's own models."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_INPUT = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": _MEAN,
    "std": _STD,
    "first_conv": "conv_stem",
    "classifier": "classifier",
    "license": "apache-2.0",
}
"""How the published weights of GhostNets, to be given as `checkpoint_path`, are fed."""

default_cfgs: dict[str, Any] = {}
"""Read by timm's `register_model`."""


def register() -> list[str]:
    """Tell timm of `spiritlevel.nn.BatchNormAct2d` and of our GhostNets; return their names there.

    Names get the prefix `spiritlevel_`; a second call changes nothing. Raises MissingExtra where
    timm is not installed, and SpiritlevelError where it is one that these do not fit into.
    """
    timm, registry = require("timm", extra="timm"), require("timm.models._registry", extra="timm")
    if not as_timm.introduced(batch.BatchNormAct2d):
        raise SpiritlevelError(
            f"got timm {timm.__version__}, whose lists of norms with an activation are not where "
            "they were; wanted timm 1.0.15 to 1.0.31. Install one of these"
        )
    names = {f"{PREFIX}{name}": name for name in list_models("ghostnet*")}
    default_cfgs.update(registry.generate_default_cfgs({name: dict(_INPUT) for name in names}))
    for name, ours in names.items():
        if not registry.is_model(name):
            globals()[name] = registry.register_model(_entry(name, ours))
    return list(names)


def _entry(name: str, ours: str) -> Callable[..., nn.Module]:
    """What timm calls to make a model: its `__name__` and `__module__` are what is registered."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        builder = require("timm.models._builder", extra="timm")
        given = {"feature_cfg": {"feature_cls": "getter", "out_indices": _ALL}, **options}
        made: nn.Module = builder.build_model_with_cfg(
            partial(_made, ours), name, pretrained, **given
        )
        return made

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"`spiritlevel.create_model({ours!r})`, as timm's models are used."
    return entry


_ALL = (0, 1, 2, 3, 4)
"""The maps of `GhostNet.intermediates`."""


def _made(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    global_pool: str = "avg",
    **options: Any,
) -> TimmGhostNet:
    if global_pool != "avg":
        raise UsageError(f"got {global_pool=}; wanted 'avg', all that a GhostNet has. Leave it out")
    made: Any = create_model(name, num_classes or 1, in_chans=in_chans, **options)
    made.__class__ = TimmGhostNet
    made.in_chans = in_chans
    made.num_classes = made.classifier.out_features
    made.num_features = made.conv_head.in_channels
    made.head_hidden_size = made.conv_head.out_channels
    made.feature_info = made.maps_info()
    if not num_classes:
        made.reset_classifier(0)
    return made  # type: ignore[no-any-return]


class TimmGhostNet(GhostNet):
    """A GhostNet with the methods that timm's own models have beside `forward`.

    `feature_info` and `forward_intermediates` are of the maps that `intermediates` gives.
    """

    num_classes: int
    num_features: int
    head_hidden_size: int
    in_chans: int
    feature_info: list[dict[str, Any]]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> the last map, which `forward_head` takes."""
        return self.last_map(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits, or what the classifier gets."""
        return self.pre_logits(x) if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, in the old one's place; none, and features come out, for 0."""
        if global_pool not in (None, "avg"):
            raise UsageError(f"got {global_pool=}; wanted 'avg' or None. Leave it out")
        like = self.conv_head.weight
        self.num_classes = num_classes
        self.classifier = (
            nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """`checkpointing`, by timm's name."""
        self.checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map, and the maps of these indices, or of the last so many.

        With `intermediates_only` no more is computed than they take. `norm` and `stop_early` change
        nothing: no norm comes after the last map.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"got {output_fmt=}; wanted 'NCHW', as maps are here. Leave it out")
        most = len(self.halvings()) + 1
        if isinstance(indices, int):
            indices = range(most - indices, most)
        wanted = range(most) if indices is None else list(indices)
        if any(not -most <= i < most for i in wanted):
            raise UsageError(f"got indices {indices}; wanted each from {-most} to {most - 1}")
        taken = [i % most for i in wanted]
        count = max(taken, default=0) + 1 if intermediates_only else most
        maps = self.intermediates(x, count)
        chosen = [maps[i] for i in taken]
        return chosen if intermediates_only else (maps[-1], chosen)

    def maps_info(self) -> list[dict[str, Any]]:
        """Of each of `intermediates` the channels, how many times smaller it is, and its stage."""
        found, stride = [], self.conv_stem.stride[0]
        for i, stage in enumerate(self.halvings()):
            before: Any = self.blocks[stage - 1]
            chs = before[-1].ghost2.out_chs
            info = {"num_chs": chs, "reduction": stride * 2**i, "module": f"blocks.{stage - 1}"}
            found.append(info)
        last = {"num_chs": self.num_features, "module": f"blocks.{len(self.blocks) - 1}"}
        return [*found, last | {"reduction": stride * 2 ** len(found)}]
