"""The numbers that the probe reads of a layer, by name, and how a step's become a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["COLUMN", "LOGGED", "METRICS", "as_table"]

METRICS = (
    *(
        f"{end}_{what}"
        for end in ("input", "output")
        for what in ("mean", "var", "p05", "p50", "p95")
    ),
    "values",
    "z_median",
    "z_max",
    "log_var_ratio_median",
    "log_var_ratio_worst",
    "pass_shift",
    *(f"{name}_{what}" for name in ("gamma", "beta") for what in ("min", "mean", "max")),
    "grad_norm",
    "update_ratio",
    "dead_share",
    "saturated_share",
    "non_finite",
    "batches_tracked",
)
"""The columns of `Probe.readings`, beside step, layer, kind and type."""
COLUMN = {metric: column for column, metric in enumerate(METRICS)}
LOGGED = ("z_median", "log_var_ratio_median", "grad_norm", "update_ratio", "dead_share")
"""Those that go to TensorBoard."""


def as_table(rows: list[dict[str, Tensor]]) -> Any:
    """(layers, metrics) float64; each device is asked once."""
    table = np.full((len(rows), len(METRICS)), np.nan)
    by_device: dict[Any, list[tuple[int, int, Tensor]]] = {}
    for i, row in enumerate(rows):
        for name, value in row.items():
            by_device.setdefault(value.device, []).append((i, COLUMN[name], value))
    for cells in by_device.values():
        numbers = torch.stack([value for _, _, value in cells]).tolist()
        for (i, j, _), number in zip(cells, numbers, strict=True):
            table[i, j] = number
    return table
