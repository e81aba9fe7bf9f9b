"""examples/01_ghost_ablation.py: its verdicts, its page, and the script as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from example_module import EXAMPLES, example

from spiritlevel import kernels
from spiritlevel.data import load, prepare
from spiritlevel.models import create_model, init_he_
from spiritlevel.study.records import Cell, Record, RecordFile, Records, read_json
from spiritlevel.study.stats import Interval
from spiritlevel.train import Recipe, fit, score

SCRIPT = EXAMPLES / "01_ghost_ablation.py"
DOCS = EXAMPLES.parent / "docs"
RUNS = 13
ablation = example("01_ghost_ablation")

META = {
    "command": "python examples/01_ghost_ablation.py --data hf:FOLDER",
    "data": "some images",
    "counts": {"train": 100, "test": 1000},
    "classes": 10,
    "channels": 3,
    "size": 32,
    "width": 0.125,
    "seeds": 3,
    "recipe": ablation.the_recipe(4).to_dict(),
    "environment": {"workers": "1", "cores": "2", "torch": "2", "processor": "one"},
    "counted": dict.fromkeys(ablation.ROWS, (1.5, 2.25)),
}


def invented(**accuracies):
    """Row -> one accuracy a seed; other rows have 0.5, a little apart by seed."""
    records = Records()
    for name, row in ablation.ROWS.items():
        for seed, jitter in enumerate((0.0, 0.01, -0.01)):
            accuracy = accuracies.get(name, (0.5,) * 3)[seed] + jitter
            cell = Cell("ablation", row | {"seed": seed})
            records.add(Record(cell.key, cell.task, cell.settings, {"accuracy": accuracy}))
    return records


def verdicts(records):
    page = ablation.draw(META, records)
    lines = [line.split(" | ") for line in page.splitlines() if "| **" in line]
    return {line[0].removeprefix("| "): line[1].strip("*") for line in lines}


def test_the_rows_are_the_papers_and_those_met_elsewhere():
    assert len(ablation.ROWS) == RUNS
    assert len({json.dumps(row, sort_keys=True) for row in ablation.ROWS.values()}) == RUNS
    told = [name for name, row in ablation.ROWS.items() if ablation.papers(row)[0] != "–"]
    assert len(told) == 8  # the paper has no placements and no starting weights
    named = {name for pairs in ablation.CLAIMS.values() for pair in pairs for name in pair}
    assert named == ablation.ROWS.keys()
    varied = {(row.get("s"), row.get("d")) for row in ablation.ROWS.values()}
    assert varied == {(None, None), (2, 1), (2, 3), (2, 5), (2, 7), (3, 3), (4, 3), (5, 3)}


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([(0.1, 0.5)], "yes"),
        ([(0.1, 0.5), (0.2, 0.3)], "yes"),
        ([(0.1, 0.5), (-0.2, 0.3)], "cannot tell"),
        ([(-0.2, 0.3)], "cannot tell"),
        ([(0.0, 0.0)], "cannot tell"),
        ([(0.1, 0.5), (-0.3, -0.1)], "no"),
        ([(0.1, 0.5), None], "cannot tell"),
        ([None, (-0.3, -0.1)], "no"),
        ([None], "cannot tell"),
    ],
)
def test_the_rule(differences, verdict):
    made = [None if d is None else Interval(sum(d) / 2, *d, 3) for d in differences]
    assert ablation.judged(made) == verdict


def test_verdicts_come_from_differences_by_seed():
    """Seeds are 1 point apart, rows half a point: only pairs can tell."""
    equal = verdicts(invented())
    assert set(equal.values()) == {"cannot tell"}
    ghost = dict.fromkeys(("Ghost, s = 2, d = 3", "s = 3"), (0.505, 0.506, 0.505))
    found = verdicts(invented(**ghost, **{"no norm": (0.52,) * 3}))
    assert found["Ghost-VGG-16 (s = 2, d = 3) beats VGG-16"] == "yes"
    assert found["d = 3 is the best of 1, 3, 5, 7"] == "yes"
    assert found["accuracy falls with each s from 2 to 5"] == "cannot tell"
    assert found["s = 2 beats s = 5"] == "yes"
    assert found["a norm after each branch beats none"] == "no"
    assert found["He's starting weights beat torch's"] == "no"


def test_fewer_than_three_seeds_tell_nothing():
    two = Records(record for record in invented() if record.settings["seed"] < 2)
    assert set(verdicts(two).values()) == {"cannot tell"}
    assert "| VGG-16 | – | 1.500 | 2.25 |" in ablation.draw(META, two)


def test_the_table_has_the_mean_the_interval_and_the_counts():
    page = ablation.draw(META, invented(**{"VGG-16": (0.7, 0.8, 0.9)}))
    # 70, 81 and 89: their mean, and 4.303 standard errors either way.
    assert "| VGG-16 | 80.0 (56.3 to 103.7) | 1.500 | 2.25 | 93.6 | 15 | 313 |" in page
    assert "| Ghost, s = 2, d = 3 | 50.0 (47.5 to 52.5) | 1.500 | 2.25 | 93.7 | 7.7 | 158" in page


def test_counts_are_of_the_network_as_built():
    found = ablation.sizes(ablation.ROWS["s = 5"], META | {"width": 1.0})
    assert found == pytest.approx((3.007948, 66.33), rel=1e-4)


def test_the_page_kept_is_drawn_from_the_records_kept():
    kept = RecordFile.read(DOCS / "ablation" / "records.jsonl")
    meta = read_json(DOCS / "ablation" / "meta.json")
    assert kept.torn is None
    planned = {cell.key for cell in ablation.cells(meta)}
    assert len(planned) == RUNS * meta["seeds"]
    assert planned <= kept.records.done()
    page = (DOCS / "ablation.md").read_text(encoding="utf-8")
    assert meta["recipe"] == ablation.the_recipe(meta["recipe"]["epochs"]).to_dict()
    assert (meta["recipe"]["label_smoothing"], meta["recipe"]["lr"]) == (0.1, 0.1)
    for name, row in ablation.ROWS.items():
        assert ablation.sizes(row, meta) == meta["counted"][name], name
    assert page == ablation.draw(meta, kept.records)


@pytest.mark.parametrize("name", ["norm, activation after the concatenation", "He's start"])
def test_a_run_is_what_its_row_says(name):
    """Against the loop written out: the row's network and start, trained on images for training."""
    meta = META | {"counts": {"train": 64, "test": 1}, "channels": 1, "width": 0.0625}
    meta["recipe"] = ablation.the_recipe(1).to_dict() | {"batch_size": 32}
    row = ablation.ROWS[name] | {"seed": 3}
    found = ablation._measured(Cell("ablation", row), "digits", meta).result
    images = prepare(load("digits"))
    torch.manual_seed(3)
    options = {key: row[key] for key in ("s", "d", "placement")}
    with kernels.use("aten"):
        model = create_model("ghost_vgg16", 10, "batch", 1, width=0.0625, **options)
        if row["init"] == "he":
            init_he_(model)
        model.to(memory_format=torch.channels_last)
        recipe = Recipe.from_dict(meta["recipe"])
        curve = fit(model, images.train_x[:64], images.train_y[:64], recipe, seed=3).curve
        wanted = score(model, images.test_x, images.test_y)
    assert found["train_loss"] == curve.loss[-1]
    assert found["loss"] == wanted.loss
    assert found["accuracy"] == wanted.accuracy


