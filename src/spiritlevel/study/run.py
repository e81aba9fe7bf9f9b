"""One study from plan to records: begin or resume a run's folder, do the cells that are missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritlevel import __version__
from spiritlevel.data import Images, load
from spiritlevel.errors import DataError, RecordsError, UsageError
from spiritlevel.study import engine, environment
from spiritlevel.study.claims import CLAIMS, rules
from spiritlevel.study.claims.regularises import NOISY
from spiritlevel.study.config import Plan, plan_epochs
from spiritlevel.study.examples import example_cells
from spiritlevel.study.factory import Factory, load_factory
from spiritlevel.study.networks import network
from spiritlevel.study.records import Cell, Record, RecordFile, read_json, write_json
from spiritlevel.study.tasks import TASKS
from spiritlevel.study.tasks.gap import MIN_IMAGES

if TYPE_CHECKING:
    from spiritlevel.study.cluster import Cluster

__all__ = [
    "CONFIG",
    "ENVIRONMENT",
    "RECORDS",
    "Progress",
    "Run",
    "all_cells",
    "begin",
    "cost",
    "do_cells",
    "read_config",
    "resume",
]

CONFIG, ENVIRONMENT, RECORDS = "config.json", "environment.json", "records.jsonl"


@dataclass(frozen=True)
class Progress:
    """Told once before the first cell and after each: what is done, of how much."""

    folder: Path
    done: int
    cells: int
    share: float
    """Of the estimated work, 0 to 1."""
    record: Record | None = None
    torn: str | None = None
    """The beginning of a torn last line that was dropped, its cell to be done again."""
    notes: tuple[str, ...] = ()
    """Of the images, told before the first cell: what was changed as they were read."""


@dataclass(frozen=True)
class Run:
    """A run's folder, begun or resumed."""

    folder: Path
    plan: Plan
    images: Images
    config: dict[str, Any]
    factory: Factory | None = None
    """Of the user's own network."""


def all_cells(plan: Plan) -> list[Cell]:
    """Every cell that the claims and the worked examples need, each once."""
    cells = {cell.key: cell for module in CLAIMS.values() for cell in module.cells(plan)}
    cells |= {cell.key: cell for cell in example_cells(plan)}
    assert all(cell.task in TASKS for cell in cells.values())
    return list(cells.values())


