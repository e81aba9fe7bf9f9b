"""RUN/best.safetensors and RUN/last.safetensors, and whether one is what it should be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spiritlevel.data.preprocessing import Preprocessing
from spiritlevel.models.weights import save_weights
from spiritlevel.train.recipe import Recipe

__all__ = ["WeightFiles", "digest"]


@dataclass(frozen=True)
class WeightFiles:
    """Those of the run in `folder`, each with how it was trained and fed."""

    folder: Path
    recipe: Recipe
    preprocessing: Preprocessing

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def write(self, name: str, model: nn.Module) -> None:
        """Raises UsageError."""
        told = self.preprocessing.to_dict()
        save_weights(model, self.path(name), recipe=self.recipe, preprocessing=told)

    def read(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path(name))

    def holds(self, name: str, wanted: str | None) -> bool:
        """Whether it is there, whole, and of that `digest`."""
        try:
            return self.path(name).is_file() and digest(self.read(name)) == wanted
        except (OSError, SafetensorError):  # torn
            return False


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and numbers, the same of a model and of its file."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
