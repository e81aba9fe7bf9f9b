"""Many short runs -> records on disk -> a verdict on each claim."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spiritlevel.catalogue import speaking, spoken
from spiritlevel.errors import RecordsError, SpiritlevelError, UsageError, require
from spiritlevel.report import write
from spiritlevel.report.story import Live as Going
from spiritlevel.report.story import Story
from spiritlevel.study.claims import CLAIMS, Judgement, judge, rules
from spiritlevel.study.config import Asked, Plan, plan_study
from spiritlevel.study.examples import example_lines
from spiritlevel.study.factory import Factory, as_factory
from spiritlevel.study.live import Live
from spiritlevel.study.notebook import study_html, watch
from spiritlevel.study.records import Cell, RecordFile, Records, read_json
from spiritlevel.study.run import (
    CONFIG,
    ENVIRONMENT,
    RECORDS,
    Progress,
    all_cells,
    begin,
    do_cells,
    read_config,
)
from spiritlevel.study.run import (
    resume as resume_run,
)
from spiritlevel.study.story import build_story

if TYPE_CHECKING:
    from spiritlevel.study.cluster import Cluster

__all__ = ["BACKENDS", "Judgement", "Progress", "Study", "study"]

BACKENDS = ("loky", "dask")
"""Processes of this machine, or the workers of a cluster."""


@dataclass(frozen=True, repr=False)
class Study:
    """A run that has ended, or what there is of one, as its folder tells it."""

    folder: Path
    records: Records
    config: dict[str, Any]
    torn: str | None = None
    """The beginning of a torn last line of the records, which was left out."""
    lang: str | None = None
    """The language that its page and its table in a notebook speak; None: what is spoken then."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Study:
        """Read a run's folder without changing it. Raises RecordsError."""
        path = Path(folder)
        config = read_config(path)
        file = RecordFile.read(path / RECORDS)
        return cls(path, file.records, config, file.torn)

    @property
    def verdicts(self) -> dict[str, Judgement]:
        """Claim -> verdict, by the rules in `spiritlevel.study.claims`.

        A claim some of whose planned runs gave no result is inconclusive.
        """
        language = spoken()  # of the words that each verdict carries
        if language not in self._judged:
            self._judged[language] = {claim: self._judge(claim) for claim in CLAIMS}
        return self._judged[language]

    @cached_property
    def _judged(self) -> dict[str, dict[str, Judgement]]:
        return {}

    @cached_property
    def missing(self) -> frozenset[str]:
        """Keys of planned runs that gave no result: they were not reached, or they failed."""
        planned = {cell.key for cell in all_cells(self._plan)}
        return frozenset(planned - self.records.done())

    @property
    def _plan(self) -> Plan:
        return Plan.from_json(self.config["plan"])

    def _judge(self, claim: str) -> Judgement:
        planned = list(CLAIMS[claim].cells(self._plan))
        with _readable(self.folder):
            found = judge(claim, self.records, self._plan)
        by_network = {
            name: self._held(one, [c for c in planned if c.settings.get("network", name) == name])
            for name, one in found.by_network.items()
        }
        return self._held(replace(found, by_network=by_network), planned)

    def _held(self, found: Judgement, planned: Sequence[Cell]) -> Judgement:
        """No verdict from fewer runs than were planned."""
        missing = len({cell.key for cell in planned} & self.missing)
        return replace(found, status="inconclusive", missing=missing) if missing else found

    @property
    def examples(self) -> list[str]:
        """The article's four worked examples, as measured here, in a line each."""
        return example_lines(self.records)

    @property
    def rules_changed(self) -> bool:
        """Whether the rules of this version differ from those written down before the run."""
        return bool(self.config["rules"] != rules())

    def __repr__(self) -> str:
        told = ", ".join(f"{claim} {verdict.status}" for claim, verdict in self.verdicts.items())
        return f"Study({str(self.folder)!r}: {told})"

    def _repr_html_(self) -> str:
        """The verdicts, in a notebook."""
        with speaking(self.lang):
            return study_html(self)

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        live: Going | None = None,
        lang: str | None = None,
    ) -> Path:
        """Draw the page from the records alone (default: `report.html` in the folder).

        With `live`, for a run that goes on, the page reads itself anew now and then. `lang` is its
        language, "en" or "zh", unless given the study's own; the records have none.
        """
        target = self.folder / "report.html" if path is None else Path(path)
        with speaking(lang or self.lang):
            return write(self._story(live), target)

    def _story(self, live: Going | None) -> Story:
        environment = read_json(self.folder / ENVIRONMENT)
        verdicts = self.verdicts
        with _readable(self.folder):
            return build_story(
                self.config,
                environment,
                self.records,
                verdicts,
                folder=self.folder.resolve(),
                rules_changed=self.rules_changed,
                missing=0 if live else len(self.missing),
                live=live,
            )


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Records that were edited by hand, or come from another version, are a user's mistake."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, SpiritlevelError):
            raise
        raise RecordsError(
            f"got {folder}, whose records this version cannot read "
            f"({type(error).__name__}: {error}); wanted what it wrote itself: "
            "restore them, or start a new run"
        ) from error


