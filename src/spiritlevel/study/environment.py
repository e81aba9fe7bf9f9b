"""What a run ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from spiritlevel import __version__

__all__ = ["describe"]


def describe(*, jobs: int, threads: int) -> dict[str, str]:
    """Name -> value, for `environment.json` and the page."""
    return {
        "spiritlevel": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "workers": str(jobs),
        "threads a cell": str(threads),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
