"""What a run ran on, and what a report of a fault needs: nothing that says who or where."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from spiritlevel import __version__
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend, tune_allocator

__all__ = ["describe", "gather", "processor", "usable_cores"]


def describe(*, jobs: int, threads: int, kernels: str) -> dict[str, str]:
    """Name -> value, for `environment.json` and the page."""
    return {
        "spiritlevel": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "workers": str(jobs),
        "threads a cell": str(threads),
        "kernels": kernels,
    }


def gather() -> dict[str, Any]:
    """All that may decide how fast something runs, or whether it does; for JSON.

    It tunes this process's allocator, as a study does, to see whether that takes effect.
    """
    return {
        "versions": _versions(),
        "system": _system(),
        "threads": _threads(),
        "kernels": _kernels(),
        "allocator": _allocator(),
        "accelerators": _accelerators(),
        "extras": dict(_extras()),
    }


def _versions() -> dict[str, str]:
    found = {"spiritlevel": __version__}
    found["python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    for package in ("torch", "numpy", *_LIBRARIES):
        if (version := _version(package)) is not None:
            found[package] = version
    return found


_LIBRARIES = ("numba", "scipy", "scikit-learn", "joblib", "plotly", "jinja2", "pillow", "datasets")


def _system() -> dict[str, Any]:
    memory, free = _memory()
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": memory,
        "free_gib": free,
    }


def processor() -> str:
    """Its name, as its system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def usable_cores() -> int:
    """Those this process may run on: a container or `taskset` can leave it fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[float | None, float | None]:
    """GiB in all, and free for a new process; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None, None
    return _gib(r"MemTotal:\s+(\d+) kB", text), _gib(r"MemAvailable:\s+(\d+) kB", text)


def _gib(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    return round(int(found[1]) / 2**20, 1) if found else None


def _threads() -> dict[str, Any]:
    info = torch.__config__.parallel_info()
    pool = re.search(r"ATen parallel backend: (.+)", info)
    mkl = re.search(r"Math Kernel Library Version (\S+?)-", info)
    onednn = re.search(r"MKL-DNN v(\S+)", info)
    return {
        "intra_op": torch.get_num_threads(),
        "inter_op": torch.get_num_interop_threads(),
        "pool": pool[1].strip() if pool else "unknown",
        "mkl": mkl[1] if mkl else None,
        "onednn": onednn[1] if onednn else None,
        "numba": _numba_layer(),
        "variables": _set("OMP_", "MKL_", "KMP_", "GOMP_", "NUMBA_"),
    }


def _numba_layer() -> str | None:
    """The threading layer that numba launches, by its own word; None where it is not installed.

    Why none can be launched, where none can.
    """
    try:
        numba: Any = importlib.import_module("numba")
        importlib.import_module("numba.np.ufunc.parallel")._launch_threads()
        return str(numba.threading_layer())
    except ImportError:
        return None
    except (ValueError, AttributeError) as error:  # the latter: a numba that launches otherwise
        return " ".join(str(error).split())


def _set(*prefixes: str) -> dict[str, str]:
    """Environment variables that begin so. A value with a path in it is named, not shown."""
    return {
        name: "..." if os.sep in value else value
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
    }


def _kernels() -> dict[str, str | None]:
    """What is asked for, what of it runs (None where that is refused, and why), and the oracle."""
    found: dict[str, str | None] = {"asked": os.environ.get(backend.VARIABLE) or "auto"}
    found |= {"numba": _version("numba"), "triton": _version("triton")}
    found |= {"backend": None, "oracle": "reference"}
    try:
        asked = backend.asked()
        found |= {"asked": asked, "backend": asked}
        if asked == "auto":
            found["backend"] = "aten" if backend.missing() else "cpu"
    except UsageError as error:
        found["refused"] = str(error)
    return found


def _allocator() -> dict[str, Any]:
    name, version = platform.libc_ver()
    return {
        "libc": f"{name} {version}".strip() or None,
        "preloaded": _preloaded(),
        "tuned": tune_allocator(),
        "variables": _set("MALLOC_", "GLIBC_TUNABLES"),
    }


def _preloaded() -> str | None:
    """An allocator that was put in place of the system's, such as by LD_PRELOAD."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = re.search(r"/lib(jemalloc|tcmalloc|mimalloc)[^/\n]*\.so", maps)
    return found[1] if found else None


def _accelerators() -> list[str]:
    found = []
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found += [f"cuda: {torch.cuda.get_device_name(i)}" for i in range(count)]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _extras() -> Iterable[tuple[str, list[str]]]:
    """Each optional extra with those of its packages that are not installed."""
    needs: dict[str, list[str]] = {}
    for requirement in metadata.requires("spiritlevel") or []:
        found = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if found and found[2] not in ("all", "dev"):
            needs.setdefault(found[2], []).append(found[1])
    for extra, packages in needs.items():
        yield extra, [package for package in packages if _version(package) is None]


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
