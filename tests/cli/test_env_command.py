"""`spiritlevel env` as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from spiritlevel.cli import main


def test_it_is_aligned_and_tells_what_a_bug_report_needs(capsys):
    assert main(["env"]) == 0
    told, err = capsys.readouterr()
    assert err == ""
    lines = [line for line in told.splitlines() if line]
    columns = {re.match(r"(\S+ )*\s*", line).end() for line in lines}
    assert len(columns) == 1, "values stand in one column"
    for label in ("spiritlevel", "torch", "python", "numpy", "system", "processor", "cores"):
        assert re.search(rf"^{label} +\S", told, re.M), label
    for label in ("accelerator", "threads", "kernels", "allocator", "extra study"):
        assert re.search(rf"^{label} +\S", told, re.M), label
    assert re.search(r"^kernels +asked for: auto ", told, re.M)
    assert not re.search(r"\{\w+\}", told)


def test_as_json_it_says_the_same(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    assert found["kernels"]["asked"] == "auto"
    assert found["kernels"]["numba"] == found["versions"].get("numba")
    for package, version in found["versions"].items():
        assert re.search(rf"^{package} +{re.escape(version)}$", told, re.M)
    assert found["system"]["processor"] in told


NUMBA = bool(find_spec("numba"))


@pytest.mark.parametrize(
    ("variable", "lines"),
    [
        ("", ["asked for: auto ", f"active: {'cpu, our Numba' if NUMBA else 'aten, torch'}"]),
        ("aten", ["asked for: aten ", "active: aten, torch's own kernels\n"]),
        ("reference", ["asked for: reference ", "active: reference, the paper's formula"]),
        (
            "fast",
            [
                "asked for: fast ",
                "active: none. got SPIRITLEVEL_KERNELS 'fast'; wanted one of auto,",
            ],
        ),
    ],
)
def test_which_kernels_were_asked_for_and_which_run(monkeypatch, capsys, variable, lines):
    monkeypatch.setenv("SPIRITLEVEL_KERNELS", variable)
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    kernels = told[told.index("\nkernels ") : told.index("\nallocator ")]
    for line in lines:
        assert line in kernels
    version = re.search(r"^numba +(\S+)$", told, re.M)
    assert (f"numba {version[1]}" if version else "numba is not installed") in kernels


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_in_a_narrow_terminal_values_stay_in_their_column():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "spiritlevel", "env"],
        stdout=theirs,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "60", "TERM": "xterm"},
    )
    os.close(theirs)
    told = b""
    try:
        while part := os.read(ours, 4096):
            told += part
    except OSError:
        pass  # the other end is closed
    assert process.wait(60) == 0
    os.close(ours)
    lines = told.decode().splitlines()
    assert max(map(len, lines)) <= 60
    start = next(line for line in lines if line.startswith("torch ")).index("2.")
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("kernels")) + 1]
    assert after[:start].strip() == ""
    assert after[start:].strip()
