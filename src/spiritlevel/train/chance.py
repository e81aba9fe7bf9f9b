"""The random states of a process, in what a file that runs nothing can hold."""

from __future__ import annotations

from typing import Any

import torch

from spiritlevel.lent.state import random_states, set_random_states

__all__ = ["chance", "set_chance"]


def chance(device: torch.device) -> dict[str, Any]:
    """Those of Python, NumPy and torch, on the CPU and on `device`."""
    python, numpy = random_states()
    kind, keys, *rest = numpy
    return {
        "python": python,
        "numpy": [kind, torch.from_numpy(keys.astype("int64")), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_chance(state: dict[str, Any], device: torch.device) -> None:
    """Put those that `chance` gave back."""
    version, words, gauss = state["python"]
    kind, keys, *rest = state["numpy"]
    numpy = kind, keys.numpy().astype("uint32"), *rest
    set_random_states(((version, tuple(words), gauss), numpy))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
