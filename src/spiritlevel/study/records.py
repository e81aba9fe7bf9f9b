"""What a run writes: one line of JSON a cell, appended and synced as each ends.

runs/NAME/config.json       what was asked, and the verdicts' rules, written before the first cell
runs/NAME/environment.json  what it ran on
runs/NAME/records.jsonl     the results
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spiritlevel.errors import RecordsError
from spiritlevel.files import write_whole

__all__ = ["Cell", "Record", "RecordFile", "Records", "finite", "read_json", "write_json"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One short run: which task, and everything that decides its result besides the images."""

    task: str
    settings: Settings

    @property
    def key(self) -> str:
        """`task/name=value,...`, with the settings in alphabetical order."""
        pairs = (f"{name}={_plain(value)}" for name, value in sorted(self.settings.items()))
        return f"{self.task}/{','.join(pairs)}"


@dataclass(frozen=True)
class Record:
    """What came of a cell. `error` is a fault's message; divergence is a result, not a fault."""

    key: str
    task: str
    settings: Settings
    result: dict[str, Any] | None
    error: str | None = None
    seconds: float = 0.0
    threads: int = 1

    def to_json(self) -> str:
        """One line of strict JSON: a number that is not finite is null."""
        return json.dumps(finite(vars(self)), allow_nan=False)


class Records:
    """The records of a run, by key; a later record of the same cell replaces an earlier one."""

    def __init__(self, records: Iterable[Record] = (), *, of: Records | None = None) -> None:
        self._by_key = {record.key: record for record in records}
        self._whole: Records = self if of is None else of._whole

    def add(self, record: Record) -> None:
        self._by_key[record.key] = record
        self.__dict__.pop("_places", None)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, network: str) -> Records:
        """Those of one network, and those that are of none."""
        mine = (r for r in self if r.settings.get("network", network) == network)
        return Records(mine, of=self)

    def numbers(self, task: str, **settings: Any) -> list[int]:
        """Where the records that `select` finds stand in the whole run, counted from 0."""
        return [self.number(record) for record in self.select(task, **settings)]

    def number(self, record: Record) -> int:
        """Where the record stands in the whole run, counted from 0."""
        return self._whole._places[record.key]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self._by_key)}

    def done(self) -> set[str]:
        """Keys of the cells that have a result."""
        return {record.key for record in self if record.error is None}

    def failed(self) -> list[Record]:
        return [record for record in self if record.error is not None]

    def seconds(self) -> float:
        """Worker time in all."""
        return math.fsum(record.seconds for record in self)

    def select(self, task: str, **settings: Any) -> list[Record]:
        """Records with a result whose settings agree with all that are named, ordered by seed."""
        found = [
            record
            for record in self
            if record.task == task
            and record.result is not None
            and all(record.settings.get(name) == value for name, value in settings.items())
        ]
        return sorted(found, key=lambda record: record.settings.get("seed", 0))

    def by_seed(self, task: str, **settings: Any) -> dict[int, dict[str, Any]]:
        """seed -> result, for settings that leave one record a seed."""
        return {r.settings["seed"]: r.result for r in self.select(task, **settings) if r.result}

    def values(self, task: str, name: str, **settings: Any) -> list[Any]:
        """The distinct values that setting `name` takes, sorted."""
        return sorted(
            {r.settings[name] for r in self.select(task, **settings) if name in r.settings}
        )


@dataclass
class RecordFile:
    """`records.jsonl`, opened for appending by one process at a time."""

    path: Path
    records: Records = field(default_factory=Records)
    torn: str | None = None
    """The beginning of a torn last line, found and dropped; its cell is to be done again."""
    whole: int = 0
    """Bytes of whole records: what is kept when the rest is dropped."""
    _file: FileIO | None = None

    @classmethod
    def read(cls, path: Path) -> RecordFile:
        """Read, change nothing. Raises RecordsError if a line other than the last is no record."""
        file = cls(path)
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            tail = lines.pop()
            file.torn = tail.decode(errors="replace") or None
            for number, line in enumerate(lines, 1):
                record = _parse(line)
                if record is not None:
                    file.records.add(record)
                    file.whole += len(line) + 1
                elif number == len(lines) and not tail:
                    file.torn = line.decode(errors="replace") or "an empty line"
                else:
                    raise RecordsError(
                        f"got line {number} of {path}, which is not a record; "
                        "wanted one JSON object a line. Restore the file, or delete that line: "
                        "its cell is then done again with --resume."
                    )
        return file

    @classmethod
    def open(cls, path: Path) -> RecordFile:
        """Read, drop a torn last line, and hold the file for appending.

        Raises RecordsError if another process holds it.
        """
        try:
            handle = path.open("ab", buffering=0)
        except OSError as error:
            raise RecordsError(
                f"got {error.strerror or error} at {path}; "
                "wanted a file to append to: check its rights"
            ) from error
        try:
            _lock(handle, path)
            file = cls.read(path)
            if file.torn is not None:
                handle.truncate(file.whole)
                os.fsync(handle.fileno())
        except BaseException:
            handle.close()
            raise
        file._file = handle
        return file

    def append(self, record: Record) -> None:
        """Write one line and see it on the disk. Raises RecordsError if the disk refuses it."""
        assert self._file is not None, "opened by read(), not open()"
        try:
            line = record.to_json().encode() + b"\n"
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordsError(
                f"got {error.strerror or error} while writing {self.path}; "
                "wanted room for one more record. "
                "What was written before is safe: make room and run again with --resume."
            ) from error
        self.records.add(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(handle: FileIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordsError(
            f"got {path}, to which another process is writing; wanted a run of its own. "
            "Wait for it, stop it, or choose another --out."
        ) from error


def _parse(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    sound = isinstance(record.key, str) and isinstance(record.settings, dict)
    return record if sound and isinstance(record.result, dict | None) else None


def _plain(value: Any) -> str:
    """A setting in a key; commas and equals signs, which a norm may hold, as %2C and %3D."""
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return quote(text, safe=":*+/ ")


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, at any depth, as None: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all. Raises UsageError where the place cannot be written to."""
    write_whole(path, json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False))


def read_json(path: Path) -> dict[str, Any]:
    """Raises RecordsError for a file that is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordsError(
            f"got {path.parent}, which holds no {path.name}; wanted the folder of a run of "
            "`spiritlevel study`: check the path"
        ) from None
    except OSError as error:
        raise RecordsError(
            f"got {error.strerror or error} at {path}; "
            "wanted a file that can be read: check its rights"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordsError(
            f"got {path}, which is not JSON ({error}); wanted what the run wrote: restore it"
        ) from error
    if not isinstance(value, dict):
        raise RecordsError(
            f"got {path}, which holds no JSON object; wanted what the run wrote: restore it"
        )
    return value
