"""Weights from a file and into one: `.safetensors`, or what `torch.save` made of a `state_dict`.

Nothing of a file's ever runs: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_into", "refuse_suffix", "save_weights"]

_PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_WRAPPED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
"""Which DataParallel and torch.compile put before each name."""
_MOST = 5
"""Names that a message lists."""


def load_into(model: nn.Module, path: Path, device: str) -> None:
    """Give the model the file's weights and buffers. Raises UsageError."""
    own = model.state_dict()
    state = _state(path, device, own)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    # Files from before torch 0.4.1 have no counters, and torch does without them.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = {"lacks": missing, "has beside": unexpected, "has in another shape": shapes}
    told = "; it ".join(f"{how} {_listed(names)}" for how, names in wrong.items() if names)
    if told:
        raise UsageError(
            f"got weights {path} that do not fit {type(model).__name__}: it {told}; wanted a name "
            "for each of the model's. Take the file of this very model"
        )
    model.load_state_dict(state, strict=False)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _state(path: Path, device: str, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors by name, without wrappers and prefixes."""
    refuse_suffix(path)
    try:
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        told = read(path, device)
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while reading weights {path}; wanted a file. Check "
            "the path"
        ) from error
    return _unwrapped(path, told, names)


def refuse_suffix(path: Path) -> None:
    """Raises UsageError for a file that neither holds nor could hold weights."""
    if path.suffix not in (".safetensors", *_PICKLES):
        wanted = ", ".join((".safetensors", *_PICKLES))
        raise UsageError(f"got {path} for weights; wanted a name that ends in one of: {wanted}")


def _read_pickle(path: Path, device: str) -> Any:
    import torch

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


_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    """Eight bytes of the header's length, the header as JSON, the numbers."""
    import torch

    content = bytearray(path.read_bytes())
    try:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        header.pop("__metadata__", None)
        found, reached = {}, 0
        for name, entry in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
            dtype, shape = getattr(torch, _TYPES[entry["dtype"]]), entry["shape"]
            start, stop = entry["data_offsets"]
            size = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or not 0 <= start <= stop <= len(content) - end:
                raise ValueError(f"{name} lies outside the file")
            if stop - start != size or start < reached:
                raise ValueError(f"{name} has {stop - start} bytes, or bytes of another")
            reached = stop
            part = content[end + start : end + stop]
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)
            found[name] = flat.view(shape).clone().to(device)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"got weights {path}, which are no safetensors ({error}); wanted a whole file. Save "
            "it anew"
        ) from error
    return found


def _unwrapped(path: Path, told: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, unless the model's own names begin so."""
    from torch import Tensor

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
    state = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES * 2:
        theirs = any(name.startswith(prefix) for name in names)
        if not theirs and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(told: Mapping[Any, Any]) -> bool:
    from torch import Tensor

    return bool(told) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in told.items()
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """The `state_dict`, whole or not at all. Raises UsageError."""
    import torch

    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {
        name: value.detach().cpu() if isinstance(value, torch.Tensor) else value
        for name, value in model.state_dict().items()
    }
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others and path.suffix == ".safetensors":
        raise UsageError(
            f"got {path} for weights that hold more than tensors ({_listed(others)}); wanted a "
            "name that ends in .pth"
        )
    try:
        if path.suffix == ".safetensors":
            _write_safetensors(state, draft)
        else:
            torch.save(state, draft)
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while writing {path}; wanted a folder that is there "
            "and has room. Make it, or choose another --fix-out"
        ) from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)


def _write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    import torch

    names = {getattr(torch, dtype): name for name, dtype in _TYPES.items()}
    header: dict[str, Any] = {}
    parts, start = [], 0
    for name, value in state.items():
        if value.dtype not in names:
            raise UsageError(
                f"got {name} of {value.dtype}, which a .safetensors does not hold here; wanted "
                "another --fix-out, as fixed.pth"
            )
        part = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, start + len(part)],
        }
        parts.append(part)
        start += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))
