"""What a run tells of itself: a line of JSON a step in RUN/metrics.jsonl, and TensorBoard's events.

`kind` is "train" (an update: loss, accuracy, learning_rate, gradient_norm, images_per_second),
"validation" (an epoch: loss, accuracy) or "test" (the end: of the best and the last weights).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.files import write_whole

__all__ = ["EVENTS", "METRICS", "Journal"]

METRICS = "metrics.jsonl"
EVENTS = "events"


class Journal:
    """The journal of the run in `folder` after `step` updates and `epochs` validations.

    What an earlier process wrote beyond them is dropped: it will be written again.
    """

    def __init__(self, folder: Path, *, step: int, epochs: int) -> None:
        self.path = folder / METRICS
        kept = [line for line in _lines(self.path) if _is_before(line, step, epochs)]
        write_whole(self.path, "".join(f"{line}\n" for line in kept))
        self._file: FileIO = self.path.open("ab", buffering=0)
        self.writer = _writer(folder / EVENTS, step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Raises RecordsError where the disk takes no more."""
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
        except OSError as error:
            raise _refusal(error, self.path) from error
        if self.writer is not None:
            # A run that goes on from its end drops what comes after its last step.
            at = step + (kind == "test")
            numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
            of = "/".join([kind, *filter(None, [values.get("weights")])])
            with self._told():
                for name, value in numbers.items():
                    self.writer.add_scalar(f"{of}/{name}", value, at)

    def counting_from(self, done: int) -> Any:
        """The writer of events for what counts its steps from those `done` before."""
        return _From(done, self.writer)

    def close(self) -> None:
        self._file.close()
        if self.writer is not None:
            with self._told():
                self.writer.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Of events that the disk does not take."""
        try:
            yield
        except OSError as error:
            raise _refusal(error, self.path.with_name(EVENTS)) from error


@dataclass(frozen=True)
class _From:
    done: int
    writer: Any

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.writer.add_scalar(tag, value, self.done + step)


def _refusal(error: OSError, path: Path) -> RecordsError:
    return RecordsError(
        f"got {error.strerror or error} while writing {path}; wanted room for a line. What was "
        "saved before is whole. Make room, and go on by --resume"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while reading {path}; wanted a file that can be gone "
            "on with. Change its permissions, or start a new run by another --out"
        ) from error


def _is_before(line: str, step: int, epochs: int) -> bool:
    """Whether it is of what the checkpoint holds; a torn line is not."""
    try:
        told = json.loads(line)
        done = {"train": told["step"] <= step, "validation": told.get("epoch", 0) <= epochs}
        return bool(done.get(told["kind"], False))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _writer(folder: Path, step: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its protocol buffers
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn(
            "got no tensorboard, so there are no events of this run, but metrics.jsonl. Install "
            "it: pip install 'spiritlevel[train]'",
            stacklevel=4,
        )
        return None
    if not step:  # what was written before the first checkpoint is written anew
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
