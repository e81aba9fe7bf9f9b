"""`spiritlevel predict` as a user runs it, on image files of real digits."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from runs import digits, fed, run_of, trained

from spiritlevel.cli import main
from spiritlevel.data import prepare
from spiritlevel.models import save_weights


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "run", model)


def written(path, row):
    """A test image of digits as a file; its pixels are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(digits().test_x[row, 0].numpy()).save(path)
    return path


def probabilities(model, rows):
    x = prepare(digits()).test_x[:][rows]
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).double().softmax(1)


def predicted(capsys, *arguments, status=0):
    """The objects of the lines, and stderr."""
    assert main(["predict", *map(str, arguments), "--json"]) == status
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_what_is_told_is_what_the_model_answers(run, model, tmp_path, capsys):
    """More files than a batch holds, in the order of their names."""
    files = [written(tmp_path / "photos" / f"{row:03}.png", row) for row in range(70)]
    told, err = predicted(capsys, run, tmp_path / "photos", "--top", 10)
    assert [each["file"] for each in told] == [str(file) for file in files]
    own = probabilities(model, range(70))
    for each, row in zip(told, own, strict=True):
        order = [answer["index"] for answer in each["answers"]]
        assert sorted(order) == list(range(10))
        assert order[0] == int(row.argmax())
        assert [answer["class"] for answer in each["answers"]] == [str(i) for i in order]
        found = torch.tensor([answer["probability"] for answer in each["answers"]])
        assert torch.equal(found, found.sort(descending=True).values)
        assert found.tolist() == pytest.approx(row[order].tolist(), abs=1e-6)
    assert err == ""


def test_a_line_for_a_reader(run, model, tmp_path, capsys):
    file = written(tmp_path / "a.png", 0)
    assert main(["predict", str(run), str(file)]) == 0
    out, err = capsys.readouterr()
    values, places = probabilities(model, [0])[0].topk(3)
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    answers = ", ".join(f"{i} ({value:.1%})" for value, i in pairs)
    assert (out, err) == (f"{file}: {answers}\n", "")


def test_folders_are_gone_through_in_order(run, tmp_path, monkeypatch, capsys):
    root = tmp_path / "photos"
    names = ["b.png", "c.PNG", "a/z.bmp", "a/a/x.png", "d/y.gif"]
    for name in (*names, ".hidden.png", ".git/v.png"):
        written(root / name, 0)
    (root / "notes.txt").write_text("not an image")
    (root / "loop").symlink_to(root)
    (root / "e").mkdir()  # deeper than Python's recursion, within the length of a path
    monkeypatch.chdir(root / "e")
    for _ in range(1200):
        os.mkdir("e")
        os.chdir("e")
    try:
        told, err = predicted(capsys, run, root)
    finally:
        subprocess.run(["rm", "-rf", root / "e"], check=True)  # Python's own would go too deep
    assert [each["file"] for each in told] == [str(root / name) for name in names]
    assert err == ""


def test_what_is_broken_stops_no_other(run, tmp_path, capsys):
    good = written(tmp_path / "good.png", 3)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:60])
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    told, err = predicted(capsys, run, tmp_path, tmp_path / "empty", tmp_path / "no", status=1)
    assert [each["file"] for each in told] == [str(good)]
    for name, why in {
        "broken.png": "of no known format",
        "torn.png": "cannot be read as an image",
        "deep.png": "more than 8 bits a channel",
        "empty": "a folder without an image",
        "pipe.png": "no regular file",
        "lost.png": "no regular file",
        "no": "which is not there",
    }.items():
        (line,) = [line for line in err.splitlines() if f"{tmp_path / name}'" in line]
        assert why in line
    assert err.endswith("7 of 8 could not be read\n")


def test_nothing_that_can_be_read(run, tmp_path, capsys):
    told, err = predicted(capsys, run, *[tmp_path / f"{i}.png" for i in range(70)], status=2)
    assert told == []
    assert err.endswith("70 of 70 could not be read\n")


