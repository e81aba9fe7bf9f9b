"""`torchrun ... -m spiritlevel train` with real processes on gloo."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RUN = [
    "small_vgg",
    "--data",
    "digits",
    "--image-size",
    "16",
    "--epochs",
    "2",
    "--batch-size",
    "128",
    "--no-check",
]
RUN += ["--augment", "crop-flip", "--ema-decay", "0.9"]
OWN = """
import os, signal
import torch
import spiritlevel as sl

class Dies(torch.nn.Module):
    passes = 0

    def forward(self, x):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        Dies.passes += self.training and torch.is_grad_enabled()
        if first and os.environ.get("RANK") == "1" and Dies.passes == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

def build(num_classes, in_chans, norm):
    model = sl.create_model("small_vgg", num_classes, norm, in_chans=in_chans)
    return torch.nn.Sequential(model, Dies())
"""


ALONE = """
import os
import torch
import spiritlevel as sl
from spiritlevel.errors import UsageError

class Bad(torch.nn.Module):
    passes = 0

    def forward(self, x):
        Bad.passes += self.training and torch.is_grad_enabled()
        return x / 0 if os.environ.get("RANK") == "1" and Bad.passes >= 3 else x

def breaks(num_classes, in_chans, norm):
    model = sl.create_model("small_vgg", num_classes, norm, in_chans=in_chans)
    return torch.nn.Sequential(Bad(), model)

def refuses(num_classes, in_chans, norm):
    if os.environ.get("RANK") == "1":
        raise UsageError("got no luck on this machine")
    return breaks(num_classes, in_chans, norm)
"""


def command(processes, *more):
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += [f"--nproc-per-node={processes}", *more]
    return [*start, "-m", "spiritlevel", "train"]


def spawn(words, folder, **options):
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, env=environment, **pipes, **options)


def finished(words, folder):
    process = spawn(words, folder)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def curve(folder, kind="train"):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in found if line["kind"] == kind]


def as_one(several, one):
    """Sums in another order: the last digit at first, then what training makes of it."""
    torch.testing.assert_close(curve(several)[:8], curve(one)[:8], rtol=1e-6, atol=0)
    torch.testing.assert_close(curve(several), curve(one), rtol=5e-3, atol=0)


def weights(folder):
    return load_file(folder / "last.safetensors")


@pytest.mark.parametrize("extra", [[], ["--mixup", "0.2", "--accumulate", "2"]])
def test_two_processes_with_synced_norm_train_as_one(tmp_path, extra):
    one, two = tmp_path / "one", tmp_path / "two"
    finished([*command(1), *RUN, *extra, "--out", one], tmp_path)
    finished([*command(2), *RUN, *extra, "--norm", "sync", "--out", two], tmp_path)
    assert [step for step, _ in curve(one)] == list(range(1, 21))
    as_one(two, one)
    there, here = curve(two, "validation"), curve(one, "validation")
    torch.testing.assert_close(there, here, rtol=5e-3, atol=0)
    torch.testing.assert_close(weights(two), weights(one), rtol=2e-2, atol=2e-3)
    result = json.loads((two / "result.json").read_text())
    assert result["processes"] == 2
    assert result["test"]["last"]["images"] == 359


def test_batches_may_be_uneven(tmp_path):
    """Of 3 images a pass two processes have 2 and 1, of 1 image one has none."""
    short = [*RUN, "--validation", "0.5", "--ema-decay", "0"]
    for size, accumulate in ((63, 21), (60, 60)):
        sizes = ["--batch-size", str(size), "--accumulate", str(accumulate), "--epochs", "1"]
        one, two = tmp_path / f"one{size}", tmp_path / f"two{size}"
        finished([*command(1), *short, *sizes, "--out", one], tmp_path)
        finished([*command(2), *short, *sizes, "--norm", "sync", "--out", two], tmp_path)
        torch.testing.assert_close(curve(two)[:4], curve(one)[:4], rtol=1e-3, atol=0)


def test_statistics_of_each_process_are_made_equal(tmp_path):
    words = [*RUN, "--validation", "0", "--out", tmp_path / "run"]
    told = finished([*command(2), *words], tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "test images right" in told
    # Without validation the best weights are the last: those of the file, which all are given, and
    # those that each process holds. With statistics of its own one would answer otherwise.
    assert result["test"]["best"] == result["test"]["last"]


def test_a_lost_process_costs_what_came_after_the_last_checkpoint(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    words = ["mine:build", *RUN[1:], "--norm", "sync", "--save-every", "0"]
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    finished([*command(1), *words, "--out", whole], tmp_path)
    told = finished([*command(2, "--max-restarts=1"), *words, "--out", lost], tmp_path)
    assert "test images right" in told
    assert [step for step, _ in curve(lost)] == list(range(1, 21))
    as_one(lost, whole)


def test_a_signal_saves_on_all_and_all_go_on(tmp_path):
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    words = [*command(2), *RUN, "--norm", "sync", "--epochs", "6"]
    finished([*words, "--out", whole], tmp_path)
    process = spawn([*words, "--out", ended], tmp_path)
    while not (ended / "metrics.jsonl").exists() or len(curve(ended)) < 5:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.count("go on with: spiritlevel train --resume") == 1
    done = len(curve(ended))
    assert done < 60
    finished([*words, "--out", ended, "--resume"], tmp_path)
    assert [step for step, _ in curve(ended)] == list(range(1, 61))
    torch.testing.assert_close(weights(ended), weights(whole))


def test_wrong_use_is_told_once(tmp_path):
    process = spawn([*command(2), *RUN, "--norm", "bitch", "--out", tmp_path / "run"], tmp_path)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 1  # torchrun's own
    assert told.count("got norm 'bitch'") == 1


def test_what_one_process_alone_knows_is_told(tmp_path):
    """Once, and by its name: numbers that are not finite, and an error before the first update."""
    (tmp_path / "alone.py").write_text(ALONE)
    for factory, norm, wanted in (
        ("breaks", "group:8", "the first that is not finite is 0 (Bad), whose input is finite"),
        ("refuses", "batch", "on rank 1: "),
    ):
        words = [f"alone:{factory}", *RUN[1:], "--norm", norm, "--out", tmp_path / factory]
        process = spawn([*command(2), *words], tmp_path)
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 1, told
        told = " ".join(told.split())
        assert told.count(wanted) == 1, told
        assert ("got no luck on this machine" in told) is (factory == "refuses")
    assert not (tmp_path / "refuses" / "config.toml").exists()
