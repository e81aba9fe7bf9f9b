"""What torch's own functions and `spiritlevel.fold` make of the same small models, in words.

"right": the outputs are the original's, on an input that none of them has seen, within `TOLERANCE`
of the largest value in float64. "left": they are, and the batch norm is still there.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fold_cases import AHEAD, CONVS, RIGHT, STAYS, lived, net
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import spiritlevel as sl
from spiritlevel.surgery.in_eval import is_norm

__all__ = ["rows"]

TOLERANCE = 1e-9
FORGOTTEN = "`transpose=True` forgotten"


def rows() -> Iterator[tuple[str, ...]]:
    """The case; torch's function for a pair, torch.fx's pass over a model, and ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own import
        from torch.fx.experimental.optimization import fuse

        for name, model, shape in _models():
            model, x = model.double().eval(), torch.randn(shape, dtype=torch.float64)
            other = torch.randn(3, *shape[1:], dtype=torch.float64)
            yield (
                name,
                _told(_by_torch(name), model, x, other),
                _told(lambda m, _: fuse(m), model, x, other),
                _told(sl.fold, model, x, other),
            )


def _models() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    for cases in (CONVS, AHEAD):
        for name, (first, second, shape) in cases.items():
            torch.manual_seed(0)
            pair = nn.Sequential(copy.deepcopy(first), copy.deepcopy(second))
            where = "norm -> layer" if cases is AHEAD else "layer -> norm"
            yield f"{where}: {name}", lived(pair), shape
            if name == "transposed, square":
                yield f"{where}: {name}, {FORGOTTEN}", pair, shape
    for cases in (RIGHT, STAYS):
        for name, (layers, shape, *_) in cases.items():
            yield name, net(name, layers), shape


def _by_torch(name: str) -> Callable[..., Any]:
    """torch's function on a layer and the norm that somebody takes for its norm."""

    def change(model: nn.Module, _example: Tensor) -> nn.Module | None:
        names = [path for path, _ in model.named_children()]
        if len(names) != 2 or is_norm(model.get_submodule(names[0])):
            return None
        layer, norm = (model.get_submodule(path) for path in names)
        if isinstance(layer, nn.Linear):
            made = fuse_linear_bn_eval(layer, norm)
        else:
            transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            made = fuse_conv_bn_eval(layer, norm, transpose=transposed and FORGOTTEN not in name)
        model.register_module(names[0], made)
        model.register_module(names[1], nn.Identity())
        return model

    return change


def _told(change: Callable[..., Any], model: nn.Module, x: Tensor, other: Tensor) -> str:
    expected = model(other)
    try:
        changed = change(copy.deepcopy(model), x)
        if changed is None:
            return "–"
        y = changed(other)
    except Exception as error:
        return f"raises {type(error).__name__}"
    alike = y.shape == expected.shape
    if not alike or (y - expected).abs().max() > TOLERANCE * expected.abs().max():
        return "**wrong**"
    functions = "batch_norm" in str(getattr(changed, "code", ""))
    stays = functions or any(is_norm(module) for module in changed.modules())
    return "left" if stays else "right"
