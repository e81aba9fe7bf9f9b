"""Weights from a file or the Hugging Face hub into a model, and into a file.

Files are `.safetensors`, or what `torch.save` made of a `state_dict`. Nothing of a file's ever
runs: pickles are read with `weights_only=True`. A model gets all of a file's numbers or none.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.files import write_whole
from spiritlevel.models.hub import fetched
from spiritlevel.models.layouts import translated
from spiritlevel.models.resemblance import looks_like

__all__ = ["load_weights", "read_metadata", "refuse_suffix", "save_weights"]

_PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_WRAPPED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Which DataParallel, torch.compile and Lightning put before each name."""
_COUNTERS = ("total_ops", "total_params")
"""Which counters of operations leave in published files; no layer's own."""
_MOST = 5
"""Names that a message lists."""


def load_weights(
    model: nn.Module,
    weights: str | os.PathLike[str],
    *,
    new_head: bool = False,
    device: str | torch.device = "cpu",
) -> None:
    """Give the model a file's parameters and buffers, or those that `hf:OWNER/NAME` stands for.

    Prefixes and wrappers (`module.`, `{"state_dict": ...}`) are taken off, and names of other code
    for the same models translated: those of `layouts`. With `new_head` the last linear layer keeps
    the values it has. `device` is where the file is read to. Raises UsageError, which says what of
    the file does not fit and what it looks like instead, and MissingExtra; the model is unchanged.
    """
    path = fetched(str(weights)) if str(weights).startswith("hf:") else Path(weights)
    own = model.state_dict()
    told = _read(path, str(device))
    state = translated(_unwrapped(path, told, own), own)
    if new_head:
        head = _head(model)
        state |= {name: own[name] for name in own if name.startswith(f"{head}.")}
    _refuse_misfit(model, own, state, path, weights)
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


def _refuse_misfit(
    model: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    path: Path,
    weights: str | os.PathLike[str],
) -> None:
    # Files from before torch 0.4.1 have no counters, frozen norms take none, and neither needs any.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = {"lacks": missing, "has beside": unexpected, "has in another shape": shapes}
    told = "; it ".join(f"{how} {_listed(names)}" for how, names in wrong.items() if names)
    if told:
        raise UsageError(
            f"got weights {weights} that do not fit {type(model).__name__}: it {told}; wanted a "
            f"name for each of the model's. {looks_like(state, own, read_metadata(path))}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def refuse_suffix(path: Path) -> None:
    """Raises UsageError for a file that neither holds nor could hold weights."""
    if path.suffix not in (".safetensors", *_PICKLES):
        wanted = ", ".join((".safetensors", *_PICKLES))
        raise UsageError(f"got {path} for weights; wanted a name that ends in one of: {wanted}")


def _read(path: Path, device: str) -> Any:
    refuse_suffix(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device)
        return _read_pickle(path, device)
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while reading weights {path}; wanted a file. Check "
            "the path"
        ) from error


def _read_pickle(path: Path, device: str) -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle raises whatever it likes
        first = str(error).partition("\n")[0][:200]
        raise UsageError(
            f"got weights {path}, which cannot be read ({first}); wanted the state_dict of a "
            "model, saved by torch.save: other pickles may run code, so they are not loaded"
        ) from error


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        read = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"got weights {path}, which are no safetensors ({error}); wanted a whole file. Save "
            "it anew"
        ) from error
    return {name: value.to(device) for name, value in read.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_weights` wrote beside the numbers: `spiritlevel`, `model` and `recipe`.

    Without what is not there; empty for files of others. Raises UsageError for what is no
    safetensors.
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
    for name in ("spiritlevel", "model", "recipe"):
        try:
            told[name] = json.loads(found[name])
        except (KeyError, ValueError):  # of another program's, which has its own use for the name
            continue
    return told


def _unwrapped(path: Path, told: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, unless the model's own names begin so."""
    while isinstance(told, Mapping) and not _is_state(told):
        inner = next((told[key] for key in _WRAPPED if isinstance(told.get(key), Mapping)), None)
        if inner is None:
            break
        told = inner
    if not isinstance(told, Mapping) or not _is_state(told):
        keys = f" of {_listed(list(map(str, told)))}" if isinstance(told, Mapping) else ""
        raise UsageError(
            f"got weights {path} that hold a {type(told).__name__}{keys}; wanted a state_dict, "
            f"tensors by name, by itself or under one of: {', '.join(_WRAPPED)}"
        )
    state = {name: value for name, value in told.items() if name.split(".")[-1] not in _COUNTERS}
    for prefix in _PREFIXES * 2:
        theirs = any(name.startswith(prefix) for name in names)
        if not theirs and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(told: Mapping[Any, Any]) -> bool:
    return bool(told) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in told.items()
    )


def save_weights(model: nn.Module, path: str | os.PathLike[str], *, recipe: Any = None) -> None:
    """The `state_dict` into a `.safetensors` or `.pth`, whole or not at all.

    A `.safetensors` also says which model of `create_model` it is, with which options, and holds
    `recipe`, a dataclass or what JSON can hold: `read_metadata` reads both. Raises UsageError.
    """
    path = Path(path)
    refuse_suffix(path)
    state = model.state_dict()
    if path.suffix != ".safetensors":
        if recipe is not None:
            raise UsageError(
                f"got a recipe to be kept in {path}; wanted a name that ends in .safetensors, "
                "which has room for one"
            )
        content = io.BytesIO()
        torch.save({name: _detached(value) for name, value in state.items()}, content)
        write_whole(path, content.getvalue())
    else:
        write_whole(path, _safetensors(state, path, _metadata(model, recipe)))


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _safetensors(state: Mapping[str, Any], path: Path, metadata: dict[str, str]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.torch import save

    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UsageError(
            f"got {path} for weights that hold more than tensors ({_listed(others)}); wanted a "
            "name that ends in .pth"
        )
    # Each has memory of its own there: names that share a tensor are two in the file.
    copies = {name: _detached(value).clone().contiguous() for name, value in state.items()}
    try:
        return bytes(save(copies, metadata))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"got weights that a .safetensors does not hold ({error}); wanted dense numbers. "
            "Take a name that ends in .pth"
        ) from error


def _metadata(model: nn.Module, recipe: Any) -> dict[str, str]:
    from spiritlevel import __version__

    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        recipe = dataclasses.asdict(recipe)
    told = {"spiritlevel": __version__, "model": getattr(model, "made_as", None), "recipe": recipe}
    try:
        return {"format": "pt"} | {
            name: json.dumps(value) for name, value in told.items() if value is not None
        }
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"got a recipe that JSON cannot hold ({error}); wanted a dataclass, or a dict of "
            "numbers, strings, lists and dicts"
        ) from error
