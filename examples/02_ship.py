"""Train a GhostNet, and ship it: recalibrated, folded, exported in every form, each held to it.

    python examples/02_ship.py                            # minutes, on MNIST's digits
    python examples/02_ship.py --data hf:FOLDER --label 'CIFAR-10 (JPEG)' --epochs 3

Each form is run on the whole test split beside the network in PyTorch. OUT/ship.json says what was
found; the page OUT/ship.md is drawn from it alone. OUT/weights.safetensors is the trained network:
with --resume it is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spiritlevel as sl
from spiritlevel.data import Images, Pixels, Prepared, load, prepare
from spiritlevel.errors import ExportError, RecordsError, SpiritlevelError, UsageError
from spiritlevel.export import ExportReport, Normalization
from spiritlevel.files import write_whole
from spiritlevel.kernels import tune_allocator
from spiritlevel.models.weights import load_weights, read_metadata, save_weights
from spiritlevel.study import environment
from spiritlevel.study.records import write_json
from spiritlevel.train import Recipe, fit, published_recipe, score

FORMS: dict[str, dict[str, Any]] = {
    "ONNX": {"file": "ghostnet.onnx"},
    "torch.export": {"file": "ghostnet.pt2"},
    "OpenVINO": {"file": "ghostnet.xml"},
    "OpenVINO, bfloat16": {"file": "ghostnet-bf16.xml", "precision": "bfloat16"},
    "ONNX, int8": {"file": "ghostnet-int8.onnx", "to": "int8"},
}
"""Name -> the file, and what `sl.export` is asked for."""
CALIBRATION = 512
"""Training images that int8 takes its ranges from."""
RECALIBRATION = 2500
"""Training images that the running statistics are taken of."""
_BATCH = 250
_MOST = 20
"""Changed samples that the page lists of one form."""


def main(words: list[str] | None = None) -> int:
    asked = _options().parse_args(words)
    try:
        found = run(asked)
        page = asked.page or asked.out / "ship.md"
        write_whole(page, draw(found))
    except SpiritlevelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{asked.out / 'ship.json'}, the page in {page}", flush=True)
    return 0 if all(form["ok"] for form in found["forms"].values()) else 1


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    add = options.add_argument
    add("--data", default="mnist5k", help="any source of spiritlevel.data.load (mnist5k)")
    add("--label", help="what the page calls the images (their name)")
    add("--out", type=Path, default=Path("runs/ship"), help="(runs/ship)")
    add("--page", type=Path, help="the page to write (OUT/ship.md)")
    add("--model", default="ghostnet_050", help="any model of sl.create_model (ghostnet_050)")
    add("--epochs", type=int, default=3, help="of training (3)")
    add("--images", type=int, help="training images at most (all)")
    add("--resume", action="store_true", help="take OUT/weights.safetensors where it is there")
    return options


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Train, recalibrate, export; what was found. Raises UsageError, DataError, RecordsError."""
    for name in ("images", "epochs"):
        given = getattr(asked, name)
        if given is not None and given < 1:
            raise UsageError(f"got --{name} {given}; wanted 1 or more")
    tune_allocator()
    images = load(asked.data)
    data = prepare(images)
    count = min(asked.images or len(data.train_x), len(data.train_x))
    asked.out.mkdir(parents=True, exist_ok=True)
    model = _trained(asked, data, count)
    before = score(model, data.test_x, data.test_y).accuracy
    print(f"{before:.2%} right as trained; recalibrating", flush=True)
    again = list(_drawn(data, count, RECALIBRATION))
    sl.recalibrate(model, again, accuracy=False)
    found: dict[str, Any] = {
        "data": asked.label or images.name,
        "counts": {"train": count, "test": len(data.test_x)},
        "model": asked.model,
        "recipe": the_recipe(asked.epochs).to_dict(),
        "command": _command(asked, images, count),
        "environment": environment.describe(
            jobs=1, threads=torch.get_num_threads(), kernels="auto"
        ),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {
            "trained": before,
            "recalibrated": score(model, data.test_x, data.test_y).accuracy,
        },
        "forms": {},
    }
    for name, form in FORMS.items():
        found["forms"][name] = _exported(model, asked.out, images, data, count, **form)
        write_json(asked.out / "ship.json", found)
    return found


def the_recipe(epochs: int) -> Recipe:
    """The author's for GhostNet on ImageNet, but for what a few epochs on small images need."""
    return replace(
        published_recipe("ghostnet"),
        lr=0.1,
        epochs=epochs,
        batch_size=128,
        weight_decay=5e-4,
        label_smoothing=0.0,
        warmup_epochs=0.5,
        dropout=0.0,
    )


