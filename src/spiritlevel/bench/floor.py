"""The floor: how long it takes to move the bytes that must move, at the rate of a copy.

A pass reads or writes one tensor of the input's size once. A copy is 2. What must move, where a
tensor does not stay in cache between two passes:

| | forward | backward | eval |
|---|---|---|---|
| act(bn(x)) | 3 | 5 | 2 |
| act(bn(x) + residual) | 4 | 7 | 3 |
| bn(x) + residual | 4 | 5 | 3 |

Forward: x for the statistics; x, and the residual, for y; y is written. Backward: x and the
gradient for the sums; both again for the gradient of x, which is written. With a residual under an
activation: y (or the residual) for the activation's slope, and the residual's gradient, which is
written once and takes the incoming gradient's place in the second half; without an activation it is
the incoming gradient itself. Eval takes its statistics from the layer.

The copy is of a tensor of the same size, in the same rounds. Where tensors stay in cache a layer
can be faster than this floor: its second pass over x need not reach memory.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["COPY", "last_level_cache", "passes"]

COPY = 2
"""Passes of a copy."""


def passes(mode: str, act: str, add: bool) -> int:
    """How many tensors of the input's size must move; `mode` is one of `norms.MODES`."""
    forward, backward = 3 + add, 5 + 2 * (add and act != "identity")
    return {"forward": forward, "forward+backward": forward + backward, "eval": 2 + add}[mode]


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Its bytes, shared by whichever cores share it; None where the system does not say."""
    sizes = []
    for index in sorted(root.glob("index*")):
        try:
            level, size = (index / "level").read_text(), (index / "size").read_text()
        except OSError:
            continue
        found = re.fullmatch(r"(\d+)([KMG]?)", size.strip())
        if found and level.strip().isdecimal():
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
            sizes.append((int(level), int(found[1]) * scale))
    return max(sizes)[1] if sizes else None