def study(
    *,
    preset: str | None = None,
    data: str | None = None,
    model: str | Callable[..., Any] | None = None,
    norms: Sequence[str] | None = None,
    lrs: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    seed: int | None = None,
    epochs: float | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    jobs: int | None = None,
    threads: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    live: bool = False,
    lang: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Train with and without normalization on real images and judge each claim of the article.

    `preset` is "quick" (the default, some six minutes on two cores), "standard" (about an hour:
    a VGG-like, a residual and a Ghost network on colour images) or "smoke". `model` is a network
    of your own, "pkg.module:factory" or the function itself, which takes a norm: then each claim
    is judged on it. `data` is an image source such as "mnist5k"; `image_size`, `mean` and `std`
    say how it is fed, `augment` adds random crops and flips. `norms` and `lrs` are the grid,
    `epochs` the length of its runs; `seed` the first of consecutive seeds, or `seeds` all of them.
    Records go to `out` (default: a new folder in runs/), cell by cell, from `jobs` processes
    (default: one a core) of `threads` torch threads each; with `backend="dask"` from the workers of
    the Dask scheduler at `scheduler`, tcp://HOST:PORT, of which at most `jobs` are kept busy
    (default: all). `resume=True` finishes what `out` (default: the latest run) lacks, by its own
    plan, on either backend. `live=True` rewrites the page while the run goes. `lang` is the
    language of the page and of what is shown, "en" or "zh"; no record depends on it. Raises
    UsageError, DataError, RecordsError and MissingExtra.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"got jobs={jobs}; wanted at least 1 process")
    _check_backend(backend, scheduler)
    asked: dict[str, Any] = {
        "preset": preset,
        "data": data,
        "norms": norms,
        "lrs": lrs,
        "seeds": seeds,
        "seed": seed,
        "epochs": epochs,
        "image_size": image_size,
        "mean": mean,
        "std": std,
        "augment": augment,
        "threads": threads,
    }
    factory = None if model is None else as_factory(model)
    tell = progress or watch(factory) or _silent
    if resume and (given := [name for name, value in asked.items() if value is not None]):
        raise UsageError(
            f"got {', '.join(given)} together with resume; a resumed run follows its own plan. "
            "Leave them out, or start a new run"
        )
    with speaking(lang), _connected(scheduler) as cluster:
        if resume:
            run = resume_run(_latest() if out is None else Path(out), factory)
            _try_on(cluster, run.factory)
        else:
            asked["preset"] = preset or "quick"
            asked["model"] = None if factory is None else factory.spec
            plan = plan_study(Asked(**asked))
            _try_on(cluster, factory)
            folder = _new_folder(plan.preset) if out is None else Path(out)
            run = begin(plan, folder, _command(asked), epochs=epochs, factory=factory)
        with Live(run.folder, tell) if live else nullcontext(tell) as heard:
            do_cells(run, jobs=jobs, tell=heard, cluster=cluster)
    return replace(Study.load(run.folder), lang=lang)


def _check_backend(backend: str, scheduler: str | None) -> None:
    if backend not in BACKENDS:
        raise UsageError(f"got backend {backend!r}; wanted {' or '.join(BACKENDS)}")
    if scheduler is not None and backend != "dask":
        raise UsageError(
            f"got scheduler {scheduler} with backend {backend}; "
            "wanted none, or dask as the backend: add --backend dask"
        )
    if scheduler is None and backend == "dask":
        raise UsageError(
            "got backend dask without a scheduler; wanted its address: start one by "
            "`dask scheduler`, and add --scheduler tcp://HOST:PORT as it prints it"
        )


def _connected(scheduler: str | None) -> AbstractContextManager[Cluster | None]:
    if scheduler is None:
        return nullcontext()
    require("distributed", extra="dask")
    from spiritlevel.study.cluster import connected

    return connected(scheduler)


def _try_on(cluster: Cluster | None, factory: Factory | None) -> None:
    if cluster is not None and factory is not None:
        cluster.try_factory(factory)


def _silent(_progress: Progress) -> None:
    pass


def _new_folder(preset: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{preset}-{stamp}"


def _latest() -> Path:
    runs = [path.parent for path in Path("runs").glob(f"*/{CONFIG}")]
    if not runs:
        raise UsageError("got --resume, but there is no run in runs/; name its folder by --out")
    return max(runs, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def _command(asked: dict[str, Any]) -> str:
    """The command line that asks for the same."""
    words = ["spiritlevel", "study"]
    for name, value in asked.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            option = "--" + name.replace("_", "-")
            words += [option] if value is True else [option, text]
    return shlex.join(words)


class _StudyModule(ModuleType):
    """`sl.study(...)` is a verb and `spiritlevel.study` a room: the module answers to both."""

    __call__ = staticmethod(study)


sys.modules[__name__].__class__ = _StudyModule
