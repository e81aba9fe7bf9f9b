"""`spiritlevel eval` as a user runs it, on networks that have learned real digits."""

from __future__ import annotations

import copy
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.text import Text
from runs import SIDE, digits, fed, run_of, trained
from safetensors.torch import load_file, save_file

from spiritlevel.cli import ended, main
from spiritlevel.cli.evaluation_report import print_evaluation
from spiritlevel.cli.progress import Share
from spiritlevel.data import prepare
from spiritlevel.models import save_weights
from spiritlevel.train import evaluate

DIGITS = ["--data", "digits"]


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture
def run(model, tmp_path):
    return run_of(tmp_path / "run", model)


def found(capsys, *arguments):
    """The record, and stderr."""
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def by_hand(model, split="test"):
    data = prepare(digits())
    x, y = (data.test_x, data.test_y) if split == "test" else (data.train_x, data.train_y)
    return evaluate(model, x[:], y, num_classes=10)


def folder_of(images, root, names, scale=1, mode="L"):
    """PNG files of digits, in a folder for each class: those of these classes."""
    for i, (x, y) in enumerate(zip(images.test_x, images.test_y.tolist(), strict=True)):
        if y < len(names):
            place = root / names[y]
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(x[0].numpy()).convert(mode)
            image.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST).save(
                place / f"{i}.png"
            )
    return f"folder:{root}"


@pytest.mark.parametrize("split", ["test", "train"])
def test_what_is_told_is_what_the_model_answers(run, model, split, capsys):
    told, err = found(capsys, run, *DIGITS, "--split", split)
    own = by_hand(model, split)
    assert told["confusion"] == own.confusion.tolist()
    assert told["accuracy"] == own.accuracy > 0.7
    assert told["interval"] == list(own.interval)
    assert told["loss"] == pytest.approx(own.loss)
    assert (told["images"], told["not_finite"]) == (own.count, 0)
    assert [each["images"] for each in told["classes"]] == own.support.tolist()
    assert [each["recall"] for each in told["classes"]] == own.recall.tolist()
    assert [each["precision"] for each in told["classes"]] == own.precision.tolist()
    row, column, images = own.confused(1)[0]
    assert told["confused"][0] == {"class": str(row), "answer": str(column), "images": images}
    assert told["preprocessing"] == fed().to_dict()
    assert (told["model"], told["data"], told["split"]) == ("mlp", "digits", split)
    assert "best.safetensors" in err


def test_a_reader_is_told_all_of_it(run, model, capsys):
    assert main(["eval", str(run), *DIGITS]) == 0
    out, err = capsys.readouterr()
    own = by_hand(model)
    low, high = own.interval
    first, second, *_ = out.splitlines()
    interval = f"(95 % interval {low:.2%} to {high:.2%})"
    assert first == f"accuracy {own.accuracy:.2%} {interval} on 359 test images of digits"
    assert second == f"mean cross-entropy {own.loss:.4f} nats"
    rows = [line.split() for line in out.splitlines()]
    recall = [row for row in rows if row[:2] == ["3", str(int(own.support[3]))]]
    assert recall[0][2] == f"{own.recall[3]:.1%}"
    assert ["3", *map(str, own.confusion[3].tolist())] in rows
    assert "with the statistics of each batch of 128" in out
    assert "the intervals overlap" in out
    assert "\x1b" not in out + err


def test_the_last_weights_and_a_file_of_weights(run, model, capsys):
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(list(other.parameters())[-2])
    save_weights(other, run / "last.safetensors", preprocessing=fed().to_dict())
    best, _ = found(capsys, run, *DIGITS)
    last, err = found(capsys, run, *DIGITS, "--weights", "last")
    assert best["accuracy"] > 0.7 > 0.2 > last["accuracy"]
    assert "last.safetensors" in err
    assert found(capsys, run / "last.safetensors", *DIGITS)[0]["accuracy"] == last["accuracy"]


