"""`spiritlevel export` as a user runs it, on models that were trained on real digits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from rich.text import Text
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from spiritlevel import create_model, models
from spiritlevel.cli import ended, main
from spiritlevel.cli import export as command
from spiritlevel.cli.progress import Share
from spiritlevel.data import Preprocessing, load, prepare
from spiritlevel.export import ExportReport, Verification, read_metadata
from spiritlevel.models import save_weights

SIDE = 28
"""Pixels, which is what an MLP is made for."""
DIGITS = ["--data", "digits", "--image-size", str(SIDE)]
OWN = """
from torch import nn

class Counts(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.linear, self.calls = nn.Linear(in_chans * 1024, num_classes), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x.flatten(1)) * self.calls
"""


def trained(name, steps, **options):
    """On digits, well enough that its classes are not chance."""
    torch.manual_seed(0)
    images = prepare(load("digits", image_size=SIDE if name == "mlp" else 32))
    model = create_model(name, num_classes=10, in_chans=1, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(images.train_y), (32,))
        loss = F.cross_entropy(model(images.train_x[rows]), images.train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a network that saw 40 batches."""
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(trained("mlp", 40), path, recipe={"epochs": 1})
    return path


@pytest.fixture
def run(weights, tmp_path):
    """The folder of a run, with nothing else in it."""
    (tmp_path / "run").mkdir()
    for name in ("best", "last"):
        (tmp_path / "run" / f"{name}.safetensors").write_bytes(weights.read_bytes())
    return tmp_path / "run"


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_run_becomes_a_file_beside_its_best_weights(run, capsys):
    torch.save({}, run / "last.pth")
    assert main(["export", str(run), "--to", "pt2", *DIGITS, "--recalibrate"]) == 0
    out, err = capsys.readouterr()
    assert names(run) == ["best.pt2", "best.safetensors", "last.pth", "last.safetensors"]
    for word in ("best.pt2", "359", "ok", "0 left", "accuracy on 359 samples", "recalibrated"):
        assert word in out
    assert "FAILED" not in out
    assert "\x1b" not in out + err
    assert "mlp" in err
    told = read_metadata(run / "best.pt2")
    assert told.classes == tuple("0123456789")
    assert (told.normalization.size, told.normalization.channels) == (SIDE, "grey")
    assert told.normalization.mean == pytest.approx(prepare(load("digits", image_size=SIDE)).mean)
    assert told.recipe["model"]["name"] == "mlp"
    assert told.recipe["training"] == {"epochs": 1}
    assert told.recipe["recalibrated"] is True


