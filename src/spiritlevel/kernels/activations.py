"""The activations that a normalization may end in, by name and as torch's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError

__all__ = ["ACTIVATIONS", "Activation", "activation", "module_of", "of_module", "with_options"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
}
"""Name -> torch's function; leaky_relu takes its slope after a colon, as in leaky_relu:0.2."""


class Activation(NamedTuple):
    """One of `ACTIVATIONS`; the slope is leaky_relu's, for inputs below 0."""

    name: str
    slope: float = 0.01

    def __call__(self, z: Tensor) -> Tensor:
        if self.name == "leaky_relu":
            return F.leaky_relu(z, self.slope)
        return ACTIVATIONS[self.name](z)

    def __str__(self) -> str:
        leaky = self.name == "leaky_relu" and self.slope != 0.01
        return f"{self.name}:{self.slope:g}" if leaky else self.name


def activation(spec: str | Activation) -> Activation:
    """The activation that a string names. Raises UsageError."""
    if isinstance(spec, Activation):
        return spec
    name, colon, slope = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    try:
        if name in ACTIVATIONS and not colon:
            return Activation(name)
        if name == "leaky_relu":
            return Activation(name, float(slope))
    except ValueError:
        pass
    raise UsageError(
        f"got activation {spec!r}; wanted one of {', '.join(ACTIVATIONS)}, or leaky_relu with its "
        "slope, as leaky_relu:0.2"
    )


_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.GELU: "gelu",
    nn.Hardtanh: "hardtanh",
}


def of_module(module: nn.Module) -> Activation | None:
    """The activation that the module is, by its exact class; None for all others."""
    name = _MODULES.get(type(module))
    return None if name is None else with_options(name, vars(module))


def module_of(act: Activation) -> nn.Module:
    """torch's own layer of an activation."""
    if act.name == "identity":
        return nn.Identity()
    if act.name == "leaky_relu":
        return nn.LeakyReLU(act.slope)
    kinds = {name: kind for kind, name in _MODULES.items() if kind is not nn.Hardtanh}
    return kinds[act.name]()


def with_options(name: str, options: Mapping[str, Any]) -> Activation | None:
    """That of a name of torch's, or of "hardtanh", with these options; None where it is none."""
    if name == "leaky_relu":
        slope = options.get("negative_slope", 0.01)
        return Activation(name, float(slope)) if isinstance(slope, int | float) else None
    if name == "gelu":
        return Activation(name) if options.get("approximate", "none") == "none" else None
    if name == "hardtanh":
        ends = (options.get("min_val", -1.0), options.get("max_val", 1.0))
        return Activation("relu6") if ends == (0, 6) else None
    return Activation(name)