def begin(
    plan: Plan,
    folder: Path,
    command: str,
    *,
    epochs: float | None = None,
    factory: Factory | None = None,
) -> Run:
    """Write what is asked, and the rules of the verdicts, before anything is measured.

    Raises RecordsError where the folder holds a run already, DataError for images of no use, and
    UsageError for kernels that cannot be had.
    """
    if (folder / RECORDS).exists() or (folder / CONFIG).exists():
        raise RecordsError(
            f"got {folder}, which holds a run already; "
            "go on with it by --resume, or choose another --out"
        )
    engine.kernels()  # raises for what cannot be had
    images = _load(plan)
    if len(images.train_y) < MIN_IMAGES:
        raise DataError(
            f"got {len(images.train_y)} training images from {plan.data}; wanted at least "
            f"{MIN_IMAGES}, which the runs on overfitting draw. Add images, or choose other data"
        )
    if epochs is not None:
        plan = plan_epochs(plan, epochs, len(images.train_y))
    _try_out(plan, images, factory)
    config = {
        "version": __version__,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "plan": plan.to_json(),
        "rules": rules(),
        "data": images.describe(),
        "cells": len(all_cells(plan)),
        "code": None if factory is None else factory.digest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise RecordsError(
            f"got {error.strerror or error} at {folder}; "
            "wanted a folder to write to: choose another --out"
        ) from error
    return Run(folder, plan, images, config, factory)


def _load(plan: Plan) -> Images:
    images = load(plan.data, image_size=plan.image_size or None)
    for name, given in (("mean", plan.mean), ("std", plan.std)):
        if given and len(given) != images.channels:
            raise UsageError(
                f"got {name} {', '.join(map(str, given))} for images of {images.channels} "
                f"channel(s) from {plan.data}; wanted one number for each channel"
            )
    return images


def _try_out(plan: Plan, images: Images, factory: Factory | None) -> None:
    """Build the user's network with every norm it will be asked for, before hours are spent."""
    if factory is None:
        return
    side = min(plan.size, images.size)
    for norm in dict.fromkeys((*plan.norms, "noisy-batch", NOISY, "layer")):
        factory.build(
            num_classes=len(images.classes), in_chans=images.channels, norm=norm, image_size=side
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Raises RecordsError where it is missing, or not as `begin` wrote it."""
    config = read_json(folder / CONFIG)
    wanted = {
        "version": str,
        "began": str,
        "command": str,
        "plan": dict,
        "rules": dict,
        "data": dict,
        "cells": int,
    }
    odd = [name for name, kind in wanted.items() if not isinstance(config.get(name), kind)]
    if odd:
        raise RecordsError(
            f"got {folder / CONFIG} with {', '.join(odd)} missing or of another kind; "
            "wanted what the run wrote: restore it, or start a new run"
        )
    Plan.from_json(config["plan"])
    return config


def resume(folder: Path, factory: Factory | None = None) -> Run:
    """The run in `folder`, to be finished. Raises RecordsError if none or if its images changed.

    `factory` is needed where the user's network is a function that no module holds.
    """
    config = read_config(folder)
    plan = Plan.from_json(config["plan"])
    own = [name for name in plan.networks if ":" in name]
    if own and factory is None:
        factory = load_factory(own[0])
    if factory is not None and own != [factory.spec]:
        raise UsageError(
            f"got model {factory.spec} for a run of {', '.join(own) or 'no model of your own'}; "
            "wanted the same: leave it out, or start a new run"
        )
    if factory is not None and config.get("code") != factory.digest():
        raise RecordsError(
            f"got {factory.file}, or a file that it imports, which has changed since this run of "
            f"{factory.spec} began; "
            "wanted one network in all records: put it back, or start a new run"
        )
    images = _load(plan)
    if images.fingerprint != config["data"]["fingerprint"]:
        raise RecordsError(
            f"got images from {plan.data} that differ from those this run began with; "
            "wanted the same. Start a new run for the new images."
        )
    return Run(folder, plan, images, config, factory)


def do_cells(
    run: Run,
    *,
    jobs: int | None,
    tell: Callable[[Progress], None],
    cluster: Cluster | None = None,
) -> None:
    """Run what has no result yet, record by record; on return every cell has a record.

    On `jobs` processes of this machine (None: one a core), or on the cluster's workers, of which
    at most `jobs` are kept busy.
    """
    plan = run.plan
    processes = jobs or environment.usable_cores()
    described = environment.describe(
        jobs=processes, threads=plan.threads, kernels=engine.kernels()
    ) | (cluster.describe() if cluster else {})
    write_json(run.folder / ENVIRONMENT, described)
    cells = all_cells(plan)
    file = RecordFile.open(run.folder / RECORDS)
    try:
        done = file.records.done()
        todo = [cell for cell in cells if cell.key not in done]
        total = sum(map(cost, cells))
        spent = total - sum(map(cost, todo))
        finished = len(cells) - len(todo)
        first = Progress(run.folder, finished, len(cells), spent / total, torn=file.torn)
        tell(replace(first, notes=run.images.notes))
        costs = {cell.key: cost(cell) for cell in todo}
        given: dict[str, Any] = {"threads": plan.threads, "cost": cost, "factory": run.factory}
        if cluster is None:
            results = engine.run_cells(
                todo, run.images, jobs=processes, scratch=run.folder, **given
            )
        else:
            results = cluster.run_cells(todo, run.images, jobs=jobs, **given)
        with closing(results):  # a full disk, too, must not leave workers behind
            for record in results:
                file.append(record)
                finished, spent = finished + 1, spent + costs[record.key]
                tell(Progress(run.folder, finished, len(cells), spent / total, record))
    finally:
        file.close()


def cost(cell: Cell) -> float:
    """Rough seconds of one core, for order and progress; nothing else depends on it."""
    settings = cell.settings
    if "network" not in settings:
        return 0.5
    images = settings.get("batch_size", 64) * network(settings["network"]).cost
    step = 0.00025 * images * (settings.get("size", 32) / 14) ** 2
    steps = settings.get("steps", 1)
    if cell.task == "landscape":  # 5 passes along the gradient and one for each layer that is read
        steps += 12 * steps / settings["every"]
    if cell.task == "noise":
        steps += settings["images"] * settings["draws"] * sum(settings["sizes"]) / 200
    if cell.task == "gap" and not settings["noise"]:
        step *= settings["images"] / settings["batch_size"]
    if cell.task == "scaling":
        steps = 100
    return 0.1 + float(step * steps)
