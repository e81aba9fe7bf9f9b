"""Small float64 networks, and their forward passes once more, operation by operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.models import create_model

NORMS = ["none", "batch"]


def double(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def make(name: str, norm: str, seed: int = 0, **options: object) -> nn.Module:
    """A model whose norms have moved from where they start, in training mode."""
    torch.manual_seed(seed)
    sizes = {"width": 5, "depth": 2, "image_size": 4} if name == "mlp" else {"widths": (3, 4)}
    if name == "small_vgg":
        sizes["convs_per_stage"] = 1
    model = create_model(name, 3, norm, in_chans=1, **{**sizes, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    for batch in double(3, 8, 1, 4, 4, seed=seed):
        model(batch * 2 + 1)
    return model


def images(n: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    return double(n, 1, 4, 4, seed=seed), torch.arange(n) % 3


def forward(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The input of each weight layer by name, and the logits, of what `make` made."""
    inputs: dict[str, Tensor] = {}
    if hasattr(model, "hidden"):
        x = x.flatten(1)
        for i, layer in enumerate(model.hidden):
            inputs[f"hidden.{i}.linear"] = x
            z = x @ layer.linear.weight.T + layer.linear.bias
            x = normalise(z, layer.norm).clamp(min=0)
    else:
        for i, (layer,) in enumerate(model.stages):
            inputs[f"stages.{i}.0.conv"] = x
            z = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
            x = F.max_pool2d(normalise(z, layer.norm).clamp(min=0), 2)
        x = x.mean((2, 3))
    inputs["classifier"] = x
    return inputs, x @ model.classifier.weight.T + model.classifier.bias


def normalise(z: Tensor, norm: nn.Module) -> Tensor:
    """Batch normalization as the paper's algorithms 1 and 2 write it, channels last meanwhile."""
    if isinstance(norm, nn.Identity):
        return z
    z = z.movedim(1, -1)
    values = z.reshape(-1, z.shape[-1])
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean = values.sum(0) / len(values)
        variance = ((values - mean) ** 2).sum(0) / len(values)
    y = (z - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias
    return y.movedim(-1, 1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The mean over samples of -log of the probability that was given to the right class."""
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -sum(p[c].log() for p, c in zip(probabilities, y, strict=True)) / len(y)
