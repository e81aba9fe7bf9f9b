"""examples/03_train_on_cifar10.py: its page, and the script as a user runs it."""

from __future__ import annotations

import json

import pytest
from example_module import EXAMPLES, example

from spiritlevel.study.records import read_json

DOCS = EXAMPLES.parent / "docs"
cifar = example("03_train_on_cifar10")


def one(model, seed, accuracy):
    return {
        "model": model,
        "seed": seed,
        "epochs": 100,
        "seconds": 600.0,
        "best": {"epoch": 99},
        "test": {"best": {"accuracy": accuracy, "interval": [accuracy - 0.01, accuracy + 0.01]}},
        "recipe": {"lr": 0.1, "mixup": 0.0},
    }


def found(*runs):
    return {
        "data": "some images",
        "counts": {"train": 100, "test": 1000},
        "accelerator": "",
        "environment": {"torch": "2.13.0", "processor": "a processor", "threads a cell": "2"},
        "runs": list(runs),
    }


def test_gaps_are_paired_by_seed():
    runs = [one("vgg16", seed, 0.93 + 0.001 * seed) for seed in range(3)]
    runs += [one("ghost_vgg16", seed, 0.932 + 0.001 * seed) for seed in range(3)]
    page = cifar.draw(found(*runs))
    told = "- `ghost_vgg16` against `vgg16`: +0.20 points (+0.20 to +0.20, 3 seeds); in the paper"
    assert f"{told} +0.1." in page
    assert "| `vgg16` | 0 | 100 | 99 | 93.00% | 92.00% to 94.00% | 10 |" in page
    assert "`resnet56`" not in page
    assert "`vgg16` lr = 0.1;" in page


def test_of_two_seeds_there_is_no_interval():
    runs = [one(name, seed, 0.9) for name in ("resnet56", "ghost_resnet56") for seed in (0, 1)]
    assert "too few seeds for an interval; in the paper -0.3." in cifar.draw(found(*runs))


def test_its_page_is_of_its_record():
    record = read_json(DOCS / "cifar10.json")
    assert cifar.draw(record) == (DOCS / "cifar10.md").read_text()
    (run,) = record["runs"]
    assert run["test"]["best"]["images"] == 10_000
    assert run["test"]["best"]["accuracy"] >= 0.82
    assert run["seconds"] <= 90 * 60
    assert record["environment"]["threads a cell"] == "2"


@pytest.mark.slow
def test_the_script(tmp_path, capsys):
    out = tmp_path / "runs"
    words = ["--data", "digits", "--epochs", "1", "--out", str(out)]
    assert cifar.main(words) == 0
    first = json.loads((out / "cifar10.json").read_text())
    assert cifar.main(words) == 0
    again = json.loads((out / "cifar10.json").read_text())
    assert [run["test"] for run in first["runs"]] == [run["test"] for run in again["runs"]]
    assert (out / "cifar10.md").read_text() == cifar.draw(again)
    assert cifar.main([*words, "--seeds", "0", "--epochs", "-1"]) == 2
    assert "wanted 1 or more" in capsys.readouterr().err
