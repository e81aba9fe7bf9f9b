"""A run of `spiritlevel train`, from a configuration to trained weights, with nothing lost between.

RUN/config.toml           all that decides it
RUN/metrics.jsonl         see `journal`; RUN/events/ has the same for TensorBoard
RUN/checkpoints/          see `checkpoint`
RUN/last.safetensors      the weights after the last whole epoch: the averaged ones, if kept
RUN/best.safetensors      those of the epoch that was best on the validation images
RUN/result.json           what they get right on the test images, which chose nothing
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import TrainingError, UsageError
from spiritlevel.files import write_whole
from spiritlevel.kernels import tune_allocator
from spiritlevel.probe.watch import Probe
from spiritlevel.train.agree import share_statistics_
from spiritlevel.train.chance import chance, set_chance
from spiritlevel.train.checkpoint import Checkpoints
from spiritlevel.train.config import Config
from spiritlevel.train.culprit import culprit
from spiritlevel.train.evaluation import Evaluation, evaluate
from spiritlevel.train.group import Group, ToldError
from spiritlevel.train.journal import Journal
from spiritlevel.train.learner import Learner
from spiritlevel.train.prepared import Build, prepared
from spiritlevel.train.progress import Progress, Stopped
from spiritlevel.train.snapshot import refuse_foreign, snapshot
from spiritlevel.train.weight_files import WeightFiles, digest

__all__ = ["CONFIG", "RESULT", "Training"]

CONFIG, RESULT = "config.toml", "result.json"

_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Enough(Exception):
    """Raised out of an evaluation that a signal ends."""


@dataclass
class _State:
    """How far a run is."""

    step: int = 0
    validated: int = 0
    """Whole epochs whose end has been seen to."""
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    """Of the best weights: epoch, accuracy, loss, and the digest by which their file is known."""


class Training:
    """One run in its folder, on one process of `group`. `tell` is called on the leader only.

    `stop` gives the number of the signal that asks for an end, or 0. Raises UsageError, DataError
    and RecordsError for what cannot be trained, or gone on with.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        group: Group,
        *,
        build: Build | None = None,
        tell: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        tune_allocator()
        self.config, self.folder, self.group = config, folder, group
        self._tell, self._stop = tell, stop
        recipe = config.recipe
        start = prepared(config, group, build)
        self.sets, self.feed, self.model = start.sets, start.feed, start.model
        self._fingerprint = start.fingerprint
        if config.compile:
            self.model.compile()
        self.learner = Learner(
            self.model,
            recipe,
            self.feed.steps_per_epoch,
            autocast=_DTYPES[config.amp],
            channels_last=config.channels_last,
            ranks=group.size,
            wrap=group.wrap,
        )
        self.steps = recipe.epochs * self.feed.steps_per_epoch
        self.checkpoints = Checkpoints(folder)
        self.weights = WeightFiles(folder, recipe, self.sets.preprocessing)
        self._at = _State()
        self._saved_time, self._saved_at = time.monotonic(), (0, 0)
        self.began = 0
        """Updates that were done before this process."""
        self.probe: Probe | None = None
        """What watches the run, from `run` on, on the leader and if it is asked for."""
        self._journal: Journal | None = None
        self.feed.seed_process(0)

    @property
    def done(self) -> int:
        """Updates, with those of processes before this one."""
        return self._at.step

    def resume(self) -> int:
        """Go on from the newest checkpoint, if there is one; the number of updates done before."""
        state = self.group.first(self.group.agreed(self._newest))
        if state is not None:
            self._at = _State(**state["at"])
            self.learner.load_state_dict(state["learner"], done=self._at.step)
            self._set_chance(state["chance"])
            self._mend_weights()
        self.began = self._at.step
        return self.began

    def _newest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, read where it leads."""
        held: list[dict[str, Any]] = []

        def use(state: dict[str, Any]) -> None:
            refuse_foreign(state, self.config, self._fingerprint, self.learner)
            held.append(state)

        if self.group.leads:
            self.checkpoints.newest(use, self._note)
        return held[0] if held else None

    def _set_chance(self, states: list[dict[str, Any]]) -> None:
        if len(states) != self.group.size:
            self.feed.seed_process(self._at.step)
            return
        set_chance(states[self.group.rank], self.group.device)

    def _mend_weights(self) -> None:
        """The files of weights, where a process was killed between them and the checkpoint."""
        at = self._at
        ends = at.step == at.validated * self.feed.steps_per_epoch
        if ends:
            self._write("last")
        if not at.best:
            return
        if ends and at.best["epoch"] == at.validated:
            self._write("best")
        same = self.group.leads and self.weights.holds("best", at.best.get("digest"))
        if not self.group.first(same):
            path, epoch = self.weights.path("best"), at.best["epoch"]
            self._note(f"{path} is not of epoch {epoch}: the best is chosen anew")
            at.best = {}

    def run(self) -> dict[str, Any]:
        """Train to the end; what the test images say, as it is written to RUN/result.json.

        Raises Stopped for a signal, when all is saved, and TrainingError where numbers are no
        longer finite.
        """
        with ExitStack() as stack:
            if self.group.leads:
                self._journal = Journal(self.folder, step=self._at.step, epochs=self._at.validated)
                stack.callback(self._journal.close)
            self.probe = self._probed(stack)
            self.model.train()
            self._end_epoch()  # of which a signal came between
            while self._at.step < self.steps:
                asked, due = self._update()
                self._end_epoch()
                if asked:
                    self._save()
                    raise Stopped(asked, self._at.step)
                if due:
                    self._save()
            return self._finish()

    def _probed(self, stack: ExitStack) -> Probe | None:
        if not (self.config.probe and self.group.leads):
            return None
        learner = self.learner
        probe = Probe(self.model, optimizer=learner.optimizer, every=self.config.probe)
        stack.enter_context(probe)
        if self._journal is not None and self._journal.writer is not None:
            probe.log_to(self._journal.counting_from(self.began))
        return probe

    def _update(self) -> tuple[int, bool]:
        """One; the signal that asks for an end, and whether it is time to save."""
        at, learner = self._at, self.learner
        start, rate = time.perf_counter(), learner.learning_rate
        loss, hits = self._gradients()
        norm = learner.gradient_norm()
        late = time.monotonic() - self._saved_time >= self.config.save_every
        rows = self.group.rows([loss, hits, self._stop(), late])
        loss, hits = rows[:, 0].sum().item(), int(rows[:, 1].sum())
        if not math.isfinite(loss) or not (learner.scaled or norm.isfinite()):
            raise self._diverged(loss, float(norm))
        learner.update(norm)
        at.step += 1
        took = time.perf_counter() - start
        at.seconds += took
        size = self.config.recipe.batch_size
        told = {"loss": loss, "accuracy": hits / size, "images_per_second": size / took}
        if self._journal is not None:
            epoch = at.step / self.feed.steps_per_epoch
            shown = {"learning_rate": rate, "gradient_norm": _plain(norm)}
            self._journal.write("train", at.step, epoch=epoch, **told, **shown)
        self._progress(**told)
        return int(rows[:, 2].max()), bool(rows[0, 3])

    def _gradients(self) -> tuple[float, int]:
        try:
            return self.learner.gradients(self.feed.parts(self._at.step))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            recipe = self.config.recipe
            raise UsageError(
                f"got {error}: a pass of {recipe.batch_size // recipe.accumulate} image(s) on "
                f"{self.group.size} process(es) leaves a norm one value, hence no variance; "
                "wanted two or more. Take a larger --batch-size, fewer --accumulate or processes, "
                "or --norm sync or group:8"
            ) from error

    def _diverged(self, loss: float, norm: float) -> TrainingError:
        """All processes come here together."""
        step, folder = self._at.step, self.checkpoints.folder
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        layer = culprit(self.learner, self.feed.parts(step), self.group, math.isfinite(loss))
        kept = f". The last checkpoint in {folder} is of before" if folder.is_dir() else ""
        told = (
            f"got {what} in step {step + 1} (epoch {step // self.feed.steps_per_epoch + 1}); "
            f"the first that is not finite is {layer}. Wanted finite numbers: take a smaller --lr "
            f"(now {self.learner.learning_rate:.3g}), --clip-norm, a longer --warmup-epochs, or "
            f"--amp none{kept}"
        )
        return TrainingError(told) if self.group.leads else ToldError(told)

    def _end_epoch(self) -> None:
        """See to the end of an epoch, if there is one that was not seen to."""
        at = self._at
        epoch, rest = divmod(at.step, self.feed.steps_per_epoch)
        if rest or epoch == at.validated:
            return
        self._agree()
        best: dict[str, Any] = {"epoch": epoch}
        if len(self.sets.validation):
            found = self._evaluated(self.learner.delivered, *self.sets.validating)
            here = {"epoch": epoch, "accuracy": found.accuracy, "loss": _plain(found.loss)}
            if self._journal is not None:
                self._journal.write("validation", at.step, **here)
            self._note(
                f"epoch {epoch}: {found.accuracy:.2%} of {found.count:,} validation images right"
                + (f", {found.not_finite:,} without an answer" if found.not_finite else "")
            )
            best = {} if at.best and found.accuracy <= at.best["accuracy"] else here
        if best:
            mark = digest(self.learner.delivered.state_dict()) if self.group.leads else ""
            at.best = {**best, "digest": mark}
        at.validated = epoch
        self._save()
        if best:
            self._write("best")
        self._write("last")

    def _evaluated(self, model: nn.Module, x: Any, y: Tensor) -> Evaluation:
        def go_on() -> None:
            if self.group.size == 1 and self._stop():
                raise _Enough

        before = chance(self.group.device)
        try:
            return evaluate(
                model,
                x,
                y,
                num_classes=len(self.sets.images.classes),
                autocast=_DTYPES[self.config.amp],
                device=self.group.device,
                keep_going=go_on,
            )
        except _Enough:
            set_chance(before, self.group.device)
            self._save()
            raise Stopped(self._stop(), self._at.step) from None

    def _agree(self) -> None:
        """Running statistics are each process's own until they are used or saved."""
        share_statistics_(self.model)
        if self.learner.average is not None:
            share_statistics_(self.learner.average.module)

    def _write(self, name: str) -> None:
        if self.group.leads:
            self.weights.write(name, self.learner.delivered)

    def _save(self) -> None:
        """A checkpoint; every process takes part."""
        now = self._at.step, self._at.validated
        if now == self._saved_at:
            return
        self._saved_at = now
        self._agree()
        states = self.group.objects(chance(self.group.device))
        if self.group.leads:
            state = snapshot(self.config, self._fingerprint, self.learner, vars(self._at), states)
            self.checkpoints.save(state, step=self._at.step)
        self._saved_time = time.monotonic()

    def _finish(self) -> dict[str, Any]:
        """The test images are looked at here for the first time."""
        if not self._at.best:  # it was lost
            self._at.best = {"epoch": self._at.validated}
            self._write("best")
        best, last = self._best(), self.learner.delivered
        sets, found = self.sets, {}
        for name, model in (("best", best), ("last", last)):
            found[name] = _told(self._evaluated(model, sets.test_x, sets.test_y))
        result = {
            "model": self.config.model,
            "data": self.config.data,
            "norm": self.config.norm,
            "epochs": self.config.recipe.epochs,
            "steps": self.steps,
            "seconds": round(self._at.seconds, 1),
            "processes": self.group.size,
            "threads": torch.get_num_threads(),
            "images": {"train": len(sets.rows), "validation": len(sets.validation)},
            "best": {k: v for k, v in self._at.best.items() if k != "digest"},
            "test": found,
        }
        if self._journal is not None:
            for name, values in found.items():
                scalars = {"accuracy": values["accuracy"], "loss": values["loss"]}
                self._journal.write("test", self._at.step, weights=name, **scalars)
            write_whole(self.folder / RESULT, json.dumps(result, indent=2) + "\n")
        return result

    def _best(self) -> nn.Module:
        model = deepcopy(self.learner.delivered)
        model.load_state_dict(
            self.group.first(self.weights.read("best") if self.group.leads else None)
        )
        return model

    def _progress(self, **told: float) -> None:
        if self.group.leads:
            self._tell(self._here(**told))

    def _note(self, text: str) -> None:
        if self.group.leads:
            self._tell(replace(self._here(), note=text))

    def _here(self, **told: Any) -> Progress:
        feed = self.feed
        return Progress(
            self._at.step,
            self.steps,
            feed.recipe.epochs,
            feed.steps_per_epoch,
            feed.recipe.batch_size,
            **told,
        )


def _told(found: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "loss": _plain(found.loss),
        "images": found.count,
    }


def _plain(value: float | Tensor) -> float | None:
    """A number, or None, which JSON has for what is none."""
    number = float(value)
    return number if math.isfinite(number) else None
