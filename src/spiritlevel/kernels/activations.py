"""The activations that a normalization may end in, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from spiritlevel.errors import UsageError

__all__ = ["ACTIVATIONS", "Activation", "activation"]

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
