"""What the callbacks share: a probe opens when a training begins and closes when it ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from spiritlevel.doctor.check import check as check_model
from spiritlevel.doctor.diagnosis import Diagnosis
from spiritlevel.errors import UsageError, require
from spiritlevel.probe.watch import Probe

__all__ = ["Watching"]


class Watching:
    """Has a new `probe` for each training; with it `sl.check(model, probe=callback.probe)`.

    every: steps from one that is read to the next.
    writer: of TensorBoard; None: the library's own, if it has one; False: none.
    report: where a page is written when the training ends, also by an error; each training
        writes it anew, and of several processes rank 0 alone. Needs the extra `probe`.
    check: whether the model is then checked, as `diagnosis`, which rank 0 prints.

    Raises UsageError, MissingExtra.
    """

    def __init__(
        self,
        *,
        every: int = 50,
        writer: Any = None,
        report: str | Path | None = None,
        check: bool = False,
    ) -> None:
        trial = Probe(nn.Identity(), every=every)  # says now what is wrong, not when it begins
        if writer is not None and writer is not False:
            trial.log_to(writer)
        if report is not None:
            _refuse_page(Path(report))
        self.every, self.writer, self.report, self.check = every, writer, report, check
        self.probe: Probe | None = None
        """Of the training that goes on, else of the last one."""
        self.diagnosis: Diagnosis | None = None
        """Of the last training, if `check` is set."""
        self._running = False

    def close(self) -> None:
        """End the reading, if it goes on: all hooks are gone. The library calls it, as a rule."""
        probe = self.probe
        if probe is None or not self._running:
            return
        self._running = False
        self._careful("the probe was not read to its end", lambda: probe.__exit__(None, None, None))
        if self.report is not None and _rank() == 0:
            self._careful("the probe's page was not written", self._write)
        if self.check:
            self._careful("the model was not checked", self._diagnose)

    def _begin(self, model: nn.Module, optimizer: Any = None) -> Probe:
        self.close()  # a training that ended without a word
        self.diagnosis = None
        probe = Probe(model, optimizer=_if_its_own(optimizer, model), every=self.every)
        self.probe = probe.__enter__()
        self._running = True
        return probe

    def _log(self, writers: Iterable[Any], first_step: int) -> None:
        """To the writer that was given; else to these, the library's own."""
        if self.probe is None or self.writer is False:
            return
        for writer in writers if self.writer is None else [self.writer]:
            self.probe.log_to(writer, first_step=first_step)

    def _write(self) -> None:
        assert self.probe is not None
        assert self.report is not None
        self.probe.report(self.report)

    def _diagnose(self) -> None:
        assert self.probe is not None
        # On every rank, since they compare their statistics.
        self.diagnosis = check_model(self.probe.model, probe=self.probe)
        if _rank() == 0:
            print(self.diagnosis)

    def _careful(self, what: str, do: Callable[[], None]) -> None:
        """Neither the end of a training nor the error that ended it is lost for a page."""
        try:
            do()
        except Exception as error:
            warnings.warn(f"{what}: {type(error).__name__}: {error}", stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nothing: hooks and a model do not go along into other processes."""
        return {**self.__dict__, "probe": None, "diagnosis": None, "_running": False}


def _refuse_page(path: Path) -> None:
    for package in ("jinja2", "plotly"):
        require(package, extra="probe")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"got report={str(path)!r}; wanted the file of a page, in a folder that exists"
        )


def _if_its_own(optimizer: Any, model: nn.Module) -> Any:
    """None where it holds other tensors: wrappers train copies, and torch tells of all steps."""
    ours = set(map(id, model.parameters()))
    groups = getattr(optimizer, "param_groups", ())
    return optimizer if any(id(p) in ours for group in groups for p in group["params"]) else None


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
