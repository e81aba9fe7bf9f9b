"""The noise that batch statistics add: how far an image's features depend on its batch-mates."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.guard import undisturbed

__all__ = ["batch_noise"]


class Images(Protocol):
    """A tensor, or what gives float32 images (B, C, H, W) by their rows (B,)."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def batch_noise(
    model: nn.Module,
    images: Tensor,
    pool: Images,
    *,
    batch_size: int,
    draws: int,
    generator: torch.Generator,
    layers: Collection[str] = (),
) -> dict[str, float]:
    """E_x Var_B[f_B(x)]: the variance of each image's features over random batch-mates.

    Each of `images` (M, C, H, W) is fed `draws` times, in training mode, with `batch_size - 1`
    others drawn from `pool`; the unbiased variance over draws is averaged over images and features,
    for the output of each named module and of the model itself, whose name is "". Zero where
    neither batch statistics nor dropout make a forward pass depend on chance. The model is left
    undisturbed. Raises UsageError where a batch cannot be made.
    """
    if not 2 <= batch_size <= len(pool) + 1 or draws < 2:
        raise UsageError(
            f"got batch_size={batch_size}, draws={draws} and a pool of {len(pool)} images; "
            "wanted 2 <= batch_size <= pool + 1 and at least 2 draws"
        )
    modules = dict(model.named_modules())
    features: dict[str, list[Tensor]] = {name: [] for name in (*layers, "")}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            features[name].append(output[0].detach().double().flatten())

        return hook

    noise = dict.fromkeys(features, 0.0)
    with undisturbed(model), torch.no_grad(), ExitStack() as hooks:
        for name in features:
            hooks.callback(modules[name].register_forward_hook(keep(name)).remove)
        model.train()
        for image in images:
            for values in features.values():
                values.clear()
            for _ in range(draws):
                mates = torch.randperm(len(pool), generator=generator)[: batch_size - 1]
                model(torch.cat([image[None], pool[mates]]))
            for name, values in features.items():
                noise[name] += torch.stack(values).var(0).mean().item() / len(images)
    return noise
