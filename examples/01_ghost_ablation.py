"""The ablation of the GhostNet paper (Han et al. 2020, tables 3 to 5) on small images.

    python examples/01_ghost_ablation.py                        # minutes to hours: see --help
    python examples/01_ghost_ablation.py --data hf:FOLDER --images 6000 --epochs 4 --seeds 5

VGG-16 against Ghost-VGG-16: kernels d of the cheap operation, ratios s, places of the norm,
starting weights. Each run is a line of OUT/records.jsonl as soon as it has ended; OUT/meta.json
says what was asked. The page, a table and a verdict on each claim, is drawn from these two alone.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from spiritlevel.data import Prepared, load, prepare
from spiritlevel.errors import RecordsError, SpiritlevelError, UsageError
from spiritlevel.files import write_whole
from spiritlevel.kernels import backend, tune_allocator
from spiritlevel.models import create_model
from spiritlevel.models.counts import counted
from spiritlevel.models.published import published
from spiritlevel.study import environment
from spiritlevel.study.records import Cell, Record, RecordFile, Records, read_json, write_json
from spiritlevel.study.stats import Interval, mean_interval
from spiritlevel.train import Recipe, fit, init_, published_recipe, score

GHOST = {"model": "ghost_vgg16", "s": 2, "d": 3, "placement": "per-branch", "init": "torch"}
ROWS: dict[str, dict[str, Any]] = {
    "VGG-16": {"model": "vgg16", "init": "torch"},
    "Ghost, s = 2, d = 3": GHOST,
    "d = 1": GHOST | {"d": 1},
    "d = 5": GHOST | {"d": 5},
    "d = 7": GHOST | {"d": 7},
    "s = 3": GHOST | {"s": 3},
    "s = 4": GHOST | {"s": 4},
    "s = 5": GHOST | {"s": 5},
    "norm, activation after the concatenation": GHOST | {"placement": "post-concat"},
    "norm in both places": GHOST | {"placement": "both"},
    "no norm": GHOST | {"placement": "none"},
    "He's start": GHOST | {"init": "he"},
    "He's start, no norm": GHOST | {"init": "he", "placement": "none"},
}
"""What differs from the second row, which is the paper's choice."""
_OURS = "Ghost, s = 2, d = 3"
CLAIMS: dict[str, list[tuple[str, str]]] = {
    "Ghost-VGG-16 (s = 2, d = 3) beats VGG-16": [(_OURS, "VGG-16")],
    "d = 3 is the best of 1, 3, 5, 7": [(_OURS, "d = 1"), (_OURS, "d = 5"), (_OURS, "d = 7")],
    "accuracy falls with each s from 2 to 5": [
        (_OURS, "s = 3"),
        ("s = 3", "s = 4"),
        ("s = 4", "s = 5"),
    ],
    "s = 2 beats s = 5": [(_OURS, "s = 5")],
    "norm and activation after each branch beat those after the concatenation": [
        (_OURS, "norm, activation after the concatenation")
    ],
    "a norm after each branch beats norms in both places": [(_OURS, "norm in both places")],
    "a norm after each branch beats none": [(_OURS, "no norm")],
    "He's starting weights beat torch's": [("He's start", _OURS)],
    "He's starting weights beat torch's, without norms": [("He's start, no norm", "no norm")],
}
"""Claim -> pairs of rows of which the first is said to be the more accurate."""
RULE = (
    "Rule, written before the run: a difference is of accuracies with the same seed, with its 95 % "
    "interval over seeds. A claim holds (*yes*) if the interval of each of its differences lies "
    "above 0, does not (*no*) if that of any lies below; else these runs *cannot tell*."
)


