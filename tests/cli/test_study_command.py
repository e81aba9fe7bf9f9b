"""`spiritlevel study --model`: a network of the user's own, from a folder of theirs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from spiritlevel.catalogue import say
from spiritlevel.cli.verdicts import print_verdicts
from spiritlevel.study import Study, study
from spiritlevel.study.claims import CLAIMS
from spiritlevel.study.claims.judgement import combine
from spiritlevel.study.networks import title

MODELS = """\
import os
import signal
import time
from torch import nn
from spiritlevel.nn import norm_layer

print("imported by", os.getpid())


class Net(nn.Module):
    def __init__(self, num_classes, in_chans, make):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_chans, 8, 3, padding=1), make(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), make(8), nn.ReLU(),
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def build(num_classes, in_chans, norm):
    print("built by", os.getpid(), flush=True)
    return Net(num_classes, in_chans, norm_layer(norm))


class Finalized:
    asked = False

    def __del__(self):
        if not Finalized.asked:
            Finalized.asked = True
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # what the signal raises here is dropped


def finalizes(num_classes, in_chans, norm):
    Finalized()
    return build(num_classes, in_chans, norm)


def no_norm(num_classes, in_chans):
    return Net(num_classes, in_chans, nn.BatchNorm2d)


def fails(num_classes, in_chans, norm):
    if norm == "group:4":
        raise RuntimeError("no groups here")
    return build(num_classes, in_chans, norm)
