"""Train on CIFAR-10: Ghost-ResNet-56 on two cores, or the paper's networks beside their twins.

    python examples/03_train_on_cifar10.py --data cifar10        # Ghost-ResNet-56 in 90 minutes
    python examples/03_train_on_cifar10.py --paper --epochs 100  # for a GPU: 4 networks, 3 seeds

Each run is one of `spiritlevel train`, in OUT/NETWORK-SEED: killed, the same command goes on with
it. OUT/cifar10.json says what was found; the page is drawn from it alone. The test images are
looked at once a run, by the weights that were best on validation images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spiritlevel.cli.progress import Steps
from spiritlevel.data import load
from spiritlevel.errors import SpiritlevelError, UsageError
from spiritlevel.files import write_whole
from spiritlevel.study import environment
from spiritlevel.study.records import write_json
from spiritlevel.study.stats import mean_interval
from spiritlevel.train.config import Config, house_recipe, stretched
from spiritlevel.train.start import run

EPOCHS = 10
"""Of Ghost-ResNet-56, which take two cores less than 90 minutes."""
PAPER = {"vgg16": "ghost_vgg16", "resnet56": "ghost_resnet56"}
"""Plain network -> its Ghost twin (Han et al. 2020, tables 3 and 5)."""
PRINTED = {"vgg16": 93.6, "ghost_vgg16": 93.7, "resnet56": 93.0, "ghost_resnet56": 92.7}
"""The paper's top-1 in per cent, after 400 epochs or so of CIFAR-10 as PNG."""


class Network(NamedTuple):
    """A run to be made."""

    name: str
    seed: int
    config: Config


def main(words: list[str] | None = None) -> int:
    asked = _options().parse_args(words)
    try:
        found = trained(asked)
        page = asked.page or asked.out / "cifar10.md"
        write_whole(page, draw(found))
    except SpiritlevelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{asked.out / 'cifar10.json'}, the page in {page}", flush=True)
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    add = options.add_argument
    add("--data", default="cifar10", help="any source of spiritlevel.data.load (cifar10)")
    add("--label", help="what the page calls the images (their name)")
    add("--paper", action="store_true", help="VGG-16 and ResNet-56, plain and Ghost")
    add("--epochs", type=int, help=f"({EPOCHS}; with --paper 100)")
    add("--seeds", type=int, help="runs of each network (1; with --paper 3)")
    add("--amp", default="none", help="none, bf16 or fp16 (none)")
    add("--out", type=Path, default=Path("runs/cifar10"), help="(runs/cifar10)")
    add("--page", type=Path, help="the page to write (OUT/cifar10.md)")
    return options


def networks(asked: argparse.Namespace) -> list[Network]:
    """The runs that are asked for. Raises UsageError."""
    epochs, seeds = (100, 3) if asked.paper else (EPOCHS, 1)
    epochs = epochs if asked.epochs is None else asked.epochs
    seeds = seeds if asked.seeds is None else asked.seeds
    if epochs < 1 or seeds < 1:
        raise UsageError(f"got --epochs {epochs}, --seeds {seeds}; wanted 1 or more")
    recipes = {"ghost_resnet56": replace(house_recipe(epochs), warmup_epochs=min(1, epochs / 5))}
    if asked.paper:
        vgg, resnet = stretched("vgg-cifar", epochs), stretched("resnet-cifar", epochs)
        recipes = {
            name: vgg if "vgg" in name else resnet for pair in PAPER.items() for name in pair
        }
    return [
        Network(
            name,
            seed,
            Config(
                name,
                asked.data,
                recipe,
                augment="crop-flip",
                validation=0.02,
                seed=seed,
                amp=asked.amp,
                probe=0 if asked.paper else 500,
                check=False,
            ),
        )
        for name, recipe in recipes.items()
        for seed in range(seeds)
    ]


def trained(asked: argparse.Namespace) -> dict[str, Any]:
    """Every run, made or gone on with; what was found. Raises SpiritlevelError."""
    runs = []
    for network in networks(asked):
        folder = asked.out / f"{network.name}-{network.seed}"
        with Steps() as bar:
            result = run(network.config, folder, resume=True, tell=bar.tell).result
        assert result is not None
        told = {key: value for key, value in result.items() if key != "data"}
        runs.append({"seed": network.seed, **told, "recipe": network.config.recipe.to_dict()})
        accuracy = result["test"]["best"]["accuracy"]
        print(f"{network.name}, seed {network.seed}: {accuracy:.2%}", flush=True)
    images = load(asked.data)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    found = {
        "data": asked.label or images.name,
        "counts": images.describe()["counts"],
        "accelerator": device,
        "environment": environment.describe(jobs=1, threads=threads, kernels="auto"),
        "runs": runs,
    }
    write_json(asked.out / "cifar10.json", found)
    return found


def draw(found: Mapping[str, Any]) -> str:
    """The page, from the record alone."""
    there = found["environment"]
    lines = [
        "# Trained on CIFAR-10",
        "",
        f"{found['counts']['train']:,} images of {found['data']}, of which 2 % chose the best "
        f"epoch's weights; {found['counts']['test']:,} others were looked at once, at the end. "
        "By `python examples/03_train_on_cifar10.py`, which goes on where it was killed.",
        "",
        "| network | seed | epochs | best of | right | 95 % interval | minutes of training |",
        "|---|--:|--:|--:|--:|---|--:|",
        *map(_row, found["runs"]),
        "",
        *_gaps(found["runs"]),
        f"On {found['accelerator'] or there['processor']}, {there['threads a cell']} thread(s), "
        f"torch {there['torch']}. Recipe (what is off is left out): "
        + "; ".join(dict.fromkeys(_recipe(each) for each in found["runs"]))
        + ".",
        "",
    ]
    return "\n".join(lines)


def _row(each: Mapping[str, Any]) -> str:
    best = each["test"]["best"]
    low, high = best["interval"]
    cells = [
        f"`{each['model']}`",
        str(each["seed"]),
        str(each["epochs"]),
        f"{each['best']['epoch']:.0f}",
        f"{best['accuracy']:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{each['seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _gaps(runs: list[Mapping[str, Any]]) -> list[str]:
    """Ghost against plain, paired by seed."""
    right: dict[str, dict[int, float]] = {}
    for each in runs:
        right.setdefault(each["model"], {})[each["seed"]] = 100 * each["test"]["best"]["accuracy"]
    lines = []
    for plain, ghost in PAPER.items():
        if not {plain, ghost} <= right.keys():
            continue
        pairs = [right[ghost][seed] - right[plain][seed] for seed in right[plain]]
        gap = mean_interval(pairs)
        told = "too few seeds for an interval"
        if gap is not None:
            told = f"{gap.value:+.2f} points ({gap.low:+.2f} to {gap.high:+.2f}, {gap.n} seeds)"
        printed = PRINTED[ghost] - PRINTED[plain]
        lines.append(f"- `{ghost}` against `{plain}`: {told}; in the paper {printed:+.1f}.")
    return [*lines, ""] if lines else []


def _recipe(each: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} = {value}" for name, value in each["recipe"].items() if value)
    return f"`{each['model']}` {told}"


if __name__ == "__main__":
    sys.exit(main())
