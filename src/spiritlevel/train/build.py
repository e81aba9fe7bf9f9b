"""What a run is made of: a model, starting weights, groups of parameters, an optimizer, a loss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, init_he_, list_models
from spiritlevel.models.registry import model_options
from spiritlevel.probe import norm_places
from spiritlevel.train.recipe import Recipe

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from spiritlevel.data import Images
    from spiritlevel.train.config import Config

__all__ = ["init_", "loss", "model", "optimizer", "parameter_groups"]

_CHEAP = re.compile(r"(^|\.)cheap_(operation|rpr_)")
_Model = TypeVar("_Model", bound=nn.Module)


def model(config: Config, images: Images) -> nn.Module:
    """One of ours for these images, with the norm, the stem and the dropout that are asked for.

    Raises UsageError.
    """
    options: dict[str, Any] = {}
    takes = config.model in list_models() and "drop_rate" in model_options(config.model)
    if config.recipe.dropout or takes:
        options["drop_rate"] = config.recipe.dropout  # a GhostNet has some of its own
    if config.model in list_models() and "image_size" in model_options(config.model):
        options["image_size"] = images.size
    return create_model(
        config.model,
        len(images.classes),
        norm=config.norm,
        in_chans=images.channels,
        stem=config.stem_for(images.size),
        **options,
    )


def init_(model: _Model, recipe: Recipe) -> _Model:
    """Starting weights as the recipe has them: drawn anew with "he", left as they are by "torch".

    Returns the model.
    """
    return init_he_(model) if recipe.init == "he" else model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for any optimizer of torch: with `weight_decay`, and with none.

    None have the parameters of norms, biases and other vectors and scalars, and the kernels of the
    cheap operations of Ghost modules, as in the GhostNet paper's own code: depthwise convolutions
    in a `cheap_operation`, or `cheap_rpr_*`, as the published models call it. Strided depthwise
    convolutions and those of shortcuts and attention are decayed: that code's pattern spares the
    cheap kernels alone. A parameter in two places is decayed if neither spares it.

    Each `params` holds pairs of name and parameter; the optimizer keeps the names, in order, as
    `param_groups[i]["param_names"]`. Frozen parameters are left out. Raises UsageError where all
    are frozen.
    """
    spared = {id(p) for p in _spared(model)}
    decayed: list[tuple[str, nn.Parameter]] = []
    kept: list[tuple[str, nn.Parameter]] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (kept if id(p) in spared else decayed).append((name, p))
    if not decayed and not kept:
        raise UsageError(
            f"got {type(model).__name__}, of which no parameter learns; wanted one at least with "
            "requires_grad=True"
        )
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": kept})
    return [{"weight_decay": 0.0} | group for group in groups if group["params"]]


def _spared(model: nn.Module) -> list[nn.Parameter]:
    spared = [p for p in model.parameters() if p.dim() < 2]
    for name in norm_places(model):
        spared += model.get_submodule(name).parameters(recurse=False)
    for name, module in model.named_modules(remove_duplicate=False):
        cheap = isinstance(module, nn.Conv2d) and module.groups == module.in_channels
        if cheap and _CHEAP.search(name):
            spared += module.parameters()
    return spared


def optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's, on `parameter_groups`. The first in a process loads torch's compiler: 4 s.

    Raises UsageError.
    """
    from torch import optim

    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return optim.AdamW(groups, lr=recipe.lr, eps=recipe.eps)
    if recipe.optimizer == "rmsprop":
        from spiritlevel.train.rmsprop import RMSpropTF

        return RMSpropTF(groups, lr=recipe.lr, momentum=recipe.momentum, eps=recipe.eps)
    return optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def loss(recipe: Recipe) -> nn.CrossEntropyLoss:
    """Mean cross-entropy in nats, of logits (N, C) and classes (N,) or probabilities (N, C)."""
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
