"""Triton compiles every kernel for a GPU, where there is none, and is called as it must be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels of `gpu` need the extra triton")


@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_every_kernel_compiles_and_is_called_again_past_tritons_own_way(capability, tmp_path):
    script = Path(__file__).with_name("compiled_for_gpu.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in ("collect", "apply", "reduce", "descend", "convolve", "unjoin"):
        assert f"'{name}': " in done.stdout, done.stdout