def main(words: list[str] | None = None) -> int:
    asked = _options().parse_args(words)
    try:
        records, meta = run(asked)
        page = asked.page or asked.out / "ablation.md"
        write_whole(page, draw(meta, records))
    except SpiritlevelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(records)} records in {asked.out}, the page in {page}", flush=True)
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    add = options.add_argument
    add("--data", default="mnist5k", help="any source of spiritlevel.data.load (mnist5k)")
    add("--label", help="what the page calls the images (their name)")
    add("--out", type=Path, default=Path("runs/ghost-ablation"), help="(runs/ghost-ablation)")
    add("--page", type=Path, help="the page to write (OUT/ablation.md)")
    add("--images", type=int, default=4000, help="training images at most (4000)")
    add("--epochs", type=int, default=4, help="of each run (4)")
    add("--seeds", type=int, help="runs of each row; 3 or more have intervals (3)")
    add("--width", type=float, default=0.125, help="share of VGG-16's channels (0.125)")
    add("--jobs", type=int, default=1, help="processes, of one thread each (1)")
    add(
        "--resume",
        action="store_true",
        help="finish OUT by its own settings, but with these "
        "--data, which have to be the same, --jobs and, where given, --seeds",
    )
    return options


def run(asked: argparse.Namespace) -> tuple[Records, dict[str, Any]]:
    """Do the runs that OUT lacks. Raises UsageError, DataError, RecordsError, MissingExtra."""
    if not 0 < asked.width <= 4:
        raise UsageError(f"got --width {asked.width}; wanted a share above 0, at most 4")
    for name in ("images", "epochs", "seeds", "jobs"):
        given = getattr(asked, name)
        if given is not None and given < 1:
            raise UsageError(f"got --{name} {given}; wanted 1 or more")
    images = load(asked.data)
    meta = _resumed(asked, images.fingerprint) if asked.resume else _begun(asked, images)
    meta["seeds"] = asked.seeds or meta.get("seeds", 3)
    meta["command"] = _command(asked, meta)
    meta["environment"] = environment.describe(jobs=asked.jobs, threads=1, kernels="aten")
    meta["counted"] = {name: sizes(row, meta) for name, row in ROWS.items()}
    write_json(asked.out / "meta.json", meta)
    file = RecordFile.open(asked.out / "records.jsonl")
    try:
        todo = [cell for cell in cells(meta) if cell.key not in file.records.done()]
        print(f"{len(todo)} runs to do, {len(file.records.done())} done", flush=True)
        for record in _done(todo, asked, meta):
            file.append(record)
            assert record.result is not None
            told = f"{100 * record.result['accuracy']:.1f} %"
            print(f"{record.key}: {told} in {record.seconds:.0f} s", flush=True)
    finally:
        file.close()
    return file.records, meta


def _begun(asked: argparse.Namespace, images: Any) -> dict[str, Any]:
    if (asked.out / "records.jsonl").exists():
        raise RecordsError(f"got {asked.out}, which holds a run; add --resume, or change --out")
    asked.out.mkdir(parents=True, exist_ok=True)
    return {
        "data": asked.label or images.name,
        "counts": {
            "train": min(asked.images, len(images.train_y)),
            "test": len(images.test_y),
        },
        "classes": len(images.classes),
        "channels": images.channels,
        "size": images.size,
        "fingerprint": images.fingerprint,
        "width": asked.width,
        "recipe": the_recipe(asked.epochs).to_dict(),
    }


