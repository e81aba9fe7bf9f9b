"""What measurements on a GPU share with those here, and what they say where there is none."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spiritlevel.bench import ghost_on_gpu
from spiritlevel.bench.device import Device
from spiritlevel.bench.report import tables
from spiritlevel.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_steps_of_a_ghostnet_are_compared_and_told(capsys):
    """On a processor, where nothing is captured."""
    told = []
    given = {"device": "cpu", "batch": 8, "size": 64, "rounds": 3, "compiled": False}
    found = ghost_on_gpu(**given, progress=lambda *a: told.append(a))
    found = json.loads(json.dumps(found))
    (row,) = found["cases"]
    assert (row["model"], row["batch"], row["size"]) == ("ghostnet_100", 8, 64)
    assert {"plain", "ours", "resnet18"} <= row["seconds"].keys()
    assert row["largest_difference"]["ours"] < found["tolerance"]["bfloat16"]
    ours = row["seconds"]["ours"]["median"]
    for name in ("plain", "resnet18"):
        assert row["ratios"][name]["value"] == pytest.approx(row["seconds"][name]["median"] / ours)
        assert row["peak_ratio"][name] == row["peak_bytes"]["ours"] / row["peak_bytes"][name]
    assert found["meaning"].keys() == row["ratios"].keys()
    assert told[-1][0] == pytest.approx(1.0)
    console = Console(width=160)
    for part in tables(found):
        console.print(part)
    out = capsys.readouterr().out
    assert "our model on torch's kernels over ours" in out
    assert "Medians of 3 interleaved steps on cpu, channels-last, autocast to bfloat16" in out


@pytest.mark.parametrize("given", [{"batch": 1}, {"size": 16}])
def test_what_cannot_be_measured(given):
    with pytest.raises(UsageError, match="wanted 2 images or more, 32 px or more"):
        ghost_on_gpu(device="cpu", **given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(UsageError, match=r"got device 'cuda', but torch sees 0 GPU\(s\) here"):
        ghost_on_gpu(device="cuda")


def test_the_clock_of_a_processor():
    here, ran = Device("cpu"), []
    assert 0 <= here.seconds(lambda: ran.append(1)) < 5
    assert here.waited(lambda: ran.append(1)) >= 0
    assert len(ran) == 2
    assert here.peak_bytes(lambda: torch.empty(1 << 20, dtype=torch.uint8)) >= 1 << 20
    assert here.model is None is here.memory()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_clock_of_a_gpu():
    there = Device("cuda")
    x = torch.randn(1 << 26, device="cuda")
    many, few = (there.seconds(lambda n=n: [x.add_(1) for _ in range(n)]) for n in (20, 1))
    assert many > 5 * few
    assert there.peak_bytes(lambda: torch.empty(1 << 20, device="cuda")) >= 1 << 22


@pytest.mark.parametrize("fails", ["pytest", "bfloat16", ""])
def test_make_gpu_measures_whatever_fails_and_says_so_at_the_end(fails, tmp_path):
    python, told = tmp_path / "python", tmp_path / "told"
    python.write_text(
        f"""#!/bin/sh
case "$*" in
    *get_device_name*) echo a-gpu ;;
    -c*) ;;
    *) echo "$@" >>{told}; case "$*" in *"${{FAILS:-nothing}}"*) exit 3 ;; esac ;;
esac
"""
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "tools" / "gpu.sh")],
        env=os.environ | {"PYTHON": str(python), "FAILS": fails, "ARGS": "--rounds 3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if fails else 0), done.stderr
    tests, *measured = told.read_text().splitlines()
    assert "-m pytest" in tests
    assert "-m gpu tests/" in tests
    for line, dtype in zip(measured, ["bfloat16", "float32"], strict=True):
        assert line.startswith(f"-m spiritlevel bench norms --device cuda --dtype {dtype} ")
        assert f"--out bench/results/a-gpu-norms-{dtype}.json --rounds 3" in line
