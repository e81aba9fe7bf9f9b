"""`spiritlevel train` in processes of its own: killed, stopped, without room."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from spiritlevel.cli import main
from spiritlevel.cli.progress import Steps
from spiritlevel.train.progress import Progress

RUN = ["small_vgg", "--data", "digits", "--image-size", "16", "--batch-size", "128"]
RUN += ["--epochs", "3", "--augment", "crop-flip", "--no-check"]


def begin(*words, **options):
    command = [sys.executable, "-m", "spiritlevel", "train", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Not ignored, as it is where the tests themselves run in a shell's background.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, env=environment, **pipes, **options)


def ended(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def weights(folder, name="last"):
    return load_file(folder / f"{name}.safetensors")


def alike(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def steps(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


def wait_for(process, folder, step):
    while steps(folder) < step:
        if process.poll() is not None:
            return
        time.sleep(0.005)


def test_the_first_update_has_a_line_and_the_next_after_a_while(monkeypatch, capsys):
    clock = iter((1.0, 2.0, 17.5)).__next__
    with Steps() as shown:
        monkeypatch.setattr("spiritlevel.cli.progress.time", SimpleNamespace(monotonic=clock))
        for step in (1, 2, 3):
            shown.tell(Progress(step, 30, 3, 10, 8, 2.0 / step, 0.5, 64.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[2].split()[1] for line in lines] == ["2.000,", "1.886,"]


@pytest.mark.slow
def test_killed_anywhere_it_ends_bit_for_bit_as_if_it_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["train", *RUN, "--out", str(whole)]) == 0
    chance, kills = random.Random(0), 0
    for _ in range(6):
        words = [*RUN, "--out", killed, "--save-every", "0", "--resume"]
        process = begin(*words)
        wait_for(process, killed, steps(killed) + chance.randint(1, 6))
        time.sleep(chance.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills >= 4
    code, out, error = ended(begin("--out", killed, "--resume"))
    assert code == 0, error
    assert alike(weights(killed), weights(whole))
    assert alike(weights(killed, "best"), weights(whole, "best"))
    one, other = (json.loads((f / "result.json").read_text()) for f in (whole, killed))
    assert one["test"] == other["test"]
    curves = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    assert curves[0] == curves[1]
    assert "of 359 test images right" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    folder = tmp_path / "run"
    process = begin(*RUN, "--epochs", "9", "--out", folder)
    wait_for(process, folder, 4)
    process.send_signal(number)
    found, out, error = ended(process)
    assert found == code, error
    done = int(error.split("stopped and saved after ")[1].split()[0])
    assert error.endswith(f"go on with: spiritlevel train --resume --out {folder}\n")
    assert "Traceback" not in error
    assert out == ""
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    assert newest.name.startswith(f"{done:08}-")
    assert steps(folder) == done


@pytest.mark.slow
def test_a_full_disk_stops_it_and_leaves_the_checkpoint_before(tmp_path):
    """By a limit on the size of a file: what the system says of a disk that takes no more."""
    folder = tmp_path / "run"
    process = begin(*RUN, "--epochs", "9", "--out", folder, "--save-every", "0")
    wait_for(process, folder, 4)
    process.terminate()
    assert ended(process)[0] == 143
    kept = sorted((folder / "checkpoints").iterdir())
    size = kept[-1].stat().st_size // 2

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    code, _, error = ended(begin("--resume", "--out", folder, preexec_fn=limit))
    assert code == 2
    assert "got no room for a checkpoint of" in " ".join(error.split())
    assert "File too large" in error
    assert "Traceback" not in error
    assert sorted((folder / "checkpoints").iterdir()) == kept
    process = begin("--resume", "--out", folder)
    wait_for(process, folder, steps(folder) + 1)
    process.terminate()
    assert ended(process)[0] == 143


@pytest.mark.slow
def test_it_says_what_it_wrote_and_what_comes_next(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*RUN, "--epochs", "1", "--probe", "5", "--check", "--out", str(folder)]
    assert main(["train", *words]) == 0
    told = capsys.readouterr()
    assert f"run: {folder}" in told.err
    assert "epoch 1: " in told.err
    assert "SL106" in told.out
    assert "best weights (epoch 1): " in told.out
    assert f"next: spiritlevel eval {folder} --data digits" in told.out
    assert "<html" in (folder / "probe.html").read_text()[:200]
    assert main(["train", *words]) == 2
    assert "which holds a run already" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", "--out", str(folder), "--lr", "0.3"]) == 2
    assert "(recipe.lr = 0.1, not 0.3)" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_a_reader_that_leaves_ends_nothing(tmp_path):
    words = " ".join(map(str, [*RUN, "--out", tmp_path / "run"]))
    line = f"{sys.executable} -m spiritlevel train {words} 2>&1 | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    assert done.stdout == f"run: {tmp_path / 'run'}\n"
    assert steps(tmp_path / "run") == 30
    assert (tmp_path / "run" / "result.json").exists()


def of_ones_own(folder, monkeypatch, name, norm):
    """A module of that name in the working directory, whose model has one norm."""
    (folder / f"{name}.py").write_text(
        "from torch import nn\n"
        "class Own(nn.BatchNorm2d): pass\n"
        "def build(num_classes, in_chans):\n"
        f"    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), {norm}(8), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(folder)


def test_a_norm_that_is_left_is_told(tmp_path, monkeypatch, capsys):
    of_ones_own(tmp_path, monkeypatch, "mine_with_hooks", "Own")
    words = ["train", "mine_with_hooks:build", *RUN[1:], "--epochs", "1", "--norm", "sync"]
    assert main([*words, "--out", "run"]) == 0
    assert "left 1: " in capsys.readouterr().err


def test_a_run_is_made_again_from_its_file(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *RUN, "--epochs", "1", "--seed", "3", "--out", str(first)]) == 0
    assert main(["train", "--config", str(first / "config.toml"), "--out", str(second)]) == 0
    assert alike(weights(first), weights(second))
    assert (first / "config.toml").read_text() == (second / "config.toml").read_text()


def test_a_model_of_ones_own_gets_the_norm(tmp_path, monkeypatch, capsys):
    of_ones_own(tmp_path, monkeypatch, "mine_to_train", "nn.BatchNorm2d")
    words = ["train", "mine_to_train:build", *RUN[1:], "--epochs", "1", "--norm", "ghost:16"]
    assert main([*words, "--out", "run"]) == 0
    assert "mine_to_train.py" in capsys.readouterr().err
    assert set(weights(tmp_path / "run")) >= {"1.running_mean", "5.weight"}


def test_a_run_that_diverges_is_a_finding(tmp_path, capsys):
    words = ["train", *RUN, "--norm", "none", "--lr", "1e30", "--warmup-epochs", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "the first that is not finite is " in error
    assert "take a smaller --lr (now" in error