def test_a_row_that_never_learned_is_told():
    page = ablation.draw(META, invented(**{"no norm": (0.09, 0.09, 0.11)}))
    (line,) = (
        line for line in page.splitlines() if "| a norm after each branch beats none" in line
    )
    assert line.endswith(", the latter at chance in every run |")
    assert page.count("at chance") == 2  # it is the worse of two pairs


def test_pairs_are_by_seed_where_seeds_are_missing():
    records = invented(**{"VGG-16": (0.2, 0.5, 0.5), "Ghost, s = 2, d = 3": (0.5, 0.5, 0.2)})
    first, second = (ablation.ROWS[name] for name in ("VGG-16", "Ghost, s = 2, d = 3"))
    left = Records(
        record
        for record in records
        if record.settings not in (first | {"seed": 0}, second | {"seed": 2})
    )
    # One seed in common: nothing is told.
    assert verdicts(left)["Ghost-VGG-16 (s = 2, d = 3) beats VGG-16"] == "cannot tell"
    assert "s = 2, d = 3 − VGG-16: –" in ablation.draw(META, left)


@pytest.mark.slow
def test_the_script(tmp_path, capsys):
    out = tmp_path / "run"
    tiny = ["--images", "96", "--epochs", "1", "--width", "0.0625", "--jobs", "2"]
    words = [sys.executable, str(SCRIPT), "--data", "digits", "--out", str(out), *tiny]
    first = subprocess.run(words, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert f"{3 * RUNS} runs to do, 0 done" in first.stdout
    before = (out / "records.jsonl").read_bytes()
    assert len(before.splitlines()) == 3 * RUNS

    def again(*words):
        code = ablation.main(["--out", str(out), *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    for words, why in (
        (["--data", "digits"], "holds a run; add --resume"),
        (["--data", "mnist5k", "--resume"], "give the --data that it began with"),
        (["--jobs", "0"], "got --jobs 0; wanted 1 or more"),
        (["--width", "nan"], "got --width nan; wanted a share above 0"),
    ):
        code, told = again(*words)
        assert (code, why in told) == (2, True), told

    # A run that was killed: one record is gone, one is torn. It goes on by its own settings.
    lines = before.splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    code, told = again("--data", "digits", "--resume", "--epochs", "9")
    assert code == 0
    assert f"2 runs to do, {3 * RUNS - 2} done" in told
    found, was = (
        {record["key"]: record["result"] for record in map(json.loads, text.splitlines())}
        for text in ((out / "records.jsonl").read_bytes(), before)
    )
    assert found == was  # the same seed, the same run

    assert f"0 runs to do, {3 * RUNS} done" in again("--data", "digits", "--resume")[1]
    page = (out / "ablation.md").read_text()
    kept = RecordFile.read(out / "records.jsonl").records
    assert page == ablation.draw(read_json(out / "meta.json"), kept)
    assert page.count("| **") == len(ablation.CLAIMS)
    assert "--data digits --label digits --images 96 --epochs 1 --seeds 3 --width 0.0625" in page

    # Fewer seeds are drawn as if there had been no others.
    assert again("--data", "digits", "--resume", "--seeds", "1")[0] == 0
    assert f"in {RUNS} runs" in (out / "ablation.md").read_text()
