"""Numbers that depend on nothing but a model's keys, shapes and arithmetic, to compare two by."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

MODELS = ("ghostnet_050", "ghostnetv2_100", "ghostnetv3_050")
CLASSES = 6


def keys(model: nn.Module) -> dict[str, object]:
    """How many there are, and a digest of the lines "key shape" in their order."""
    state = model.state_dict()
    lines = [f"{key} {'x'.join(map(str, value.shape)) or '-'}\n" for key, value in state.items()]
    return {"count": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


def wave(shape: torch.Size, phase: float) -> torch.Tensor:
    """Values from -1 to 1 that no random generator is needed for, in float64."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (steps * 1.618 + steps.square() * 0.01 + phase).sin().reshape(shape)


@torch.no_grad()
def fill_(model: nn.Module) -> nn.Module:
    """Every parameter and running statistic set by its place among them; the model in float64."""
    model.double()
    for i, (key, value) in enumerate(model.state_dict().items()):
        if key.endswith("running_var"):
            value.copy_(1 + 0.5 * wave(value.shape, i))
        elif value.dim() > 1:
            value.copy_(wave(value.shape, i) * (3 / value[0].numel()) ** 0.5)
        elif value.dim() == 1:
            norm_weight = key.endswith("weight")
            value.copy_(norm_weight + 0.3 * wave(value.shape, i))
    return model


def images(side: int = 48) -> torch.Tensor:
    """(2, 3, side, side)"""
    return wave(torch.Size((2, 3, side, side)), 0.5)


def numbers(model: nn.Module) -> dict[str, list[float]]:
    """Logits and gradients in train and in eval, and the running statistics after either."""
    fill_(model)
    found = {}
    for mode in ("train", "eval"):
        model.train(mode == "train").zero_grad()
        logits = model(images())
        (logits * wave(logits.shape, 0.25)).sum().backward()
        norms = torch.stack([p.grad.norm() for p in model.parameters()])
        found[f"{mode} logits"] = logits.flatten().tolist()
        # Some of many: the stem's, the last layers', and a place in each tenth of the others.
        found[f"{mode} gradients"] = norms[:: len(norms) // 12].tolist()
    buffers = [b.double().sum() for b in model.buffers()]
    found["buffers"] = torch.stack(buffers[:: len(buffers) // 12]).tolist()
    return found
