"""What torch is about to give up is an error in the tests' own process; here, in all the others."""

import ast
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import spiritlevel as sl
from spiritlevel.export import quiet

ROOT = Path(__file__).parents[2]
ERRORS = "error::DeprecationWarning,error::FutureWarning"
"""For the workers of a command, too: they inherit it."""

SILENT = {
    "bench/deploy.py": "OpenVINO has no bfloat16 on some processors",
    "cli/models.py": "groups do not divide some widths of the table",
    "doctor/structure.py": "a user's own code, traced, who hears it when it runs",
    "export/quiet.py": "nothing but one error is heard of an export; see below",
    "export/runtimes.py": "torch.export's reader warns of its own file",
    "models/weight_metadata.py": "a model made anew on the device meta, to compare shapes",
    "study/cluster.py": "Dask warns of its own graphs and of its end",
    "study/engine.py": "joblib warns of workers that it replaces",
    "study/trial.py": "groups that do not divide are told where it trains",
    "train/journal.py": "TensorBoard's protocol buffers, as they are imported",
    "train/learner.py": "a first rate is set before the first step, as torch warns",
}
"""Where the source silences a warning, and which one."""


def silences(file):
    """Whether it has a call that ignores warnings."""
    text = file.read_text(encoding="utf-8")
    calls = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call))
    asked = ("warnings.catch_warnings", "warnings.simplefilter", "warnings.filterwarnings")
    return any(
        ast.unparse(call.func) in asked and "'ignore'" in ast.unparse(call) for call in calls
    )


def test_the_source_silences_warnings_only_where_it_is_known_why():
    package = ROOT / "src" / "spiritlevel"
    files = [file for file in package.rglob("*.py") if "warnings" in file.read_text("utf-8")]
    found = {file.relative_to(package).as_posix() for file in files if silences(file)}
    assert found == set(SILENT)


def command(*words, cwd, wanted=0):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONWARNINGS": ERRORS, "SPIRITLEVEL_CACHE": str(cwd / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == wanted, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("category", ["DeprecationWarning", "FutureWarning"])
def test_a_command_that_meets_one_fails(category, tmp_path):
    """Else the tests below could not fail."""
    code = f"import warnings\nwarnings.warn('torch.old is about to go', {category})\n"
    (tmp_path / "mine.py").write_text(code)
    told = command("spiritlevel", "check", "mine:build", cwd=tmp_path, wanted=2)
    assert f"{category}: torch.old is about to go" in told


@pytest.mark.slow
def test_a_study_and_its_workers(tmp_path):
    command(
        *("spiritlevel", "study", "--preset", "smoke", "--data", "digits", "--out", "run"),
        cwd=tmp_path,
    )
    records = (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8")
    assert "is deprecated" not in records


@pytest.mark.slow
def test_training_on_two_processes_and_what_comes_after(tmp_path):
    train = ("train", "small_resnet", "--data", "digits", "--epochs", "1", "--norm", "sync")
    two = ("torch.distributed.run", "--nproc-per-node", "2", "-m", "spiritlevel")
    command(*two, *train, "--probe", "20", "--out", "run", cwd=tmp_path)
    command("spiritlevel", "eval", "run", "--data", "digits", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.xml"])
def test_an_export_calls_nothing_that_is_about_to_go(name, tmp_path, monkeypatch):
    """It is heard of none; what torch does within itself is its own affair."""
    heard = []

    class Heard(warnings.catch_warnings):
        def __init__(self, *, action):
            super().__init__(record=True, action="always")

        def __enter__(self):
            heard.append(super().__enter__())

    monkeypatch.setattr(quiet, "warnings", SimpleNamespace(catch_warnings=Heard))
    sl.export(sl.create_model("small_resnet", 10), tmp_path / name, torch.randn(2, 3, 32, 32))
    assert heard
    ours = [
        str(one.message)
        for each in heard
        for one in each
        if issubclass(one.category, DeprecationWarning | FutureWarning)
        and "spiritlevel" in Path(one.filename).parts
    ]
    assert ours == []
