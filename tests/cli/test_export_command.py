"""`spiritlevel export` as a user runs it, on models that were trained on real digits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from spiritlevel import create_model
from spiritlevel.cli import main
from spiritlevel.data import load, prepare
from spiritlevel.export import read_metadata
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
    "suffix": (["--data", "digits", "--out", "x.pth"], "got x.pth for onnx"),
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
        ("nowhere", "wanted a name that ends in"),
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
