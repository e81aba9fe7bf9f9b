"""Which model of ours some weights are of, for a message about weights that do not fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spiritlevel.errors import UsageError
from spiritlevel.models.layouts import in_our_names

__all__ = ["looks_like"]

Shapes = Mapping[str, tuple[int, ...]]

_VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "ghostnet_": ({}, {"variant": "d-li14"}),
    "ghostnetv3_": ({"deployed": True, "placement": "per-branch"},),
    "ghost_resnet56": ({}, {"ghost_stem": True, "option_a": False}),
}
"""What a model whose name begins so may have been made with, where it has no branches."""
_MARKS = {
    "ghostnet_": "conv_stem",
    "ghostnetv": "short_conv",
    "resnet5": "layer1",
    "vgg16": "features",
}
"""What stands in a name of the weights of a model whose name has this: others are not built."""
_HEADS = ("classifier", "fc")
_STEMS = (
    "conv_stem.weight",
    "conv1.weight",
    "conv1.primary_conv.0.weight",
    "features.0.0.conv.weight",
    "stages.0.0.conv.weight",
    "conv.weight",
)
"""Where our models have their last linear layer and their first convolution."""
_MOST = 1_000_000
"""Classes or channels; a file that tells of more lies."""
_DEFAULTS = {
    "in_chans": 3,
    "norm": "batch",
    "stem": "imagenet",
    "s": 2,
    "d": 3,
    "placement": "per-branch",
}
"""Options that a message leaves out when they are these."""
_ENOUGH = 0.5
"""Of the weights' names, with their shapes: what a likeness must have to be told."""


def looks_like(
    state: Mapping[str, Any], own: Mapping[str, Any], metadata: Mapping[str, Any]
) -> str:
    """A sentence or two that say what `state` is of, and what to do.

    `own` is the `state_dict` of the model that it does not fit, `metadata` of `read_metadata`.
    """
    shapes, wanted = _told(in_our_names(state)), _told(own)
    if advice := _of_a_twin(shapes, wanted):
        return advice
    if made_as := metadata.get("model"):
        return f"It was saved from {_call(made_as)}. Make that model, or take another file"
    share, call = max(_likenesses(shapes), default=(0.0, ""))
    if share == 1:
        return f"It looks like the weights of {call}. Make that model, or take another file"
    if share > _ENOUGH:
        return (
            f"It looks most like the weights of {call}, whose names and shapes "
            f"{int(100 * share)} % of its are. Take the file of this very model"
        )
    return "It is like none of spiritlevel.list_models(). Take the file of this very model"


def _told(state: Mapping[str, Any]) -> Shapes:
    """The shapes by name; a 1x1 convolution's is a linear layer's."""
    shapes = {n: tuple(v.shape) for n, v in state.items() if isinstance(v, Tensor) and _tells(n)}
    return {n: s[:2] if len(s) == 4 and s[2:] == (1, 1) else s for n, s in shapes.items()}


def _tells(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _of_a_twin(shapes: Shapes, own: Shapes) -> str:
    """What to do where the file is of the same model, but for its head or its norms."""
    others = {n for n in shapes.keys() | own.keys() if shapes.get(n) != own.get(n)}
    heads = {name.rpartition(".")[0] for name in others}
    if len(heads) == 1 and all(name in shapes and name in own for name in others):
        head = heads.pop()
        if _last(own) == head:
            classes, ours = shapes[f"{head}.weight"][0], own[f"{head}.weight"][0]
            return (
                f"All but {head} fits: the file's has {classes} classes, the model's {ours}. Make "
                f"the model with num_classes={classes}, or keep its new head by new_head=True"
            )
    statistics = ("running_mean", "running_var")
    if others and all(name in shapes and name.endswith(statistics) for name in others):
        return (
            "The file is of the same model with batch normalization. Make it with norm='batch', "
            "load, and give it other norms by spiritlevel.convert"
        )
    return ""


def _last(shapes: Shapes) -> str:
    """The last linear layer's name, in each of our models."""
    return next((n for n in _HEADS if len(shapes.get(f"{n}.weight", ())) == 2), "")


def _likenesses(shapes: Shapes) -> Iterator[tuple[float, str]]:
    """For each model the share of names that are, shape and all, its own; and how it is made."""
    from spiritlevel.models.registry import list_models

    given = _given(shapes)
    branched = any("_rpr_" in name for name in shapes)
    for name in list_models("ghostnetv3_*" if branched else "*"):
        marks = [mark for part, mark in _MARKS.items() if part in name]
        if not all(any(mark in n for n in shapes) for mark in marks):
            continue
        variants = next((v for start, v in _VARIANTS.items() if name.startswith(start)), ({},))
        for options in ({},) if branched else variants:
            made_as = {"name": name, **given, **options}
            own = _shapes(tuple(made_as.items()))
            if own is None:
                continue
            same = sum(own.get(n) == shape for n, shape in shapes.items())
            # Names that the file lacks count as well: one model's may be a part of another's.
            yield same / len(shapes.keys() | own.keys()), _call(made_as)


@functools.cache
def _shapes(made_as: tuple[tuple[str, Any], ...]) -> Shapes | None:
    """Of the model that is made so; None where no model of this name takes these options."""
    from spiritlevel.models.registry import create_model

    try:
        with torch.device("meta"):
            state = create_model(**dict(made_as)).state_dict()
    except UsageError:
        return None
    return _told(state)


def _given(shapes: Shapes) -> dict[str, Any]:
    """What a model was made with, as far as the weights' shapes tell."""
    head = _last(shapes)
    classes = shapes[f"{head}.weight"][0] if head else 0
    stem = next((shapes[n] for n in _STEMS if len(shapes.get(n, ())) == 4), ())
    given: dict[str, Any] = {"num_classes": classes if 0 < classes <= _MOST else 1000}
    given["in_chans"] = stem[1] if stem and 0 < stem[1] <= _MOST else 3
    if not any(n.endswith("running_mean") for n in shapes):
        plain = any(n.endswith("weight") and len(s) == 1 for n, s in shapes.items())
        given["norm"] = "group:1" if plain else "none"  # how many groups, shapes do not tell
    cheap = next((n for n in shapes if n.endswith("cheap_operation.0.weight")), "")
    module = cheap.removesuffix("cheap_operation.0.weight")
    first, last = shapes.get(f"{module}primary_conv.0.weight"), shapes.get(cheap)
    if cheap and first and last and first[0]:
        each, joined = (f"{module}{n}.weight" in shapes for n in ("cheap_operation.1", "bn"))
        placements = {(1, 0): "per-branch", (0, 1): "post-concat", (1, 1): "both", (0, 0): "none"}
        given |= {"s": last[0] // first[0] + 1, "d": last[2] if len(last) == 4 else 1}
        if given.get("norm") != "none":
            given["placement"] = placements[each, joined]
    return given


def _call(made_as: Mapping[str, Any]) -> str:
    options = dict(made_as)
    name = options.pop("name", "?")
    for option, default in _DEFAULTS.items():
        if options.get(option) == default:
            del options[option]
    told = "".join(f", {option}={value!r}" for option, value in options.items())
    return f"create_model({name!r}{told})"