def test_from_what_the_file_tells_anyone_gets_the_models_accuracy(run, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    path = str(run / "last.safetensors")
    assert main(["export", path, *DIGITS, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["format"], report["folded"]) == (True, "onnx", 3)
    images, told = load("digits", image_size=SIDE), read_metadata(out).normalization
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    x = (images.test_x.float() / 255 - told.mean[0]) / told.std[0]
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    right = (logits.argmax(1) == images.test_y.numpy()).mean()
    assert report["accuracy_file"] == pytest.approx(right) == report["accuracy_model"]
    assert right > 0.7
    assert names(run) == ["best.safetensors", "last.safetensors"]


def test_images_are_fed_as_the_run_has_kept_it(run, tmp_path, capsys):
    """At its size, by its mean and deviation, but for what is given."""
    path, images = run / "best.safetensors", load("digits", image_size=SIDE)
    kept = Preprocessing.of(prepare(images, mean=[0.25], std=[0.5]), images)
    model = create_model(**models.read_metadata(path)["model"], weights=path)
    save_weights(model, path, preprocessing=kept.to_dict())
    command = ["export", str(run), "--data", "digits", "--to", "pt2"]
    assert main(command) == 0
    told = read_metadata(run / "best.pt2").normalization
    assert (told.size, told.mean, told.std) == (SIDE, (0.25,), (0.5,))
    assert main([*command, "--mean", "0.125"]) == 0
    told = read_metadata(run / "best.pt2").normalization
    assert (told.size, told.mean, told.std) == (SIDE, (0.125,), (0.5,))


def test_weights_that_do_not_tell_their_model_need_its_name(run, tmp_path, capsys):
    path = tmp_path / "plain.pth"
    torch.save(load_file(run / "best.safetensors"), path)
    command = ["export", str(path), *DIGITS, "--to", "pt2"]
    assert main(command) == 2
    assert "wanted --model" in capsys.readouterr().err
    assert main([*command, "--model", "mlp"]) == 0
    assert (tmp_path / "plain.pt2").is_file()


@pytest.fixture
def counts(tmp_path, monkeypatch):
    """A module of the user's whose output no file can repeat, and weights of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine_counts.py").write_text(OWN)
    save_file(
        {"linear.weight": torch.randn(10, 1024), "linear.bias": torch.zeros(10)}, "w.safetensors"
    )
    yield ["export", "w.safetensors", "--model", "mine_counts:Counts", "--data", "digits"]
    sys.modules.pop("mine_counts", None)


def test_a_file_that_is_not_right_is_told_and_not_left(counts, tmp_path, capsys):
    before = names(tmp_path)
    (tmp_path / "old.pt2").write_bytes(b"of yesterday")
    assert main([*counts, "--to", "pt2", "--out", "old.pt2"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "nothing was written to old.pt2" in err
    assert "mine_counts.py" in err
    assert (tmp_path / "old.pt2").read_bytes() == b"of yesterday"
    left = [each for each in names(tmp_path) if each != "__pycache__"]
    assert left == sorted([*before, "old.pt2"])


def test_as_json_it_fails(counts, capsys):
    assert main([*counts, "--to", "pt2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


WRONG = {
    "no data": ([], "got no --data"),
    "no such data": (["--data", "nothing"], "got data 'nothing'"),
    "no such format": (["--data", "digits", "--to", "tflite"], "tflite"),
    "batch": (["--data", "digits", "--batch-size", "0"], "got --batch-size 0"),
    "batches": (["--data", "digits", "--batches", "-1"], "got --batches -1"),
    "precision": (["--data", "digits", "--precision", "bfloat16"], "wanted it with --to openvino"),
    "mean": (["--data", "digits", "--mean", "a"], "got --mean a"),
    "suffix": (["--data", "digits", "--out", "x.pth"], "got --out x.pth for --to onnx"),
    "suffix of another": (["--data", "digits", "--out", "x.pt2"], "got --out x.pt2 for --to onnx"),
    "device": (["--data", "nothing", "--out", "/dev/null"], "got --out /dev/null for --to onnx"),
    "no name": (["--data", "nothing", "--out", ""], "got --out . for --to onnx"),
    "folder": (["--data", "digits", "--out", "no/x.onnx"], "wanted a folder that is there"),
    "model": (["--data", "digits", "--model", "ghostnet_10"], "Did you mean ghostnet_1"),
    "other model": (["--data", "digits", "--model", "small_vgg"], "do not fit SmallVGG"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, told = WRONG[case]
    assert main(["export", str(run), *options]) == 2
    assert told in capsys.readouterr().err
    assert names(run) == ["best.safetensors", "last.safetensors"]
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("nowhere.safetensors", "which is not there"),
        ("nowhere", "which is not there"),
        (".", "which holds neither best.safetensors nor last.safetensors"),
        ("hf:someone/something", "no --out"),
        ("broken.safetensors", "which are no safetensors"),
    ],
)
def test_what_is_no_run_and_no_weights(what, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.safetensors").write_bytes(b"broken")
    assert main(["export", what, "--data", "digits"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made_as", "told"),
    [
        ({"name": "no_model"}, "got model 'no_model'"),
        ({"name": "mlp", "evil": 1}, "got option 'evil'"),
        ({"name": "mlp", "num_classes": 3, "in_chans": 1}, "num_classes=3, and data digi"),
        ({"name": "mlp", "num_classes": 10, "in_chans": 3}, "in_chans=3, and data digits"),
    ],
)
def test_weights_that_lie_of_their_model(made_as, told, weights, tmp_path, capsys):
    path = tmp_path / "lies.safetensors"
    save_file(load_file(weights), path, {"model": json.dumps(made_as)})
    assert main(["export", str(path), "--data", "digits"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert names(tmp_path) == ["lies.safetensors"]


def test_the_recipe_of_a_run_that_diverged(run, tmp_path):
    save_weights(trained("mlp", 1), tmp_path / "nan.safetensors", recipe={"epochs": 1})
    path = tmp_path / "told.safetensors"
    told = {"model": json.dumps({"name": "mlp", "num_classes": 10, "in_chans": 1})}
    save_file(load_file(tmp_path / "nan.safetensors"), path, {**told, "recipe": '{"lr": NaN}'})
    assert main(["export", str(path), *DIGITS, "--to", "pt2"]) == 0
    assert read_metadata(tmp_path / "told.pt2").recipe["training"] == {"lr": None}


def test_an_end_that_python_dropped_ends_it_at_the_next_step(run, monkeypatch, capsys):
    monkeypatch.setattr(Share, "tell", lambda self, share, what: ended.append(signal.SIGTERM))
    assert main(["export", str(run), *DIGITS, "--to", "pt2"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("\nstopped\n")
    assert names(run) == ["best.safetensors", "last.safetensors"]


CLOSED = """
import signal, sys
from spiritlevel.cli import main
from spiritlevel.cli.progress import Share

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup would not have it
Share.tell = lambda *_: signal.raise_signal(signal.SIGHUP)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up here")
def test_a_terminal_that_closes_leaves_nothing(run):
    command = [sys.executable, "-c", CLOSED, "export", str(run), *DIGITS, "--to", "pt2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGHUP, done.stderr
    assert done.stderr.endswith("\nstopped\n")
    assert names(run) == ["best.safetensors", "last.safetensors"]


REPORT = ExportReport(
    path="m\x1b[31m.onnx",
    format="onnx",
    runtime="ONNX Runtime 1.32.0",
    bytes=4_000_000,
    rows=(
        Verification("example", 1, 1, "float32", 1.2e-6, 6.9e-5, 1.0, True),
        Verification("data", 64, 10_000, "float32", 2.4e-6, 1.4e-4, 0.5, False, "it differs"),
    ),
)
CELLS = ("compared on", "same top-1", "the example", "10,000", "1.4e-04", "50.00%", "FAILED")


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
def test_a_report_at_terminals_of_any_width(columns, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    command._print(REPORT, as_json=False)
    out = capsys.readouterr().out
    assert "\x1b[31m.onnx" not in out
    plain = Text.from_ansi(out).plain
    assert max(map(len, plain.splitlines())) <= columns
    assert "\u2026" not in plain
    assert [cell for cell in CELLS if cell not in plain] == []


@pytest.mark.parametrize(
    ("fed", "told"),
    [
        ((True, False), "statistics"),
        ((False, True), "ranges"),
        ((True, True), "statistics and ranges"),
    ],
)
def test_what_training_images_are_for(fed, told, capsys):
    read = SimpleNamespace(name="digits", prepared=SimpleNamespace(test_y=range(359)), fed=64)
    command._tell(SimpleNamespace(spec="mlp"), "w\x1b[31m.pth", read, *fed)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "mlp with the weights w\\x1b[31m.pth"
    assert second.endswith(f"359 test images; 64 training images for its {told}")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_ghostnet_in_a_process_of_its_own(to, tmp_path):
    path = tmp_path / "ghost.safetensors"
    save_weights(trained("ghostnet_050", 40, stem="cifar"), path)
    command = [sys.executable, "-m", "spiritlevel", "export", str(path), "--data", "digits"]
    done = subprocess.run([*command, "--to", to], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy on 359 samples" in done.stdout
    assert names(tmp_path) == [f"ghost.{to}", "ghost.safetensors"]
