"""The `state_dict` in a file: a `.safetensors`, or what `torch.save` made of it.

Files are anyone's, and nothing of one ever runs: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spiritlevel.errors import UsageError

__all__ = ["listed", "read_state", "refuse_suffix", "shown"]

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


def read_state(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The tensors of a file by name, without wrappers, their prefixes and counters' marks.

    `names` are those of the model's own `state_dict`: a prefix that they have stays. Raises
    UsageError.
    """
    return _unwrapped(path, _read(path), names)


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


def _unwrapped(path: Path, told: Any, names: Collection[str]) -> dict[str, Any]:
    """Without the prefixes of wrappers, unless the model's own names begin so."""
    for _ in _WRAPPED:
        if not isinstance(told, Mapping) or _is_state(told):
            break
        inner = next((told[key] for key in _WRAPPED if isinstance(told.get(key), Mapping)), told)
        told = inner
    if not isinstance(told, Mapping) or not _is_state(told):
        keys = f" of {listed([shown(str(key)) for key in told])}" if told else ""
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


def shown(name: str) -> str:
    """A name of a file's for a message: one line of what can be printed, and not too long."""
    told = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def listed(names: list[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