def test_it_is_written_to_a_file_too(run, tmp_path, capsys):
    told, _ = found(capsys, run, *DIGITS, "--out", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == told


def test_running_statistics_that_do_not_fit_lead_to_the_check(run, model, tmp_path, capsys):
    spoiled = copy.deepcopy(model)
    for name, buffer in spoiled.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(3)
    told, _ = found(capsys, run_of(tmp_path / "spoiled", spoiled), *DIGITS)
    batch = told["batch_statistics"]
    assert batch["apart"] is True
    assert batch["interval"][0] > told["interval"][1]
    assert batch["batch_size"] == 128
    print_evaluation(told)
    assert "`spiritlevel check` finds the layer" in capsys.readouterr().out


def test_a_model_without_batch_norms_has_no_other_mode(tmp_path, capsys):
    told, _ = found(capsys, run_of(tmp_path / "none", trained("none", steps=2)), *DIGITS)
    assert told["batch_statistics"] is None
    print_evaluation(told)
    assert "statistics" not in capsys.readouterr().out


def test_a_batch_that_has_no_statistics_is_told(run, capsys):
    told, err = found(capsys, run, *DIGITS, "--batch-size", 1)
    assert told["batch_statistics"] is None
    assert "no comparison with batch statistics" in err


def test_classes_in_another_order_are_matched_by_name(model, tmp_path, capsys):
    """A run whose outputs stand the other way round says the same of each class."""
    turned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in list(turned.parameters())[-2:]:
            parameter.copy_(parameter.flip(0).clone())
    names = tuple(reversed("0123456789"))
    told, err = found(capsys, run_of(tmp_path / "turned", turned, fed(classes=names)), *DIGITS)
    assert told["confusion"] == by_hand(model).confusion.flip(0).flip(1).tolist()
    assert [each["name"] for each in told["classes"]] == list(names)
    assert "its 10 classes are matched by name with the 10 of the run" in err


@pytest.mark.parametrize("scale", [1, 3])
def test_a_folder_of_some_classes_in_another_size(run, model, scale, tmp_path, capsys):
    data = folder_of(digits(), tmp_path / "photos", "012", scale)
    told, err = found(capsys, run, "--data", data)
    assert [sum(row) for row in told["confusion"]][3:] == [0] * 7
    assert told["classes"][5]["recall"] is None
    assert told["accuracy"] > 0.7
    assert "its 3 classes are matched" in err
    print_evaluation(told)
    assert "none" in capsys.readouterr().out


def test_other_classes_are_refused(run, tmp_path, capsys):
    data = folder_of(digits(), tmp_path / "photos", ["cat\x1b[31m", "1", "2"])
    assert main(["eval", str(run), "--data", data]) == 2
    err = capsys.readouterr().err
    assert "with the classes 1, 2, cat\\x1b[31m, and a run with 0, 1, 2, 3, 4 and 5 more" in err


def test_a_run_with_a_name_twice_is_refused(model, tmp_path, capsys):
    run = run_of(tmp_path / "twice", model, fed(classes=tuple("0123456788")))
    data = folder_of(digits(), tmp_path / "photos", "012")
    assert main(["eval", str(run), "--data", data]) == 2
    assert "wanted names of the run's own" in capsys.readouterr().err


def test_grey_images_for_a_network_of_colour_ones(tmp_path, capsys):
    told = fed(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    run = run_of(tmp_path / "colour", trained(in_chans=3), told)
    found_, err = found(capsys, run, *DIGITS)
    assert found_["images"] == 359
    assert "digits: grey images, turned into RGB" in err


def test_in_chinese_the_images_too_are_named_in_chinese(run, capsys):
    assert main(["eval", str(run), *DIGITS, "--lang", "zh"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("digits 的 359 张测试图像")


def test_colour_images_for_a_network_of_grey_ones(run, tmp_path, capsys):
    data = folder_of(digits(), tmp_path / "photos", "012", mode="RGB")
    assert main(["eval", str(run), "--data", data]) == 2
    assert "with 3 channels, and a run of grey images" in capsys.readouterr().err


def test_weights_that_do_not_tell_how_they_were_fed(run, model, tmp_path, capsys):
    save_weights(model, tmp_path / "w.safetensors")
    size = ["--image-size", SIDE]
    told, err = found(capsys, tmp_path / "w.safetensors", *DIGITS, *size)
    assert "mean and deviation are measured on the training images of digits" in err
    assert told["accuracy"] == by_hand(model).accuracy
    numbers = ["--mean", "0.3", "--std", "0.5"]
    told, err = found(capsys, tmp_path / "w.safetensors", *DIGITS, *size, *numbers)
    assert "measured" not in err
    assert told["preprocessing"]["mean"] == [0.3]
    stored, _ = found(capsys, run, *DIGITS, *numbers)  # given numbers come before stored ones
    assert stored["confusion"] == told["confusion"]


def test_images_are_fed_by_the_stored_numbers_not_by_their_own(model, tmp_path, capsys):
    stored = fed(mean=(0.1,), std=(0.9,))
    told, _ = found(capsys, run_of(tmp_path / "other", model, stored), *DIGITS)
    x, y = (digits().test_x.double() / 255 - 0.1) / 0.9, digits().test_y
    own = evaluate(model, x.float(), y, num_classes=10)
    assert told["confusion"] == own.confusion.tolist()
    assert told["loss"] == pytest.approx(own.loss, rel=1e-5)
    assert abs(own.loss - by_hand(model).loss) > 0.01  # what its own mean and deviation would give


HOSTILE = [
    {"size": 10**9},
    {"mean": [float("nan")]},
    {"classes": ["0"] * 3 + [7]},
    "no dict",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_preprocessing_is_as_none(hostile, run, capsys):
    kept = {"model": {"name": "mlp", "image_size": SIDE, "depth": 2, "width": 16}}
    kept["model"] |= {"num_classes": 10, "in_chans": 1}
    kept["preprocessing"] = fed().to_dict() | hostile if isinstance(hostile, dict) else hostile
    path = run / "best.safetensors"
    save_file(load_file(path), path, {name: json.dumps(value) for name, value in kept.items()})
    _, err = found(capsys, run, *DIGITS, "--image-size", SIDE)
    assert "measured" in err


def test_preprocessing_of_other_classes_than_the_models(run, model, capsys):
    save_weights(model, run / "best.safetensors", preprocessing=fed(classes=("a",)).to_dict())
    assert main(["eval", str(run), *DIGITS]) == 2
    assert "with the classes 0, 1, 2, 3, 4 and 5 more, and a run with a" in capsys.readouterr().err


def test_logits_that_are_not_finite(model, tmp_path, capsys):
    broken = copy.deepcopy(model)
    list(broken.parameters())[-1].data[0] = float("nan")
    told, _ = found(capsys, run_of(tmp_path / "nan", broken), *DIGITS)
    assert (told["accuracy"], told["loss"], told["not_finite"]) == (0.0, None, 359)
    print_evaluation(told)
    out = capsys.readouterr().out
    assert "mean cross-entropy none" in out
    assert "359 images have logits that are not finite" in out


OWN = """
from torch import nn

def build(num_classes, in_chans, image_size):
    print("of mine")
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * image_size**2, num_classes))
"""


def test_a_model_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine_net.py").write_text(OWN)
    weights = {"1.weight": torch.randn(10, SIDE**2), "1.bias": torch.zeros(10)}
    save_file(weights, "w.safetensors", {"preprocessing": json.dumps(fed().to_dict())})
    try:
        assert main(["eval", "w.safetensors", *DIGITS]) == 2
        assert "wanted --model" in capsys.readouterr().err
        told, err = found(capsys, "w.safetensors", *DIGITS, "--model", "mine_net:build")
        assert told["images"] == 359
        assert "of mine" in err
    finally:
        sys.modules.pop("mine_net", None)


WRONG = {
    "no data": ([], "got no --data"),
    "no such data": (["--data", "nothing"], "got data 'nothing'"),
    "batch": ([*DIGITS, "--batch-size", "0"], "got --batch-size 0"),
    "mean": ([*DIGITS, "--mean", "a"], "got --mean a"),
    "std": ([*DIGITS, "--std", "0"], "std is a list of 1"),
    "size": ([*DIGITS, "--image-size", "0"], "size is 0"),
    "device": ([*DIGITS, "--device", "nowhere"], "got --device nowhere"),
    "out": ([*DIGITS, "--out", "no/found.json"], "wanted a folder that is there"),
    "model": ([*DIGITS, "--model", "ghostnet_10"], "Did you mean ghostnet_1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_of_eval(case, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, told = WRONG[case]
    assert main(["eval", str(run), *options]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nope", "nope.safetensors", "no/run", "x" * 300])
def test_a_run_that_is_not_there(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = f"got {given}, which is not there; wanted a run or a file of weights"
    for command in (["eval", given, *DIGITS], ["predict", given, "x.png"]):
        assert main(command) == 2
        assert told in capsys.readouterr().err


def test_a_folder_without_the_weights_asked_for(run, capsys):
    (run / "last.safetensors").unlink()
    assert main(["eval", str(run), *DIGITS, "--weights", "last"]) == 2
    assert "which holds no last.safetensors" in capsys.readouterr().err


def test_a_signal_ends_it_after_a_batch(run, monkeypatch, capsys):
    monkeypatch.setattr(Share, "tell", lambda self, share, what: ended.append(signal.SIGTERM))
    assert main(["eval", str(run), *DIGITS]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("\nstopped\n")


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
def test_hostile_names_at_terminals_of_any_width(columns, run, monkeypatch, capsys):
    told, _ = found(capsys, run, *DIGITS)
    names = ["\x1b[31mred", "two\nlines", "猫" * 30, "\u202eright", "[bold]b[/]", "é", "x" * 99]
    for each, name in zip(told["classes"], names, strict=False):
        each["name"] = name
    told["confused"][0]["answer"] = "\x1b]0;title\x07"
    told["data"] = "folder:\x1b[2J"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_evaluation(told)
    out = capsys.readouterr().out
    for hostile in ("\x1b[31mred", "\x1b]0", "\x1b[2J", "\u202e", "two\nlines"):
        assert hostile not in out
    plain = Text.from_ansi(out).plain
    assert max(Text(line).cell_len for line in plain.splitlines()) <= columns
    assert "\u2026" not in plain
    shown = [
        "\\x1b[31mred",
        "two\\nlines",
        "[bold]b[/]",
        "recall",
        f"{told['classes'][5]['images']}",
    ]
    assert [cell for cell in shown if cell not in plain] == []
