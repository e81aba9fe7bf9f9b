"""Exit codes, and what a user reads who made a mistake."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from spiritlevel import __version__
from spiritlevel.cli import main
from spiritlevel.cli.lines import writable


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spiritlevel", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(command in told for command in ("explain", "study", "report", "models", "env"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["study", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
        (["study", "--preset", "x"], "got preset 'x'; wanted one of: quick, standard, smoke"),
        (["study", "--lrs", "0.1,fast"], "got --lrs 0.1,fast; wanted numbers"),
        (["study", "--seeds", ""], "got --seeds ; wanted numbers"),
        (["study", "--jobs", "0"], "got jobs=0; wanted at least 1"),
        (["study", "--norms", "batch"], "wanted none and batch among them"),
        (["study", "--norms", "none,batch,bach"], "bach"),
        (["study", "--data", "nothing"], "nothing"),
        (["study", "--mean", "0.5;0.5"], "got --mean 0.5;0.5; wanted numbers"),
        (["study", "--epochs", "0"], "got epochs=0.0; wanted a number above 0"),
        (["study", "--image-size", "3"], "got image size 3"),
        (["study", "--model", "small_vgg"], "wanted pkg.module:factory, as my.models:build"),
        (["study", "--model", "no.such:build"], "there is no module no"),
        (["study", "--model", "collections:OrderedDict"], "whose signature"),
        (["report", "/no/such/run"], "holds no config.json"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_2(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == [], "something was left half-written"


def test_resume_without_any_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--resume"]) == 2
    assert "there is no run in runs/" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    done = run("study", "--preset", "x", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UsageError" in done.stderr


def test_a_fault_of_ours_is_told_apart(capsys, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("for the test")

    monkeypatch.setattr("spiritlevel.study.study", broken)
    assert main(["study"]) == 3
    assert "ZeroDivisionError: for the test" in capsys.readouterr().err


def test_a_reader_who_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m spiritlevel explain 1 3 5 | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_command_line_does_not_wait_for_torch():
    """`explain` and `--help` start in a moment: torch takes seconds to import."""
    code = "import sys; from spiritlevel.cli import main; main(['--help']); main(['explain', '1']);"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("env --lang zh", "系统"),
        ("explain 1 3 5 --lang zh", "批归一化"),
        ("explain 1 3 5", "√variance = √(8/3) ≈ 1.6330"),
    ],
)
@pytest.mark.parametrize(
    ("asked_for", "written"),
    [("ascii", "utf-8"), ("latin-1", "utf-8"), ("cp1252", "utf-8"), ("gbk", "gbk")],
)
def test_a_stdout_keeps_its_encoding_where_that_has_the_signs(asked_for, written, arguments, told):
    done = subprocess.run(
        [sys.executable, "-m", "spiritlevel", *arguments.split()],
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": asked_for},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert told in done.stdout.decode(written)
    assert "zh" not in arguments or b"\\x" not in done.stdout  # no sign is escaped


def test_json_is_read_in_any_encoding():
    done = subprocess.run(
        [sys.executable, "-m", "spiritlevel", "explain", "1", "3", "5", "--json"],
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "gbk"},
    )
    assert done.stdout.isascii()


def test_a_sign_that_a_stream_lacks_is_escaped_unless_it_was_told_what_to_do(monkeypatch):
    for errors, wanted in (("strict", b"\\xb2"), ("surrogateescape", b"\\xb2"), ("replace", b"?")):
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, "gbk", errors)
        monkeypatch.setattr(sys, "stdout", stream)
        writable("批√")
        print("²", end="", flush=True)
        assert (stream.encoding, written.getvalue()) == ("gbk", wanted)
