"""The networks a study trains: how each is built, and from which weights it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spiritlevel.catalogue import say
from spiritlevel.data import Prepared
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, init_he_, init_normal_, init_xavier_, zero_branches_
from spiritlevel.probe import norm_places
from spiritlevel.study.factory import Factory, load_factory

__all__ = [
    "NETWORKS",
    "Network",
    "build",
    "init_title",
    "initialise",
    "network",
    "places",
    "title",
    "use_factory",
]


@dataclass(frozen=True)
class Network:
    """One network."""

    model: str
    inits: tuple[str, ...] = ("default",)
    """Initial weights: the first with a norm, the last without, where they matter most."""
    landscape: tuple[tuple[float, str], ...] = ((0.03, "default"), (0.1, "default"))
    """(rate, weights) at which the loss around the weights is read, with a norm and without."""
    rate: float = 0.1
    """At which each arm learns, for what is measured at a single rate."""
    options: Mapping[str, Any] = field(default_factory=dict)
    deep: Mapping[str, Any] = field(default_factory=dict)
    """Options where a signal is followed by depth."""
    depths: tuple[int, ...] = ()
    """Smaller depths at which it is followed, too."""
    small_rates: tuple[float, ...] = ()
    """Below those of the grid, for where it trains without a norm only at such."""
    standardise: bool = True
    least_size: int = 8
    """Pixels a side."""
    cost: float = 1.0
    """Of a training step, in those of `small_vgg`."""


_HE_XAVIER = ((0.03, "he"), (0.1, "he"), (0.1, "xavier"))

NETWORKS = {
    # Ioffe & Szegedy 2015, section 4.1: pixels in [0, 1], three sigmoid layers of 100.
    "sigmoid_mlp": Network(
        "mlp",
        ("xavier",),
        rate=1.0,
        options={"depth": 3, "width": 100, "activation": "sigmoid"},
        standardise=False,
        cost=0.1,
    ),
    "mlp": Network("mlp", ("he",), cost=0.1),
    "residual_mlp": Network("residual_mlp", ("he",), cost=0.1),
    "small_vgg": Network("small_vgg", ("he",), _HE_XAVIER, deep={"depth": 18}, depths=(6, 12)),
    "small_resnet": Network(
        "small_resnet", ("he", "he+zero"), _HE_XAVIER, deep={"depth": 31}, depths=(7, 19), cost=1.6
    ),
    # Images this small are not halved at the stem. Without a norm a GhostNet trains neither from
    # torch's own weights nor from He's; from zeroed branches, at small rates, it does.
    "ghostnet_050": Network(
        "ghostnet_050",
        ("default", "he+zero"),
        small_rates=(0.001, 0.002, 0.003),
        landscape=((0.002, "he+zero"), (0.003, "he+zero")),
        # Dropout would add noise, and regularise, beside the norms.
        options={"stem": "cifar", "drop_rate": 0.0},
        least_size=16,
        cost=3.0,
    ),
}
_OWN = Network("", least_size=32, cost=2.0)
_factories: dict[str, Factory] = {}


def network(name: str) -> Network:
    """By name; `pkg.module:factory` is the user's own. Raises UsageError."""
    if ":" in name:
        return _OWN
    if name not in NETWORKS:
        raise UsageError(
            f"got network {name!r}; wanted one of {', '.join(NETWORKS)}, or pkg.module:factory"
        )
    return NETWORKS[name]


def title(name: str) -> str:
    """As a reader is told of it; the user's own by the name they gave."""
    return name if ":" in name else say(f"networks.{name}")


def init_title(init: str) -> str:
    """As a reader is told of initial weights: `he*2` as He × 2."""
    kind, star, number = init.partition("*")
    name = say(f"inits.{kind.replace('+', '_')}")
    return f"{name} × {number}" if star else name


def use_factory(factory: Factory) -> None:
    """Let this process build the user's network by the factory in hand, without importing it."""
    _factories[factory.spec] = factory


def build(settings: Mapping[str, Any], images: Prepared, *, norm: str | None = None) -> nn.Module:
    """The network of a cell, for these images, initialised, in channels-last.

    Settings: network, norm, init, and depth, width, activation where a network leaves them open.
    """
    name = settings["network"]
    norm = settings["norm"] if norm is None else norm
    model = _own(name, images, norm) if ":" in name else _ours(settings, images, norm)
    model = initialise(model, settings["init"])
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _ours(settings: Mapping[str, Any], images: Prepared, norm: str) -> nn.Module:
    known = network(settings["network"])
    options = dict(known.options)
    options |= {n: settings[n] for n in ("depth", "width", "activation") if n in settings}
    if known.model in ("mlp", "residual_mlp"):
        options["image_size"] = images.size
    return create_model(
        known.model, num_classes=images.num_classes, in_chans=images.channels, norm=norm, **options
    )


def _own(name: str, images: Prepared, norm: str) -> nn.Module:
    if name not in _factories:
        use_factory(load_factory(name))
    return _factories[name].build(
        num_classes=images.num_classes,
        in_chans=images.channels,
        norm=norm,
        image_size=images.size,
    )


def places(settings: Mapping[str, Any], images: Prepared) -> list[str]:
    """Where the network has its norms, by name: the same modules whatever norm stands there."""
    with torch.random.fork_rng(devices=[]):
        return norm_places(build(settings, images, norm="batch"))


def initialise(model: nn.Module, init: str) -> nn.Module:
    """By `init`: `default` (torch's), `xavier`, `he`, `he*2`, `normal*0.01` or `he+zero`.

    `he*2` is He with every weight doubled, `normal*0.01` is N(0, 0.01^2); `he+zero` starts each
    residual branch at zero, as Fixup and SkipInit do.
    """
    if init in _INITS:
        return _INITS[init](model)
    kind, _, number = init.partition("*")
    try:
        scaled, factor = _SCALED[kind], float(number)
    except (KeyError, ValueError):
        raise UsageError(
            f"got init {init!r}; wanted default, xavier, he, he*NUMBER, he+zero or normal*NUMBER"
        ) from None
    return scaled(model, factor)


_INITS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "default": lambda model: model,  # torch's
    "he": init_he_,
    "he+zero": lambda model: zero_branches_(init_he_(model)),
    "xavier": init_xavier_,
}
_SCALED: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "he": init_he_,
    "normal": init_normal_,
}
