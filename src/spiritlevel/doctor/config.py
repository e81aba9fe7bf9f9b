"""`[tool.spiritlevel]` of the pyproject.toml that is found upward from a folder.

[tool.spiritlevel]
select = ["SL2", "SL3"]
ignore = ["SL106"]
fail-on = "error"
baseline = "spiritlevel.json"   # beside the pyproject.toml
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritlevel.doctor.finding import SEVERITIES, Severity
from spiritlevel.errors import UsageError, did_you_mean

__all__ = ["Settings", "settings"]

_KEYS = ("select", "ignore", "fail-on", "baseline")


@dataclass(frozen=True)
class Settings:
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: Severity | None = None
    baseline: Path | None = None


def settings(folder: Path) -> Settings:
    """Of the first pyproject.toml in `folder` or above it that has the table. Raises UsageError."""
    for each in (folder.absolute(), *folder.absolute().parents):
        file = each / "pyproject.toml"
        if file.is_file() and (table := _table(file)) is not None:
            return _settings(file, table)
    return Settings()


def _table(file: Path) -> Any:
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"got {file}, which cannot be read ({error}); wanted TOML. Put that right"
        ) from error
    tool = told.get("tool")
    return tool.get("spiritlevel") if isinstance(tool, dict) else None


def _settings(file: Path, table: Any) -> Settings:
    if not isinstance(table, dict):
        raise UsageError(f"got tool.spiritlevel = {table!r} in {file}; wanted a table")
    for key in table:
        if key not in _KEYS:
            raise UsageError(
                f"got {key!r} in [tool.spiritlevel] of {file}; its keys are: {', '.join(_KEYS)}."
                f"{did_you_mean(key, _KEYS)}"
            )
    fail_on = table.get("fail-on")
    if fail_on is not None and fail_on not in SEVERITIES:
        raise _wrong(file, "fail-on", fail_on, f"one of: {', '.join(SEVERITIES)}")
    baseline = table.get("baseline")
    if baseline is not None and not (isinstance(baseline, str) and baseline):
        raise _wrong(file, "baseline", baseline, "the name of a file")
    return Settings(
        _ids(file, "select", table),
        _ids(file, "ignore", table),
        fail_on,
        None if baseline is None else file.parent / baseline,
    )


def _ids(file: Path, key: str, table: dict[str, Any]) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(file, key, value, f'a list of rules, as {key} = ["SL2", "SL301"]')
    return tuple(value)


def _wrong(file: Path, key: str, value: object, wanted: str) -> UsageError:
    return UsageError(f"got {key} = {value!r} in [tool.spiritlevel] of {file}; wanted {wanted}")
