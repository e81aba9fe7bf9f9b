"""Of docs: start, batchnorm, kernels, numerics, extending: code runs, figures are the records'."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tool_at import tool

from spiritlevel.cli import main
from spiritlevel.export.compare import TOLERANCE as EXPORTED
from spiritlevel.study import Study
from spiritlevel.surgery.beside import TOLERANCE as FOLDED
from spiritlevel.surgery.verify import TOLERANCE as FUSED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.M | re.S)


def ran(command: str, folder: Path, *, code: int = 0) -> str:
    """What a command prints, with the `spiritlevel` and `python` that are under test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout


def plain(told: str) -> str:
    """Lines may be broken anywhere, and the last digits of an accuracy are the machine's."""
    return re.sub(r"0\.\d\d\b", "0.##", " ".join(told.split()))


@pytest.mark.slow
def test_who_starts_gets_to_a_finding_and_a_fused_step(tmp_path):
    for name, code in zip(("mine.py", "start.py"), blocks("start", "python"), strict=True):
        assert f"`{name}`" in text("start")
        (tmp_path / name).write_text(code)
    lines = "".join(blocks("start", "console")).splitlines()
    commands = [line.removeprefix("$ ") for line in lines]
    install, *others = commands
    assert install in (ROOT / "README.md").read_text()
    told = "".join(ran(each, tmp_path, code=" check " in each) for each in others)
    for shown in blocks("start", "text"):
        for paragraph in shown.split("\n\n"):
            assert plain(paragraph) in plain(told), paragraph


def test_what_the_start_names_beside_that_is_there(capsys):
    named = re.findall(r"`(spiritlevel [^`]+)`", text("start"))
    assert len(named) > 4
    for command in named:
        assert main([command.split()[1], "--help"]) == 0


@pytest.fixture(scope="module")
def study():
    return Study.load(DOCS / "standard")


def test_what_bn_does_is_what_the_records_say(study):
    learn = tool("learn")
    assert learn.learned(text("batchnorm"), study) == text("batchnorm")
    assert learn.measured(text("kernels")) == text("kernels")
    for name, verdict in study.verdicts.items():
        picture = (DOCS / f"batchnorm/{name}.svg").read_text(encoding="utf-8")
        assert picture == learn.picture(verdict), name
        assert f"Verdict: {verdict.status}" in learn.found(verdict)


def test_a_figure_that_is_not_the_records_is_written_anew(study):
    learn = tool("learn")
    changed = text("batchnorm").replace("4.77×", "9.99×")
    assert changed != text("batchnorm")
    assert learn.learned(changed, study) == text("batchnorm")
    with pytest.raises(SystemExit, match="no place for: decouples"):
        learn.learned(text("batchnorm").replace("<!-- decouples -->", ""), study)


def test_the_code_on_what_bn_does_runs(capsys):
    for code in blocks("batchnorm", "python"):
        exec(compile(code, "batchnorm.md", "exec"), {})
    shown, apart = capsys.readouterr().out.splitlines()
    assert "-1.2247" in shown
    assert float(re.findall(r"[\d.]+e-\d+", apart)[0]) < 1e-13


@pytest.mark.slow
def test_the_code_on_the_kernels_runs(capsys):
    size, compared = blocks("kernels", "python")
    exec(compile(size, "kernels.md", "exec"), {})
    assert capsys.readouterr().out.strip() == size.rpartition("# ")[2].strip()
    exec(compile(compared, "kernels.md", "exec"), {})
    ours, torchs = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert ours < torchs
    assert ours < 1e-3


@pytest.mark.slow
def test_the_code_on_numerics_runs():
    (code,) = blocks("numerics", "python")
    exec(compile(code, "numerics.md", "exec"), {})


EXAMPLES = ("A norm", "A model", "A rule", "A kernel")


@pytest.mark.slow
@pytest.mark.parametrize("title", EXAMPLES)
def test_each_example_of_extending_runs(title, tmp_path):
    """In a process of its own: a rule and an activation are entered where all tests would see."""
    part = text("extending").split(f"\n## {title}\n")[1].partition("\n## ")[0]
    codes = re.findall(r"^```python\n(.*?)^```", part, re.M | re.S)
    assert any("assert" in code for code in codes)
    (tmp_path / "example.py").write_text("\n".join(codes))
    told = ran("python example.py", tmp_path)
    for shown in re.findall(r"^```text\n(.*?)^```", part, re.M | re.S):
        assert shown in told


def test_all_of_extending_is_run():
    assert re.findall(r"^## (.+)", text("extending"), re.M) == list(EXAMPLES)


def test_the_tolerances_told_are_those_that_hold():
    kernels = ast.literal_eval(
        re.sub(
            r"#.*|torch\.(\w+)",
            lambda found: f"'{found[1]}'" if found[1] else "",
            (ROOT / "tests/kernels/tolerance.py").read_text().partition("TOLERANCE = ")[2],
        )
    )
    rows = re.findall(r"^\| (\w+) \| ([\d.e-]+) \|", text("numerics"), re.M)
    assert {name: float(value) for name, value in rows} == {
        name: bounds["rtol"] for name, bounds in kernels.items()
    }
    assert all(bounds["rtol"] == bounds["atol"] for bounds in kernels.values())
    changing = re.findall(r"^\| `sl\..*?\| ([\d.e-]+) \| ([\d.e-]+) \|", text("numerics"), re.M)
    assert [tuple(map(float, row)) for row in changing] == [
        tuple(FUSED.values()),
        tuple(FOLDED.values()),
        tuple(EXPORTED.values()),
    ]
