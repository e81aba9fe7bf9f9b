"""Weights from a file or the Hugging Face hub into a model, and into a file.

Files are `.safetensors`, or what `torch.save` made of a `state_dict`. Nothing of a file's ever
runs: pickles are read with `weights_only=True`. A model gets all of a file's numbers or none.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import stat
import warnings
from collections.abc import Collection, Mapping
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

__all__ = ["load_weights", "read_metadata", "refuse_suffix", "save_weights"]

_PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_WRAPPED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Which DataParallel, torch.compile and Lightning put before each name."""
_COUNTERS = ("total_ops", "total_params")
"""Which counters of operations leave in published files; no layer's own."""
_MOST = 5
"""Names that a message lists."""
_LONGEST = 100
"""Characters of one."""


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
    found = _unwrapped(path, _read(path), own)
    state = translated(found, own)
    if new_head:
        head = _head(model)
        state |= {name: own[name] for name in own if name.startswith(f"{head}.")}
    misfit = _misfit(own, state)
    if misfit:
        raise UsageError(
            f"got weights {weights} that do not fit {type(model).__name__}: it {misfit}; wanted a "
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
    return "; it ".join(f"{how} {_listed(names)}" for how, names in wrong.items() if names)


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


def shown(name: str) -> str:
    """A name of a file's for a message: one line of what can be printed, and not too long."""
    told = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def refuse_suffix(path: Path) -> None:
    """Raises UsageError for a file that neither holds nor could hold weights."""
    if path.suffix not in (".safetensors", *_PICKLES):
        wanted = ", ".join((".safetensors", *_PICKLES))
        raise UsageError(f"got {path} for weights; wanted a name that ends in one of: {wanted}")


def _read(path: Path) -> Any:
    refuse_suffix(path)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        if not regular:
            raise UsageError(f"got weights {path}, which is no regular file; wanted one")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while reading weights {path}; wanted a file. Check "
            "the path"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle raises whatever it likes
        # torch's own message proposes to run it.
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = "it is empty" if not path.stat().st_size else "torch.save did not write it so"
        why = f"it holds {held[1]}, which is no tensor" if held else why
        raise UsageError(
            f"got weights {path}, which cannot be read ({why}); wanted the state_dict of a "
            "model alone, saved by torch.save: other pickles may run code, so they are not loaded"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(path.read_bytes()).items()))  # they come in any order
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"got weights {path}, which are no safetensors ({error}); wanted a whole file. Save "
            "it anew"
        ) from error


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


def _unwrapped(path: Path, told: Any, names: Collection[str]) -> dict[str, Any]:
    """Without the prefixes of wrappers, unless the model's own names begin so."""
    for _ in _WRAPPED:
        if not isinstance(told, Mapping) or _is_state(told):
            break
        inner = next((told[key] for key in _WRAPPED if isinstance(told.get(key), Mapping)), told)
        told = inner
    if not isinstance(told, Mapping) or not _is_state(told):
        keys = f" of {_listed([shown(str(key)) for key in told])}" if told else ""
        keys = keys if isinstance(told, Mapping) else ""
        raise UsageError(
            f"got weights {path} that hold a {type(told).__name__}{keys}; wanted a state_dict, "
            f"tensors by name, by itself or under one of: {', '.join(_WRAPPED)}"
        )
    state = {name: v for name, v in told.items() if name.split(".")[-1] not in _COUNTERS}
    for prefix in _PREFIXES * 2:
        theirs = any(name.startswith(prefix) for name in names)
        if not theirs and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(told: Mapping[Any, Any]) -> bool:
    return bool(told) and all(
        isinstance(name, str) and (isinstance(value, Tensor) or name.endswith("_extra_state"))
        for name, value in told.items()
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
        write_whole(path, _safetensors(state, path, _metadata(model, beside)))


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _safetensors(state: Mapping[str, Any], path: Path, metadata: dict[str, str]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.torch import save

    others = [shown(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UsageError(
            f"got {path} for weights that hold more than tensors ({_listed(others)}); wanted a "
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


def _metadata(model: nn.Module, beside: Mapping[str, Any]) -> dict[str, str]:
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
