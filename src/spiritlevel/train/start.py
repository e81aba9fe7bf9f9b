"""A run begun or gone on with in its folder, on as many processes as there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from spiritlevel.doctor.check import check
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.errors import RecordsError
from spiritlevel.files import write_whole
from spiritlevel.probe.watch import Probe
from spiritlevel.train.checkpoint import Checkpoints
from spiritlevel.train.config import Config, parse_toml
from spiritlevel.train.group import Group, joined, place
from spiritlevel.train.journal import EVENTS, METRICS
from spiritlevel.train.prepared import Build
from spiritlevel.train.progress import Progress
from spiritlevel.train.training import CONFIG, RESULT, Training

__all__ = ["CHECK", "Outcome", "read_config", "run"]

CHECK = "check.json"
_CHECKED = 8
"""Batches that the model is checked on."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to, on the process that leads; on others all is None."""

    result: dict[str, Any] | None = None
    """As in RUN/result.json."""
    diagnosis: Diagnosis | None = None
    probe: Probe | None = None


def run(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    build: Build | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Train as `config` says, in `folder`; with `resume`, go on with what is there.

    Under torchrun every process calls it. A process that torchrun starts anew goes on, too.
    `build(config, images)` makes a model that is not ours. Raises what `Training` raises, and
    RecordsError for a folder that cannot be used.
    """
    written = config.to_toml()
    with ExitStack() as held:
        with joined(config.device) as group:
            resume = any(group.objects(resume or place().restarted))  # agents count by themselves
            held.enter_context(_claimed(folder, config, resume, group))
            training = Training(config, folder, group, build=build, tell=tell, stop=stop)
            if resume:
                training.resume()
            try:
                if group.leads:  # only now it is known to be a run
                    write_whole(folder / CONFIG, written)
                result = training.run()
            except BaseException:
                _undo(training)
                raise
        if not group.leads:
            return Outcome()
        # Alone from here on: a synced norm is a plain one, and no process waits.
        diagnosis = _checked(training) if config.check and _is_news(training) else None
        if training.probe is not None and training.probe.counts.steps:
            part = f"-{training.began:08}" if training.began else ""
            training.probe.report(folder / f"probe{part}.html")
        return Outcome(result, diagnosis, training.probe)


def _undo(training: Training) -> None:
    """A run that ended in its first update is none: the same folder serves the next try."""
    if training.group.leads and not training.done:
        (training.folder / CONFIG).unlink(missing_ok=True)
        (training.folder / METRICS).unlink(missing_ok=True)
        shutil.rmtree(training.folder / EVENTS, ignore_errors=True)


def _is_news(training: Training) -> bool:
    """Whether there is anything to be checked that was not checked before."""
    return training.done > training.began or not (training.folder / CHECK).exists()


def _checked(training: Training) -> Diagnosis:
    found = check(training.model, _Batches(training), probe=training.probe, most_batches=_CHECKED)
    write_whole(training.folder / CHECK, found.to_json())
    return found


@dataclass(frozen=True)
class _Batches:
    """Training images as they are, without what chance does to them."""

    training: Training

    def __len__(self) -> int:
        return min(_CHECKED, self.training.feed.steps_per_epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        feed = self.training.feed
        size = feed.recipe.batch_size
        for first in range(0, len(self) * size, size):
            rows = feed.rows[first : first + size]
            x = feed.x[rows]
            yield x, feed.y[rows].to(x.device)


@contextmanager
def _claimed(folder: Path, config: Config, resume: bool, group: Group) -> Iterator[None]:
    """The folder, of this run alone: its leader holds a lock, which ends with the process."""
    lock = FileLock(folder / ".lock")
    try:
        group.agreed(lambda: _open(folder, config, resume, lock) if group.leads else None)
        yield
    finally:
        lock.release()


def _open(folder: Path, config: Config, resume: bool, lock: FileLock) -> None:
    path, begun = folder / CONFIG, Checkpoints(folder).any()
    if not resume and (path.exists() or begun):
        raise RecordsError(
            f"got {folder}, which holds a run already; go on with it by --resume, or choose "
            "another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecordsError(
            f"got {folder}, in which another process trains; wanted a run of its own. Wait for "
            "it, stop it, or choose another --out"
        ) from error
    except OSError as error:
        raise RecordsError(
            f"got {error.strerror or error} at {folder}; wanted a folder to write to: choose "
            "another --out"
        ) from error
    for draft in folder.glob(".*.tmp"):  # what a killed process left half-written
        draft.unlink(missing_ok=True)
    if not begun and (not path.exists() or (folder / RESULT).exists()):
        _refuse_others(folder)
    if path.exists() and (other := config.differs(read_config(folder).to_dict())):
        raise RecordsError(
            f"got another configuration for the run in {folder} ({'; '.join(other)}); wanted what "
            f"its {CONFIG} says. Leave the options out, or choose another --out"
        )


def _refuse_others(folder: Path) -> None:
    """Raises RecordsError where a new run would write over what it does not own."""
    names = (METRICS, EVENTS, RESULT, "best.safetensors", "last.safetensors")
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise RecordsError(
            f"got {folder}, which holds {', '.join(there)} and no checkpoint of a run to go on "
            "with; wanted a folder for a new one. Choose another --out, or move them away"
        )


def read_config(folder: Path) -> Config:
    """That of the run in `folder`. Raises RecordsError, UsageError."""
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(
            f"got {folder}, whose {CONFIG} cannot be read; wanted the folder of a run of "
            "`spiritlevel train`: check the path"
        ) from error
    return Config.from_dict(parse_toml(text, path))