"""
SMOKE = ("study", "--preset", "smoke", "--data", "digits", "--jobs", "2")


def spiritlevel(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The installed script, whose folder Python does not import from, unlike `python -m`."""
    script = Path(sys.executable).with_name("spiritlevel")
    return subprocess.run(
        [script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        # Also where the tests run in a shell's background, which has its processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my").mkdir()
    (folder / "my/models.py").write_text(MODELS)
    return folder


@pytest.fixture(scope="module")
def done(folder) -> subprocess.CompletedProcess[str]:
    """A whole run, in `run`."""
    arguments = ("--model", "my.models:build", "--norms", "batch,none,group:4", "--epochs", "1")
    return spiritlevel(folder, *SMOKE, *arguments, "--live", "--json", "--out", "run")


@pytest.mark.slow
def test_every_claim_is_judged_on_the_users_network(done, folder):
    assert done.returncode == 0, done.stderr
    found = Study.load(folder / "run")
    assert found.config["plan"]["networks"] == ["my.models:build"]
    assert found.records.failed() == []
    assert found.missing == frozenset()
    own = [r for r in found.records if r.settings.get("network") == "my.models:build"]
    assert len(own) > len(found.records) / 2
    assert {"batch", "none", "group:4"} <= {record.settings.get("norm") for record in own}


@pytest.mark.slow
def test_it_says_whose_code_it_runs_before_it_does(done):
    lines = done.stderr.splitlines()
    line = 1 + next(i for i, text in enumerate(MODELS.splitlines()) if "def build" in text)
    said = lines.index(f"runs your code: build in ./my/models.py, line {line} (my.models:build)")
    ran = next(i for i, text in enumerate(lines) if text.startswith("built by"))
    assert said < ran


@pytest.mark.slow
def test_what_the_users_code_prints_is_not_among_the_json(done):
    told = json.loads(done.stdout)
    assert [verdict["claim"] for verdict in told["verdicts"]] == list(CLAIMS)
    builders = set(re.findall(r"^built by (\d+)$", done.stderr, re.M))
    assert len(builders) >= 2, "other processes print, too"


@pytest.mark.slow
def test_epochs_are_passes_over_the_training_images(done, folder):
    found = Study.load(folder / "run")
    plan = found.config["plan"]
    images = found.config["data"]["counts"]["train"]
    assert plan["sweep_steps"] == max(22, round(images / plan["batch_size"]))


@pytest.mark.slow
def test_the_page_is_whole_at_the_end_of_a_live_run(done, folder):
    page = (folder / "run/report.html").read_text()
    assert "my.models:build" in page
    assert 'id="live"' not in page
    assert not list((folder / "run").glob("*.tmp"))


@pytest.mark.slow
def test_it_says_what_was_changed_in_the_images_as_they_were_read(done):
    assert "images: 8x8 pixels brought to 32x32" in done.stderr


def test_a_live_page_is_written_again_and_again_and_at_last_without_saying_it_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("spiritlevel.study.live._SECONDS", 0)
    monkeypatch.setattr("spiritlevel.study.live._SHARE", float("inf"))
    page, told = tmp_path / "report.html", []

    def look(progress):
        """Before the page of this very moment is drawn."""
        if progress.record is None:
            assert not page.exists()
            return
        text = page.read_text()
        told.append(int(re.search(r"data-written=.*?(\d+) of 94 runs are done", text, re.S)[1]))
        assert text.count(say("page.not_yet")) >= 5
        if progress.done == 3:
            raise KeyboardInterrupt

    wish = {"preset": "smoke", "data": "digits", "out": tmp_path, "jobs": 1, "live": True}
    with pytest.raises(KeyboardInterrupt):
        study(**wish, progress=look)
    assert told == [0, 1, 2]
    ended = page.read_text()
    assert 'id="live"' not in ended
    assert say("page.not_yet") not in ended
    assert "91 of the 94 runs" in ended or "gave no result" in ended


@pytest.mark.slow
def test_a_resumed_run_says_whose_code_it_runs(done, folder):
    again = spiritlevel(folder, "study", "--resume", "--out", "run")
    assert again.returncode == 0, again.stderr
    assert "runs your code: build in ./my/models.py" in again.stderr
    assert "keeps the inputs of layers steady" in again.stdout


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("my.models:no_norm", "takes no norm; wanted a network that can be built with any norm"),
        (
            "my.models:fails",
            "got RuntimeError: no groups here from my.models:fails (./my/models.py",
        ),
        ("my.models:bild", "./my/models.py has no bild; wanted a function there"),
        ("my.model:build", "there is no module my.model in"),
    ],
)
def test_a_fault_of_the_users_is_told_before_anything_is_written(folder, model, told):
    arguments = ("--model", model, "--norms", "batch,none,group:4", "--out", "refused")
    failed = spiritlevel(folder, *SMOKE, *arguments)
    assert failed.returncode == 2
    assert told in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "fault of ours" not in failed.stderr
    assert not (folder / "refused").exists()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def printed(found: Study, stream: StringIO, columns: int, monkeypatch) -> list[str]:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    print_verdicts(found)
    monkeypatch.undo()
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_claim_over_several_networks_has_a_row_for_each(done, folder, monkeypatch, columns):
    found = Study.load(folder / "run")
    one = found.verdicts["converges"]
    names = ("small_vgg", "small_resnet", "my.models:[b]build")
    found.verdicts["converges"] = combine(dict.fromkeys(names, one))
    lines = printed(found, Terminal(), columns, monkeypatch)
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("(a)"))]
    assert max(map(len, table)) <= columns
    for name in names:
        (row,) = (line for line in table if line.startswith(f"  {title(name)} "))
        assert row.split(title(name))[1].split()[:2] == ["?", "inconclusive"]
        assert row.split()[-1] != "inconclusive", "figure and interval"
    claim = next(line for line in table if line.startswith("trains faster"))
    assert claim.split()[-2:] == ["?", "inconclusive"], "the figures are the networks'"


@pytest.mark.slow
def test_in_a_pipe_no_line_is_broken(done, folder, monkeypatch):
    found = Study.load(folder / "run")
    lines = [line.rstrip() for line in printed(found, StringIO(), 40, monkeypatch)]
    for claim, verdict in found.verdicts.items():
        assert any(line.startswith(say(f"terminal.claims.{claim}") + "  ") for line in lines)
        assert say(verdict.headline.quantity, **verdict.headline.words) in lines
    assert all(example in lines for example in found.examples)


def test_ctrl_c_that_python_drops_ends_the_run_all_the_same(folder):
    arguments = ("--model", "my.models:finalizes", "--norms", "batch,none", "--jobs", "1")
    stopped = spiritlevel(folder, *SMOKE[:-2], *arguments, "--out", "dropped")
    assert "Exception ignored in" in stopped.stderr
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1].startswith("stopped: what was done is in dropped;")
