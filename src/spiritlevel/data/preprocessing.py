"""How a run made images its network's input, kept with its weights and done again on others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spiritlevel.data.images import Images, resize
from spiritlevel.data.loader import Prepared
from spiritlevel.data.pixels import Pixels
from spiritlevel.errors import UsageError
from spiritlevel.models.preprocessing import misfit

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """Images brought to `size`, then `(pixel / 255 - mean) / std`, channel by channel.

    Raises UsageError for what cannot be.
    """

    size: int
    """Pixels a side."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """What is divided by."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    classes: tuple[str, ...]
    """The name of each output. A folder's are user text, of any script."""
    data: str = ""
    """What it was trained on, for a reader."""

    def __post_init__(self) -> None:
        if wrong := misfit(self.to_dict()):
            raise UsageError(f"got preprocessing whose {wrong}. Give what the network was fed with")

    @classmethod
    def of(cls, prepared: Prepared, images: Images, data: str = "") -> Preprocessing:
        """As `prepare` made `prepared` of `images`, which `load(data)` gave."""
        return cls(
            prepared.size,
            prepared.mean,
            prepared.divisor,
            prepared.channels,
            images.classes,
            data or images.name,
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """What `save_weights(preprocessing=...)` keeps: JSON holds it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, told: Any) -> Preprocessing:
        """What `to_dict` gave, of a file of anyone's. Raises UsageError."""
        if wrong := misfit(told):
            raise UsageError(
                f"got preprocessing whose {wrong}. Take what spiritlevel.models.read_metadata "
                "gives of a run's weights"
            )
        return cls(
            told["size"],
            tuple(map(float, told["mean"])),
            tuple(map(float, told["std"])),
            told["channels"],
            tuple(told["classes"]),
            told.get("data", ""),
        )

    def apply(self, x_NCHW: Tensor) -> Tensor:
        """uint8 (N, channels, S, S) -> float32 (N, channels, size, size), as `Pixels` does it.

        Smaller images are enlarged first, bilinear. Raises UsageError.
        """
        known = x_NCHW.dtype == torch.uint8 and x_NCHW.dim() == 4
        square = known and x_NCHW.shape[2] == x_NCHW.shape[3]
        if not square or x_NCHW.shape[1] != self.channels:
            raise UsageError(
                f"got images {x_NCHW.dtype} {tuple(x_NCHW.shape)}; wanted torch.uint8 "
                f"(N, {self.channels}, S, S). Decode them to bytes, "
                f"{'grey' if self.channels == 1 else 'RGB'}"
            )
        if x_NCHW.shape[-1] < self.size:
            x_NCHW = resize(x_NCHW, self.size)
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in (self.mean, self.std))
        return Pixels(x_NCHW, self.size, mean, std)[:]