def _command(asked: argparse.Namespace, meta: Mapping[str, Any]) -> str:
    """What does all of it again. Where the images lie says nothing."""
    kind, colon, _ = asked.data.partition(":")
    options = {
        "data": f"{kind}:FOLDER" if colon else kind,
        "label": shlex.quote(meta["data"]),
        "images": meta["counts"]["train"],
        "epochs": meta["recipe"]["epochs"],
        "seeds": meta["seeds"],
        "width": meta["width"],
        "jobs": asked.jobs,
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python examples/01_ghost_ablation.py {told}"


def _resumed(asked: argparse.Namespace, fingerprint: str) -> dict[str, Any]:
    meta = read_json(asked.out / "meta.json")
    if meta.get("fingerprint") != fingerprint:
        raise RecordsError(
            f"got images from {asked.data} that are not those of {asked.out}; wanted the same: "
            "give the --data that it began with"
        )
    return meta


def the_recipe(epochs: int) -> Recipe:
    """The author's for VGG-16 on CIFAR-10, but for what 400 epochs have and a few do not."""
    return replace(
        published_recipe("vgg-cifar"),
        epochs=epochs,
        batch_size=64,
        nesterov=True,
        label_smoothing=0.1,
        schedule="cosine",
        milestones=(),
        warmup_epochs=min(1.0, epochs / 4),
    )


def cells(meta: dict[str, Any]) -> list[Cell]:
    """Seed by seed, so that what there is at any moment can be compared."""
    rows = ROWS.values()
    return [Cell("ablation", row | {"seed": seed}) for seed in range(meta["seeds"]) for row in rows]


def _done(todo: list[Cell], asked: argparse.Namespace, meta: dict[str, Any]) -> Iterator[Record]:
    if asked.jobs == 1:
        _set_up()
        for cell in todo:
            yield _measured(cell, asked.data, meta)
        return
    spawn = multiprocessing.get_context("spawn")  # forked threads of torch would hang
    pool = ProcessPoolExecutor(asked.jobs, spawn, _set_up, (os.getpid(),))
    try:
        futures = [pool.submit(_measured, cell, asked.data, meta) for cell in todo]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _set_up(parent: int = 0) -> None:
    """A worker computes on one thread, and not for a parent that is gone."""
    torch.set_num_threads(1)
    tune_allocator()
    if parent:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@lru_cache(maxsize=1)
def _prepared(data: str) -> Prepared:
    return prepare(load(data))


def _measured(cell: Cell, data: str, meta: dict[str, Any]) -> Record:
    """Train one network from its seed, and score it on all test images."""
    images, count = _prepared(data), meta["counts"]["train"]
    recipe = replace(Recipe.from_dict(meta["recipe"]), init=cell.settings["init"])
    start = time.perf_counter()
    with backend.use("aten"):  # no figure then hangs on what is installed
        torch.manual_seed(cell.settings["seed"])
        model = init_(built(cell.settings, meta), recipe)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, y = images.train_x[:count], images.train_y[:count]
        fitted = fit(model, x, y, recipe, seed=cell.settings["seed"])
        found = score(model, images.test_x, images.test_y)
    result = {
        "accuracy": found.accuracy,
        "loss": found.loss if math.isfinite(found.loss) else None,
        "train_loss": fitted.curve.loss[-1],
        "diverged_at": fitted.curve.diverged_at,
    }
    seconds = round(time.perf_counter() - start, 1)
    return Record(cell.key, cell.task, dict(cell.settings), result, None, seconds)


def built(row: Mapping[str, Any], meta: Mapping[str, Any]) -> torch.nn.Module:
    options = {name: row[name] for name in ("s", "d", "placement") if name in row}
    return create_model(
        row["model"], meta["classes"], "batch", meta["channels"], width=meta["width"], **options
    )


def draw(meta: dict[str, Any], records: Records) -> str:
    """The page, from what a run wrote of the seeds that it was asked for."""
    planned = {cell.key for cell in cells(meta)}
    records = Records(record for record in records if record.key in planned)
    unused = {"init", "eps", "gamma"}  # of other optimizers and schedules
    kept = {n: value for n, value in meta["recipe"].items() if value and n not in unused}
    recipe = ", ".join(f"{name} = {value}" for name, value in kept.items())
    counts, there = meta["counts"], meta["environment"]
    lines = [
        "# The GhostNet paper's ablation, on small images",
        "",
        f"VGG-16 at {meta['width']:g} of its width, plain and with Ghost modules, on "
        f"{counts['train']:,} images of {meta['data']}, {meta['size']} pixels a side, scored on "
        f"{counts['test']:,} others. The paper's figures, of full width and long training on "
        "CIFAR-10, stand beside for their order, not for their height. Runs of a few epochs favour "
        "what learns fast, whatever it would reach in the end: a claim that fails here fails for "
        "such runs.",
        "",
        "## What of it is seen here",
        "",
        RULE,
        "",
        "| claim | here | differences in points, with their intervals |",
        "|---|---|---|",
        *(_verdict(claim, pairs, meta, records) for claim, pairs in CLAIMS.items()),
        "",
        "## Accuracy",
        "",
        "In per cent: the mean over seeds and its 95 % interval (Student's t below 8 seeds). "
        "Parameters and multiply-adds of an image, in millions, are counted on the network here.",
        "",
        "| network | accuracy | parameters | multiply-adds | the paper's accuracy | weights "
        "| multiply-adds |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, meta, records) for name in ROWS),
        "",
        "## How it was run",
        "",
        f"```console\n$ {meta['command']}\n```",
        "",
        f"Recipe (what is off is left out): {recipe}. {records.seconds():,.0f} s in "
        f"{len(records)} runs, {there['workers']} at a time on {there['cores']} cores; "
        f"torch {there['torch']}, {there['processor']}.",
        "",
    ]
    return "\n".join(lines)


def _verdict(
    claim: str, pairs: list[tuple[str, str]], meta: dict[str, Any], records: Records
) -> str:
    found = [_difference(better, worse, records) for better, worse in pairs]
    told = [
        f"{_short(better)} − {_short(worse)}: {_points(interval)}{_at_chance(worse, meta, records)}"
        for (better, worse), interval in zip(pairs, found, strict=True)
    ]
    return f"| {claim} | **{judged(found)}** | {'; '.join(told)} |"


def _at_chance(name: str, meta: dict[str, Any], records: Records) -> str:
    """A word where none of the row's runs has learned, so that what it lost by says little."""
    found = _accuracies(name, records).values()
    stuck = found and max(found) < 100 / meta["classes"] + 1
    return ", the latter at chance in every run" if stuck else ""


def judged(differences: list[Interval | None]) -> str:
    """By `RULE`."""
    known = [found for found in differences if found is not None]
    if any(found.high < 0 for found in known):
        return "no"
    if len(known) == len(differences) and all(found.low > 0 for found in known):
        return "yes"
    return "cannot tell"


def _accuracies(name: str, records: Records) -> dict[int, float]:
    """seed -> per cent."""
    found = records.by_seed("ablation", **ROWS[name])
    return {seed: 100 * result["accuracy"] for seed, result in found.items()}


def _difference(better: str, worse: str, records: Records) -> Interval | None:
    first, second = _accuracies(better, records), _accuracies(worse, records)
    return mean_interval([first[seed] - second[seed] for seed in sorted(first.keys() & second)])


def _short(name: str) -> str:
    return "s = 2, d = 3" if name == _OURS else name


def _points(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    value, low, high = (_signed(each) for each in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _row(name: str, meta: dict[str, Any], records: Records) -> str:
    found = mean_interval(list(_accuracies(name, records).values()))
    here = "–" if found is None else f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})"
    parameters, millions = meta["counted"][name]
    told = [name, here, f"{parameters:.3f}", f"{millions:.2f}", *papers(ROWS[name])]
    return "| " + " | ".join(told) + " |"


def sizes(row: Mapping[str, Any], meta: Mapping[str, Any]) -> list[float]:
    """Millions of parameters, and of multiply-adds of convolutions and linear layers an image."""
    with torch.device("meta"):
        found = counted(built(row, meta), meta["size"], meta["channels"])
    return [found.parameters / 1e6, found.multiply_adds / 1e6]


def papers(row: Mapping[str, Any]) -> list[str]:
    """Accuracy in per cent on CIFAR-10, millions of weights and of multiply-adds at full width."""
    for told in published(row["model"]):
        same = all(told.options.get(name) == row.get(name) for name in ("s", "d"))
        if same and row.get("placement", "per-branch") == "per-branch" and row["init"] == "torch":
            top1 = f"{told.accuracies[0].top1:.1f}"
            return [top1, f"{told.parameters:g}", f"{told.multiply_adds:g}"]
    return ["–"] * 3


if __name__ == "__main__":
    sys.exit(main())
