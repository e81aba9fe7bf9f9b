"""Weights from a file or the Hugging Face hub into a model, and into a file.

A model gets all of a file's numbers or none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.files import write_whole
from spiritlevel.models.hub import fetched
from spiritlevel.models.layouts import translated
from spiritlevel.models.preprocessing import misfit
from spiritlevel.models.resemblance import looks_like
from spiritlevel.models.state_files import listed, read_state, refuse_suffix, shown
from spiritlevel.models.weight_metadata import metadata_of, read_metadata

__all__ = ["load_weights", "read_metadata", "refuse_suffix", "save_weights"]


def load_weights(
    model: nn.Module, weights: str | os.PathLike[str], *, new_head: bool = False
) -> None:
    """Give the model a file's parameters and buffers, or those that `hf:OWNER/NAME` stands for.

    Prefixes and wrappers (`module.`, `{"state_dict": ...}`) are taken off, and names of other code
    for the same models translated: those of `layouts`. With `new_head` the last linear layer keeps
    the values it has. Raises UsageError, which says what of the file does not fit and what it looks
    like instead, and MissingExtra; the model is then unchanged.
    """
    path = fetched(str(weights)) if str(weights).startswith("hf:") else Path(weights)
    own = model.state_dict()
    found = read_state(path, own)
    state = translated(found, own)
    if new_head:
        head = _head(model)
        state |= {name: own[name] for name in own if name.startswith(f"{head}.")}
    if wrong := _misfit(own, state):
        raise UsageError(
            f"got weights {weights} that do not fit {type(model).__name__}: it {wrong}; wanted a "
            f"name for each of the model's. {looks_like(found, own, read_metadata(path))}"
        )
    _refuse_values(model, own, state, weights)
    model.load_state_dict({name: value for name, value in state.items() if name in own}, False)


def _head(model: nn.Module) -> str:
    """The name of the last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(
            f"got new_head=True for {type(model).__name__}, which has no linear layer; wanted a "
            "model that ends in one. Leave new_head out"
        )
    return str(linear[-1])


def _misfit(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Which names are missing, too many or of another shape; empty where all fit."""
    # Files from before torch 0.4.1 have no counters, frozen norms take none, and neither needs any.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    shapes = [
        f"{shown(name)} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if isinstance(own[name], Tensor)
        and isinstance(state.get(name), Tensor)
        and state[name].shape != own[name].shape
    ]
    wrong = {
        "lacks": [shown(name) for name in missing],
        "has beside": [shown(name) for name in sorted(unexpected)],
        "has in another shape": shapes,
    }
    return "; it ".join(f"{how} {listed(names)}" for how, names in wrong.items() if names)


def _refuse_values(
    model: nn.Module,
    own: Mapping[str, Any],
    state: Mapping[str, Any],
    weights: str | os.PathLike[str],
) -> None:
    """Raises UsageError for what torch would copy in part, wrongly or not at all."""
    for name, value in state.items():
        mine = own.get(name)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor):
            continue
        if mine.is_meta:
            raise UsageError(
                f"got {type(model).__name__} on the device meta, where there is no memory for "
                "weights; wanted a model elsewhere. Make it anew, or call to_empty first"
            )
        dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        alike = value.is_complex() == mine.is_complex() and (
            value.is_floating_point() or not mine.is_floating_point()
        )
        if not dense or not alike:
            kind = "" if dense else "quantized " if value.is_quantized else f"{value.layout} "
            raise UsageError(
                f"got weights {weights} whose {shown(name)} is {kind}{value.dtype} on "
                f"{value.device}; wanted dense numbers as the model's {mine.dtype}. Save the model "
                "without quantization, on the cpu"
            )


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    recipe: Any = None,
    preprocessing: dict[str, Any] | None = None,
) -> None:
    """The `state_dict` into a `.safetensors` or `.pth`, whole or not at all.

    A `.safetensors` also says which model of `create_model` it is, with which options, and holds
    `recipe`, a dataclass or what JSON can hold, and `preprocessing`, the dict that
    `models.preprocessing` describes: `read_metadata` reads all. Raises UsageError.
    """
    path = Path(path)
    refuse_suffix(path)
    state = model.state_dict()
    beside = {"recipe": recipe, "preprocessing": preprocessing}
    if path.suffix != ".safetensors":
        kept = [name for name, value in beside.items() if value is not None]
        if kept:
            raise UsageError(
                f"got a {kept[0]} to be kept in {path}; wanted a name that ends in .safetensors, "
                "which has room for one"
            )
        content = io.BytesIO()
        torch.save({name: _detached(value) for name, value in state.items()}, content)
        write_whole(path, content.getvalue())
    else:
        if preprocessing is not None and (wrong := misfit(preprocessing)):
            raise UsageError(
                f"got preprocessing whose {wrong}. Take Preprocessing.of(...).to_dict()"
            )
        write_whole(path, _safetensors(state, path, metadata_of(model, beside)))


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _safetensors(state: Mapping[str, Any], path: Path, metadata: dict[str, str]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.torch import save

    others = [shown(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UsageError(
            f"got {path} for weights that hold more than tensors ({listed(others)}); wanted a "
            "name that ends in .pth"
        )
    # Each has memory of its own there: names that share a tensor are two in the file.
    try:
        copies = {name: _detached(value).clone().contiguous() for name, value in state.items()}
        return bytes(save(copies, metadata))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:  # meta: of the third
        raise UsageError(
            f"got weights that a .safetensors does not hold ({error}); wanted dense numbers. "
            "Take a name that ends in .pth"
        ) from error
