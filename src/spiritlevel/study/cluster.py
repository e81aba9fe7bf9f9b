"""Cells on a Dask cluster, through joblib: its workers may be on other machines, and may die.

A cell whose worker dies is done again by another; its images are sent once to each worker. Needs
the extra `dask`.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import pickle
import platform
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import cloudpickle
import joblib
import torch
from distributed import Client, KilledWorker, get_worker
from joblib._dask import DaskDistributedBackend

from spiritlevel import __version__
from spiritlevel.data import Images
from spiritlevel.errors import UsageError
from spiritlevel.kernels import tune_allocator
from spiritlevel.study import theirs
from spiritlevel.study.engine import kernels, measure
from spiritlevel.study.environment import processor
from spiritlevel.study.factory import Factory
from spiritlevel.study.networks import use_factory
from spiritlevel.study.records import Cell, Record

__all__ = ["Cluster", "connected"]

_CONNECT_SECONDS = 5
_WORKERS_SECONDS = 10
_WATCH_SECONDS = 0.5
_SCHEMES = ("tcp", "tls", "ws", "wss")
_VERSIONS = ("spiritlevel", "python", "torch", "numpy")
_START = "dask worker {} --nworkers -1 --nthreads 1"


@dataclass(frozen=True)
class Cluster:
    """A scheduler that answered, and the workers it had then, all of this process's versions."""

    address: str
    client: Client
    workers: dict[str, dict[str, str]]
    """Address -> what `_about` tells of it."""

    def describe(self) -> dict[str, str]:
        """For `environment.json`; other workers may come, and these may go."""
        machines = {urlsplit(address).hostname for address in self.workers}
        processors = sorted({about["processor"] for about in self.workers.values()})
        return {
            "backend": "dask",
            "workers": f"{len(self.workers)} on {len(machines)} machine(s)",
            "processor": ", ".join(processors),
            "cores": "/".join(sorted({about["cores"] for about in self.workers.values()})),
            "versions of workers": f"{', '.join(_VERSIONS)}: the same everywhere",
        }

    def try_factory(self, factory: Factory) -> None:
        """Raises UsageError where a worker cannot import the user's network, or has another."""
        told = self.client.run(_import_factory, cloudpickle.dumps(factory), on_error="return")
        for worker, found in told.items():
            if isinstance(found, Exception):
                raise UsageError(f"on the worker {worker}: {found}") from found
            if factory.folder is not None and found != factory.digest():
                raise UsageError(
                    f"got {factory.spec} on the worker {worker}, whose files differ from those "
                    "here; wanted one network in all records: copy them there, and start the "
                    "worker anew"
                )

    def run_cells(
        self,
        cells: Sequence[Cell],
        images: Images,
        *,
        jobs: int | None,
        threads: int,
        cost: Callable[[Cell], float],
        factory: Factory | None = None,
    ) -> Generator[Record]:
        """Records in the order in which cells end; the most costly cells start first.

        At most `jobs` cells are out at once; with None the scheduler has them all. A fault in a
        cell, or the death of each worker that takes it up, becomes its record's `error`. Closing
        the iterator takes back what is not done. Raises UsageError where the scheduler is lost.
        """
        parallel = joblib.Parallel(
            backend=_Cells(client=self.client, threads=threads),
            return_as="generator_unordered",
            pre_dispatch=jobs or "all",
            batch_size=1,
        )
        work = joblib.delayed(_work)
        queue = sorted(cells, key=cost, reverse=True)
        code = None if factory is None else cloudpickle.dumps(factory)
        with warnings.catch_warnings():
            # Of a large graph: sent so, images that died with their workers are sent again.
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            sent = self.client.submit(_unpack, _packed(images), key=f"images-{images.fingerprint}")
        found = parallel(work(cell, sent, threads, kernels(), code) for cell in queue)
        try:
            for record in found:  # noqa: UP028 - joblib warns of what is closed early
                yield record
        except CancelledError as error:
            raise UsageError(
                f"got no more answers from the scheduler at {self.address}; "
                "wanted it until the last cell is done. What was recorded is safe: start it again, "
                "with its workers, and go on by --resume"
            ) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.close()


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at tcp://HOST:PORT. On leaving, what is not done is taken back from it.

    Raises UsageError where nothing answers within seconds, where there are no workers, and where
    they could not compute what this process would.
    """
    _check_address(address)
    client = _client(address)
    try:
        yield Cluster(address, client, _workers(client, address))
    finally:
        with _quiet("distributed"):
            client.close(timeout=_CONNECT_SECONDS)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        sound = parts.scheme in _SCHEMES and parts.hostname and parts.port and not parts.path
    except ValueError:  # a port that is no number
        sound = False
    if not sound:
        raise UsageError(
            f"got scheduler {address!r}; wanted tcp://HOST:PORT, as `dask scheduler` prints it"
        )


def _client(address: str) -> Client:
    """Made in a thread of its own: what is no scheduler may take the call and never answer."""
    made: Future[Client] = Future()

    def make() -> None:
        try:
            made.set_result(Client(address, timeout=_CONNECT_SECONDS, set_as_default=False))
        except Exception as error:  # whatever listens there may answer anything
            made.set_exception(error)

    with _quiet("distributed"):
        threading.Thread(target=make, daemon=True).start()
        try:
            return made.result(timeout=2 * _CONNECT_SECONDS)
        except Exception as error:
            raise UsageError(
                f"got no Dask scheduler at {address} ({theirs.told(error)}); wanted one that "
                "answers: start it by `dask scheduler`, and name the address that it prints"
            ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What the library logs of a fault, which is told by an error of ours."""
    # Some of its loggers have levels of their own.
    names = [each for each in logging.root.manager.loggerDict if each.startswith(f"{name}.")]
    loggers = [logging.getLogger(each) for each in (name, *names)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# ---- before the first cell -----------------------------------------------------------------------


def _workers(client: Client, address: str) -> dict[str, dict[str, str]]:
    try:
        client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
    except TimeoutError as error:
        raise UsageError(
            f"got a scheduler at {address} without workers; wanted at least one: start them by "
            f"`{_START.format(address)}`"
        ) from error
    for worker, threads in client.nthreads().items():
        if threads != 1:
            raise UsageError(
                f"got the worker {worker} of {threads} threads; wanted one cell a process, for "
                "cells of one process share torch's random state and its threads: start workers "
                f"by `{_START.format(address)}`"
            )
    found = client.run(_about, on_error="return")
    _check_versions("the scheduler", client.run_on_scheduler(_about))
    for worker, about in found.items():
        _check_versions(f"the worker {worker}", about)
    return dict(found)


def _check_versions(where: str, there: dict[str, str] | Exception) -> None:
    if isinstance(there, Exception):
        raise UsageError(
            f"got {theirs.told(there)} from {where}; wanted spiritlevel {__version__} there, "
            "with its extras study and dask, as here: install it"
        ) from there
    here = _about()
    other = [name for name in _VERSIONS if there[name] != here[name]]
    if other:
        got, wanted = (", ".join(f"{name} {of[name]}" for name in other) for of in (there, here))
        raise UsageError(
            f"got {got} on {where}; wanted {wanted}, as here, or their numbers would not compare: "
            "install it there"
        )


def _about() -> dict[str, str]:
    """Of this process. A patch of Python changes no number."""
    return {
        "spiritlevel": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "processor": processor(),
        "cores": str(os.cpu_count()),
    }


def _import_factory(code: bytes) -> str | None:
    factory: Factory = pickle.loads(code)  # noqa: S301 - from our own client
    return factory.digest()


# ---- here, while cells are out -------------------------------------------------------------------


class _Cells(DaskDistributedBackend):  # type: ignore[misc]
    """joblib's own, which would wait for ever for a task that Dask gave up."""

    def __init__(self, *, client: Client, threads: int) -> None:
        super().__init__(client=client)
        self._threads = threads

    def effective_n_jobs(self, n_jobs: int) -> int:
        # Of one, joblib would do the work itself, in this process.
        return max(2, int(super().effective_n_jobs(n_jobs)))

    def submit(self, func: Any, callback: Any = None) -> Any:
        ((_, (cell, *_rest), _),) = func.items

        def failed(done: Future[Any]) -> None:
            if error := done.exception():
                callback([_given_up(cell, error, self._threads)])

        future = super().submit(func, callback)
        future.add_done_callback(failed)
        return future


def _given_up(cell: Cell, error: BaseException, threads: int) -> Record:
    told = theirs.told(error)
    if isinstance(error, KilledWorker):
        told = (
            f"KilledWorker: {error.allowed_failures + 1} workers died while they ran it, the last "
            f"of them {error.last_worker.address}; its log may tell why, such as too little memory"
        )
    return Record(cell.key, cell.task, dict(cell.settings), None, told, 0.0, threads)


def _packed(images: Images) -> bytes:
    buffer = io.BytesIO()
    torch.save(vars(images), buffer)
    return buffer.getvalue()


# ---- there, on a worker --------------------------------------------------------------------------

_ALONE = threading.Lock()
"""Cells share torch's random state: a worker of several threads that joined later takes turns."""


class _Unwanted(BaseException):
    """Raised in a cell whose study has been stopped."""


def _unpack(packed: bytes) -> Images:
    return Images(**torch.load(io.BytesIO(packed), weights_only=True))


def _work(cell: Cell, images: Images, threads: int, run_on: str, code: bytes | None) -> Record:
    def handed() -> Images:
        if code is not None:
            use_factory(pickle.loads(code))  # noqa: S301 - from our own client
        return images

    with _ALONE, _while_wanted():
        tune_allocator()
        return measure(cell, handed, threads=threads, run_on=run_on)


@contextmanager
def _while_wanted() -> Iterator[None]:
    """End the block by _Unwanted where its study was stopped, or killed: none would hear of it."""
    worker, thread, over = get_worker(), threading.get_ident(), threading.Event()
    key = worker.get_current_task()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                _raise_in(thread, _Unwanted)
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        _raise_in(thread, None)  # what was sent, and has not arrived


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    raised = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
