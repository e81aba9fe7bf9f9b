"""What can go wrong, as a tree.

SpiritlevelError
├── UsageError (ValueError)        the call asks for something that cannot be
│   ├── DataError                  images that are missing, broken or of no use
│   └── RecordsError               a run's folder that cannot be read, resumed or written
├── TrainingError                  a run whose numbers are no longer finite
├── ExportError                    a model cannot become a file, or its file gives other numbers
└── MissingExtra (ImportError)     an optional package is not installed

Every text says what was got, what was wanted, and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "DataError",
    "ExportError",
    "MissingExtra",
    "RecordsError",
    "SpiritlevelError",
    "TrainingError",
    "UsageError",
    "did_you_mean",
    "require",
]


class SpiritlevelError(Exception):
    """Root of all errors that spiritlevel raises on purpose."""


class UsageError(SpiritlevelError, ValueError):
    """The user asked for something that cannot be."""


class DataError(UsageError):
    """Images that are missing, broken or of no use."""


class RecordsError(UsageError):
    """A run's folder that cannot be read, resumed or written."""


class TrainingError(SpiritlevelError):
    """A run of training that cannot go on: a loss or a gradient is not finite."""


class ExportError(SpiritlevelError):
    """A model that cannot become a file, or whose file gives other numbers than it does.

    `report` is what was found where a file was run: an `ExportReport`.
    """

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class MissingExtra(SpiritlevelError, ImportError):
    """An optional package is not installed."""


def did_you_mean(
    name: object, names: Iterable[str], *, within: str = "", cutoff: float = 0.6
) -> str:
    """A sentence with the `names` near `name`, after a space; nothing where none is.

    `within` is put before each: what they are parts of. `cutoff` is difflib's.
    """
    near = difflib.get_close_matches(str(name), list(names), cutoff=cutoff)
    return f" Did you mean {' or '.join(within + one for one in near)}?" if near else ""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or name the line that installs it.

    Raises MissingExtra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise  # the package is there; something inside it is broken
        raise MissingExtra(
            f"{package} is not installed; it comes with the extra {extra!r}. "
            f"Install it: pip install 'spiritlevel[{extra}]'",
            name=error.name,
        ) from error
