"""A model beside its reference: which norms and weights are each other's, and what was done to it.

Folded, fused, recalibrated, averaged, trained further: what is right for one is wrong for another,
so the rules ask first which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.doctor.running import held, local, running
from spiritlevel.probe.compare import unwrapped
from spiritlevel.probe.layers import norm_places

__all__ = ["Against", "Pair", "kind", "moved"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Pair(NamedTuple):
    """A norm of the model, and that in its place in the reference."""

    path: str
    """In the model."""
    norm: nn.Module
    before: nn.Module


@dataclass(frozen=True)
class Against:
    model: nn.Module
    reference: nn.Module

    @cached_property
    def pairs(self) -> list[Pair]:
        """By path; where no path is in both, in order, if numbers and sizes agree."""
        (mine, prefix), theirs = _norms(self.model), _norms(self.reference)[0]
        common = [path for path in mine if path in theirs]
        if common:
            return [Pair(prefix + path, mine[path], theirs[path]) for path in common]
        found = list(zip(mine.items(), theirs.values(), strict=False))
        if len(mine) != len(theirs) or any(_size(a) != _size(b) for (_, a), b in found):
            return []
        return [Pair(prefix + path, norm, before) for (path, norm), before in found]

    @cached_property
    def gone(self) -> list[str]:
        """Norms of the reference in whose place the model has none."""
        paired = {id(pair.before) for pair in self.pairs}
        return [path for path, norm in _norms(self.reference)[0].items() if id(norm) not in paired]

    @cached_property
    def other_kinds(self) -> list[Pair]:
        """Norms that compute another thing than those in their place: batch for group and so on."""
        return [pair for pair in self.pairs if kind(pair.norm) != kind(pair.before)]

    @cached_property
    def weights(self) -> list[tuple[str, Tensor, Tensor]]:
        """Weights of both, by name or, where no name is in both, in order if all shapes agree."""
        mine, theirs = _weights(self.model), _weights(self.reference)
        names = [n for n in mine if n in theirs and mine[n].shape == theirs[n].shape]
        if not names and [t.shape for t in mine.values()] == [t.shape for t in theirs.values()]:
            return [(n, a, b) for (n, a), b in zip(mine.items(), theirs.values(), strict=True)]
        return [(name, mine[name], theirs[name]) for name in names]

    @cached_property
    def changed(self) -> list[str]:
        """Names of the weights that differ by more than the rounding to their types."""
        return [name for name, a, b in self.weights if moved(a, b)]

    @cached_property
    def distance(self) -> float:
        """Between the weights, of the norm of the reference's; infinite where they share none."""
        apart = sum(
            float((a.double().cpu() - b.double().cpu()).norm() ** 2) for _, a, b in self.weights
        )
        size = sum(float(b.double().norm() ** 2) for _, _, b in self.weights)
        return float((apart / size) ** 0.5) if size else float("inf")

    @property
    def other_weights(self) -> bool:
        """Trained further or averaged: the two are to give different outputs.

        Folding changes weights, too, but of no more layers than there are norms gone, and none of
        a norm that has stayed.
        """
        holders = {name.rpartition(".")[0] for name in self.changed}
        norms = set(_norms(self.model)[0])
        return bool(holders & norms) or len(holders) > len(self.gone)

    @cached_property
    def folded_and_kept(self) -> list[tuple[str, Pair]]:
        """Layers that have become what folding a norm makes of them, though the norm has stayed."""
        mine, theirs = (dict(unwrapped(m)[0].named_modules()) for m in (self.model, self.reference))
        layers = dict.fromkeys(name.rpartition(".")[0] for name in self.changed)
        return [
            (layer, pair)
            for pair in self.pairs
            if kind(pair.norm) == "batch norm" and pair not in self.other_statistics
            for layer in layers
            if layer in mine and layer in theirs and folds(theirs[layer], pair.before, mine[layer])
        ]

    @cached_property
    def other_statistics(self) -> list[Pair]:
        """Norms whose running statistics are not those of the norm in their place."""
        found = []
        for pair in self.pairs:
            mine, theirs = running(pair.norm), running(pair.before)
            both = mine is not None and theirs is not None
            if both and any(moved(a, b) for a, b in zip(mine or (), theirs or (), strict=True)):
                found.append(pair)
        return found


def kind(norm: nn.Module) -> str:
    """What it computes in eval, so that a frozen batch norm is a batch norm."""
    for base, called in (
        (nn.modules.instancenorm._InstanceNorm, "instance norm"),
        (nn.GroupNorm, "group norm"),
        (nn.LayerNorm, "layer norm"),
    ):
        if isinstance(norm, base):
            return called
    keeps = hasattr(norm, "running_mean") and hasattr(norm, "running_var")
    return "batch norm" if keeps else type(norm).__name__


def folds(before: nn.Module, norm: nn.Module, after: nn.Module) -> bool:
    """Whether `after` computes what `before` and the norm did, up to rounding."""
    statistics, was, now = running(norm), held(before, "weight"), held(after, "weight")
    if statistics is None or was is None or now is None or was.shape != now.shape:
        return False
    mean, var = statistics
    axis = int(isinstance(before, nn.modules.conv._ConvTransposeNd))
    if was.dim() < 2 or was.shape[axis] != len(mean):
        return False
    gamma, beta = held(norm, "weight"), held(norm, "bias")
    scale = (1.0 if gamma is None else gamma.double()) / (var + float(norm.eps)).sqrt()  # type: ignore[arg-type]
    expected = was.double().transpose(0, axis) * scale.view(-1, *[1] * (was.dim() - 1))
    bias_before, bias = held(before, "bias"), held(after, "bias")
    shift = (-mean if bias_before is None else bias_before.double() - mean) * scale
    shift = shift if beta is None else shift + beta.double()
    near = _near(now.double().transpose(0, axis), expected, now.dtype)
    return near and (bias is None or _near(bias.double(), shift, bias.dtype))


def _near(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return float((a - b).abs().max()) <= 64 * torch.finfo(dtype).eps * float(b.abs().max())


def moved(a: Tensor, b: Tensor) -> bool:
    """Whether they differ by more than a few last digits of the coarser type."""
    if a.shape != b.shape:
        return True
    digits = [torch.finfo(t.dtype).eps for t in (a, b) if t.is_floating_point()]
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    # running() has given float64 to what was float32, so float32's digit is the least that counts.
    digit = max(*digits, torch.finfo(torch.float32).eps) if digits else 0.0
    return not torch.allclose(a, b, rtol=4 * digit, atol=1e-12, equal_nan=True)


def _norms(model: nn.Module) -> tuple[dict[str, nn.Module], str]:
    """By path in the bare model, and what stands before that path in the model."""
    bare, prefix = unwrapped(model)
    modules = dict(bare.named_modules())
    return {path: modules[path] for path in norm_places(bare)}, prefix


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and frozen norms' weights, which are buffers."""
    bare, _ = unwrapped(model)
    named = dict(bare.named_parameters())
    for path, norm in _norms(model)[0].items():
        own = {name: t for name, t in norm._buffers.items() if name not in _STATISTICS}
        named.update({f"{path}.{name}": t for name, t in own.items() if t is not None})  # type: ignore[misc]
    return {
        name: local(t.detach())
        for name, t in named.items()
        if not is_lazy(t) and not t.is_meta and t.is_floating_point() and t.numel()
    }


def _size(norm: nn.Module) -> object:
    names = ("num_features", "num_channels", "normalized_shape")
    return next((getattr(norm, name) for name in names if hasattr(norm, name)), None)