def _trained(asked: argparse.Namespace, data: Prepared, count: int) -> nn.Module:
    recipe, path = the_recipe(asked.epochs), asked.out / "weights.safetensors"
    kind = asked.data.partition(":")[0]
    asked_for = {"data": kind, "model": asked.model, "epochs": asked.epochs, "images": count}
    torch.manual_seed(0)
    model = sl.create_model(
        asked.model, data.num_classes, in_chans=data.channels, stem="cifar", drop_rate=0.0
    )
    if path.exists():
        if not asked.resume:
            raise RecordsError(f"got {asked.out}, which holds a run; add --resume, or change --out")
        told = path.with_name("trained.json")
        before = json.loads(told.read_text()) if told.exists() else None
        if before != asked_for or read_metadata(path).get("recipe") != recipe.to_dict():
            raise RecordsError(
                f"got {path}, trained by {before or 'another recipe'}; wanted {asked_for}. Give "
                "the same --data, --model, --epochs and --images, or another --out"
            )
        load_weights(model, path)
        return model.eval()
    print(f"training on {count:,} images for {asked.epochs} epochs", flush=True)
    start = time.perf_counter()
    sl.fuse(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = data.train_x[:count] if count < len(data.train_x) else data.train_x, data.train_y[:count]
    fit(model, x, y, recipe, seed=0, augment=asked.data not in ("mnist5k", "digits"))
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    write_json(path.with_name("trained.json"), asked_for)
    save_weights(model, path, recipe=recipe)
    return model.eval()


def _batches(x: Pixels | Tensor, y: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, most, _BATCH):
        end = min(start + _BATCH, most)
        yield x[start:end], y[start:end]


def _drawn(data: Prepared, count: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the training images that were used, so many of all classes."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
    for rows in order.split(_BATCH):
        yield data.train_x[rows], data.train_y[rows]


def _exported(
    model: nn.Module,
    out: Path,
    images: Images,
    data: Prepared,
    count: int,
    *,
    file: str,
    **options: Any,
) -> dict[str, Any]:
    """One form's record. A file that does worse than may be is none, and its record says so."""
    print(f"exporting {file}", flush=True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        try:
            report = sl.export(
                model,
                out / file,
                data.test_x[:2],
                batches=list(_batches(data.test_x, data.test_y, len(data.test_x))),
                calibration=list(_drawn(data, count, CALIBRATION)),
                classes=images.classes,
                normalization=Normalization(data.mean, data.std, data.size),
                **options,
            )
        except ExportError as error:
            if error.report is None:
                raise
            report = error.report
    found = _record(report, [str(each.message) for each in heard])
    print(f"{file}: accuracy {found['accuracy']:.2%}, {found['changed']} changed", flush=True)
    return found


def _record(report: ExportReport, warned: list[str]) -> dict[str, Any]:
    held = report.rows[-1]
    gaps = [each.gap for each in report.differs]
    return {
        "ok": report.ok,
        "why": "; ".join(row.why for row in report.rows if row.why),
        "runtime": report.runtime,
        "precision": held.kind,
        "bytes": report.bytes,
        "folded": report.folded,
        "left": len(report.left),
        "samples": report.samples,
        "accuracy": report.accuracy_file,
        "difference": held.difference,
        "milliseconds": {"PyTorch": report.ms_model, "file": report.ms_file},
        "changed": len(gaps),
        "ties": len(report.ties),
        "gap": {"median": statistics.median(gaps), "largest": max(gaps)} if gaps else None,
        "samples_changed": [
            {"sample": each.index, "model": each.model, "file": each.file, "gap": each.gap}
            for each in report.differs[:_MOST]
        ],
        "notes": [*report.notes, *dict.fromkeys(warned)],
    }


def _command(asked: argparse.Namespace, images: Images, count: int) -> str:
    kind, colon, _ = asked.data.partition(":")
    options = {
        "data": f"{kind}:FOLDER" if colon else kind,
        "label": shlex.quote(asked.label or images.name),
        "model": asked.model,
        "epochs": asked.epochs,
        "images": count,
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python examples/02_ship.py {told}"


def draw(found: Mapping[str, Any]) -> str:
    """The page, from the record of a run."""
    counts, accuracy = found["counts"], found["accuracy"]
    recipe = ", ".join(f"{name} = {value}" for name, value in found["recipe"].items() if value)
    there, forms = found["environment"], found["forms"]
    lines = [
        "# A GhostNet, shipped",
        "",
        f"{found['model']} with the CIFAR stem, {found['parameters']:,} parameters, trained on "
        f"{counts['train']:,} images of {found['data']} and held to {counts['test']:,} others in "
        f"each form. In PyTorch it gets {accuracy['trained']:.2%} of them right as trained, and "
        f"{accuracy['recalibrated']:.2%} with recalibrated statistics, which is what was exported.",
        "",
        "A sample is changed if the file puts it into another class than PyTorch does; its gap is "
        "that between PyTorch's two largest logits. A file of less precision may lose one point of "
        "accuracy; one in float32 may change no sample but ties, whose gap is 1e-4 or less. "
        "Milliseconds are of one image, the median, as the export took it: for how fast each form "
        "is, see `spiritlevel bench deploy`.",
        "",
        "| form | run by | computes in | accuracy | MB | ms, PyTorch | ms, file "
        "| samples changed | ties | median gap | largest gap | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, form) for name, form in forms.items()),
        "",
        *(line for name, form in forms.items() for line in _notes(name, form)),
        "## How it was run",
        "",
        f"```console\n$ {found['command']}\n```",
        "",
        f"Recipe (what is off is left out): {recipe}. torch {there['torch']}, "
        f"{there['processor']}.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, form: Mapping[str, Any]) -> str:
    gap = form["gap"] or {}
    cells = [
        name,
        form["runtime"],
        form["precision"],
        f"{form['accuracy']:.2%}",
        f"{form['bytes'] / 1e6:.2f}",
        *(f"{form['milliseconds'][who]:.1f}" for who in ("PyTorch", "file")),
        f"{form['changed']:,}",
        f"{form['ties']:,}",
        *(f"{gap[key]:.1e}" if gap else "–" for key in ("median", "largest")),
        "ok" if form["ok"] else f"refused: {form['why']}",
    ]
    return "| " + " | ".join(cells) + " |"


def _notes(name: str, form: Mapping[str, Any]) -> list[str]:
    told = list(form["notes"])
    if form["precision"] == "float32":
        told += [
            f"sample {each['sample']}: class {each['model']} in PyTorch, {each['file']} in the "
            f"file, gap {each['gap']:.1e}"
            for each in form["samples_changed"]
        ]
    return [f"{name}:", "", *(f"- {line}" for line in told), ""] if told else []


if __name__ == "__main__":
    sys.exit(main())
