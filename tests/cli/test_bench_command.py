"""`spiritlevel bench` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from spiritlevel.cli import main
from spiritlevel.nn.batch import BatchNormAct2d

SMALL = ["bench", "norms", "--shape", "4x8x6x6", "--rounds", "3", "--threads", "1"]
SMALL += ["--no-compile", "--no-first-step", "--no-add"]


def test_it_prints_ratios_and_saves_all_of_it(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main([*SMALL, "--out", str(out)]) == 0
    told, err = capsys.readouterr()
    for text in ("4x8x6x6", "BN + relu, forward+backward", "ours / floor", "peak memory", "mean"):
        assert text in told
    assert "{" not in told
    assert f"saved: {out}" in err
    found = json.loads(out.read_text())
    (row,) = found["cases"]
    value = row["modes"]["eval"]["ratios"]["eager"]["value"]
    assert f"{value:.2f}" in told
    assert list(tmp_path.iterdir()) == [out]


def test_without_out_it_says_how_to_keep_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(SMALL) == 0
    assert "not saved; --out FILE.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*SMALL, "--act", "tanh"], "got activation 'tanh'; wanted one of"),
        ([*SMALL, "--shape", "32x"], "got shape '32x'"),
        ([*SMALL, "--shape", "0x3x4x4"], "got shape '0x3x4x4'"),
        ([*SMALL, "--threads", "9999"], "got 9999 threads"),
        ([*SMALL, "--rounds", "0"], "got 0 rounds"),
        ([*SMALL, "--device", "cuda"], "got device 'cuda'"),
        (["bench", "fuse", "--model", "resnet50"], "got model 'resnet50'"),
        (["bench", "ghost", "--quick", "--size", "16"], "got size=16, batch=16"),
        (["bench", "ghost", "--quick", "--batch", "2"], "got size=32, batch=2"),
        (["bench", "allocator", "--shape", "1x1"], "got shape '1x1'"),
        (["bench", "no-such"], "no-such"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_2(arguments, told, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message


def test_an_out_that_cannot_be_is_refused_before_it_measures(capsys, tmp_path, monkeypatch):
    def measured(**_):
        raise AssertionError("measured")

    monkeypatch.setattr("spiritlevel.bench.norms", measured)
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "none/found.json", tmp_path / "file/found.json"):
        assert main([*SMALL, "--out", str(out)]) == 2
        assert f"{out}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_mismatch_is_a_finding(capsys, monkeypatch, tmp_path):
    right = BatchNormAct2d.forward
    monkeypatch.setattr(BatchNormAct2d, "forward", lambda s, x, r=None: right(s, x, r) + 0.01)
    assert main([*SMALL, "--out", str(tmp_path / "found.json")]) == 1
    told, err = capsys.readouterr()
    assert told == ""
    assert "got the output from ours" in err
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch():
    look = "import sys; from spiritlevel.cli import main; main(['bench', 'norms', '--help']); "
    look += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--no-first-step" in done.stdout
