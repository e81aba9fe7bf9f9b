"""What a `.safetensors` says beside its numbers: the model, how it was trained, how it is fed."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spiritlevel.errors import UsageError
from spiritlevel.models.preprocessing import misfit

__all__ = ["metadata_of", "read_metadata"]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_weights` wrote beside the numbers.

    That is `spiritlevel`, `model`, `recipe` and `preprocessing`, without what is not there or is
    not as it writes it; empty for files of others. Raises UsageError for what is no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"got weights {path}, which are no safetensors ({error}); wanted a whole file"
        ) from error
    told = {}
    for name in ("spiritlevel", "model", "recipe", "preprocessing"):
        try:
            told[name] = json.loads(found[name])
        except (KeyError, ValueError, RecursionError):  # another program's, with a use of its own
            continue
    if not (isinstance(told.get("model"), dict) and isinstance(told["model"].get("name"), str)):
        told.pop("model", None)
    if misfit(told.get("preprocessing")):
        told.pop("preprocessing", None)
    return told


def metadata_of(model: nn.Module, beside: Mapping[str, Any]) -> dict[str, str]:
    """As a `.safetensors` holds it, JSON by name; `beside` has `recipe` and `preprocessing`.

    Raises UsageError for what JSON cannot hold.
    """
    from spiritlevel import __version__

    recipe = beside["recipe"]
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        recipe = dataclasses.asdict(recipe)
    told = {"spiritlevel": __version__, "model": _made_as(model), **beside, "recipe": recipe}
    try:
        return {"format": "pt"} | {
            name: json.dumps(value, allow_nan=False)
            for name, value in told.items()
            if value is not None
        }
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"got a recipe that JSON cannot hold ({error}); wanted a dataclass, or a dict of "
            "numbers, strings, lists and dicts"
        ) from error


def _made_as(model: nn.Module) -> dict[str, Any] | None:
    """What `create_model` made it with, unless it has become another since."""
    from spiritlevel.models.registry import create_model

    made_as = getattr(model, "made_as", None)
    if not isinstance(made_as, dict):
        return None
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        try:
            again = create_model(**made_as).state_dict()
        except (UsageError, TypeError):  # a norm of the user's has no name
            return None
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    return made_as if shapes == {name: value.shape for name, value in again.items()} else None
