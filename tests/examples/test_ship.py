"""examples/02_ship.py: its page, and the script as a user runs it."""

from __future__ import annotations

import copy
import json

import pytest
from example_module import EXAMPLES, example

from spiritlevel.study.records import read_json

DOCS = EXAMPLES.parent / "docs"
ship = example("02_ship")

FORM = {
    "ok": True,
    "why": "",
    "runtime": "ONNX Runtime 1.32.0",
    "precision": "float32",
    "bytes": 5_250_000,
    "folded": 75,
    "left": 0,
    "samples": 1000,
    "accuracy": 0.9,
    "difference": 1e-6,
    "milliseconds": {"PyTorch": 12.34, "file": 3.21},
    "changed": 1,
    "ties": 1,
    "gap": {"median": 2e-5, "largest": 2e-5},
    "samples_changed": [{"sample": 7, "model": 1, "file": 2, "gap": 2e-5}],
    "notes": [],
}
FOUND = {
    "data": "some images",
    "counts": {"train": 100, "test": 1000},
    "model": "ghostnet_050",
    "recipe": ship.the_recipe(2).to_dict(),
    "command": "python examples/02_ship.py --data hf:FOLDER",
    "environment": {"torch": "2.13.0", "processor": "a processor"},
    "parameters": 1_319_000,
    "accuracy": {"trained": 0.895, "recalibrated": 0.9},
    "forms": {"ONNX": FORM, "ONNX, int8": dict(FORM)},
}


def test_the_page_says_what_was_found():
    found = copy.deepcopy(FOUND)
    found["forms"]["ONNX, int8"] |= {
        "ok": False,
        "why": "it loses 2.0 points",
        "precision": "int8",
        "changed": 31,
        "notes": ["kept: plain int8"],
    }
    page = ship.draw(found)
    assert "89.50% of them right as trained, and 90.00% with recalibrated statistics" in page
    assert (
        "| ONNX | ONNX Runtime 1.32.0 | float32 | 90.00% | 5.25 | 12.3 | 3.2 | 1 | 1 | 2.0e-05 "
        "| 2.0e-05 | ok |"
    ) in page
    assert "- sample 7: class 1 in PyTorch, 2 in the file, gap 2.0e-05" in page
    assert "| 31 | 1 | 2.0e-05 | 2.0e-05 | refused: it loses 2.0 points |" in page
    assert "- kept: plain int8" in page
    assert page.count("sample 7") == 1  # of int8 the samples are counted, not listed


def test_the_page_in_docs_is_that_of_its_record():
    assert (DOCS / "ship.md").read_text() == ship.draw(read_json(DOCS / "ship.json"))


def test_wrong_words(capsys):
    assert ship.main(["--epochs", "0"]) == 2
    assert "got --epochs 0; wanted 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--data", "digits", "--out", str(out), "--epochs", "1", "--images", "256"]
    code = ship.main(words)
    told = capsys.readouterr()
    assert code in (0, 1), told.err  # one epoch may leave int8 too little
    found = json.loads((out / "ship.json").read_text())
    assert list(found["forms"]) == list(ship.FORMS)
    for name, form in found["forms"].items():
        assert form["left"] == 0
        if form["precision"] == "float32":
            assert form["ok"], name
            assert form["changed"] == form["ties"]
            assert form["accuracy"] == pytest.approx(found["accuracy"]["recalibrated"], abs=0.01)
    assert (out / "ship.md").read_text() == ship.draw(read_json(out / "ship.json"))
    assert "training on" in told.out

    assert ship.main(words) == 2
    assert "which holds a run; add --resume" in capsys.readouterr().err
    for other in (["--epochs", "2"], ["--images", "200"]):
        assert ship.main([*words, "--resume", *other]) == 2
        assert "trained by {'data': 'digits'" in capsys.readouterr().err