def test_what_is_broken_is_told_while_names_still_come(run, monkeypatch, capsys):
    """A list without an end: errors must not wait for it, nor heap up."""
    before = []

    def names():
        for i in range(150):
            before.append(capsys.readouterr().err.count("which is not there"))
            yield b"lost%d.png\n" % i

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=names()))
    assert main(["predict", str(run), "-"]) == 2
    assert (sum(before), max(before)) == (128, 64)  # 64 at a time
    assert capsys.readouterr().err.count("which is not there") == 150 - 128


def test_names_of_anyones(run, tmp_path, monkeypatch, capsys):
    """From stdin: they steer a terminal, are no text or are long."""
    monkeypatch.chdir(tmp_path)
    names = [b"\x1b[31mred\x07.png", b"\xff\xfe.png", "猫\u202e.png".encode(), b"x" * 250 + b".png"]
    for name in names:
        written(tmp_path / "a.png", 0).rename(tmp_path / os.fsdecode(name))
    told = b"\n".join([*names, b"", b"missing\x1b[2J.png"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(told)))
    assert main(["predict", str(run), "-"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "\x1b" not in out + err
    assert "\u202e" not in out
    for shown in ("\\x1b[31mred\\x07.png: ", "\\udcff\\udcfe.png: ", "猫\\u202e.png: ", "x" * 250):
        assert shown in out
    assert "missing" in err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(run, tmp_path):
    written(tmp_path / "a.png", 0)
    (tmp_path / "names").write_text("a.png\n" * 3000)  # more than a pipe holds
    command = f"'{sys.executable}' -m spiritlevel predict '{run}' - --top 10 < names | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a.png: ")


def test_classes_that_steer_a_terminal(model, tmp_path, capsys):
    told = fed(classes=("\x1b[31mred\n", *"123456789"))
    run = run_of(tmp_path / "run", model, told)
    assert main(["predict", str(run), str(written(tmp_path / "a.png", 0)), "--top", "10"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred\\n (" in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "P"), (1, "RGBA")])
def test_images_of_other_colours_and_sizes(channels, mode, tmp_path, capsys):
    told = fed(channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    run = run_of(tmp_path / "run", trained(in_chans=channels, steps=2), told)
    Image.new(mode, (31, 17)).save(tmp_path / "a.png")
    (found,), _ = predicted(capsys, run, tmp_path / "a.png")
    assert len(found["answers"]) == 3


def test_logits_that_are_not_finite(model, tmp_path, capsys):
    broken = copy.deepcopy(model)
    list(broken.parameters())[-1].data[0] = float("nan")
    run = run_of(tmp_path / "run", broken)
    told, err = predicted(capsys, run, written(tmp_path / "a.png", 0), status=2)
    assert told == []
    assert "for which the logits are not finite" in err


def test_weights_that_do_not_tell_how_they_are_fed(model, tmp_path, capsys):
    save_weights(model, tmp_path / "w.safetensors")
    assert main(["predict", str(tmp_path / "w.safetensors"), "a.png"]) == 2
    assert "that do not tell how images are fed" in capsys.readouterr().err


def test_weights_that_tell_of_other_classes_than_the_model(model, tmp_path, capsys):
    run = run_of(tmp_path / "run", model, fed(classes=("a", "b")))
    assert main(["predict", str(run), str(written(tmp_path / "a.png", 0))]) == 2
    assert "num_classes=10, and preprocessing beside them with 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing argument"),
        (["a.png", "--top", "0"], "got --top 0"),
        (["a.png", "--device", "nowhere"], "got --device nowhere"),
        (["a.png", "--weights", "first"], "first"),
    ],
)
def test_wrong_use_of_predict(arguments, told, run, capsys):
    assert main(["predict", str(run), *arguments]) == 2
    assert told in capsys.readouterr().err
