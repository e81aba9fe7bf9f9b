"""Starts processes that recalibrate together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def outcomes(world: int, meeting: Path, which: str = "all"):
    """What each rank prints."""
    children = [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "recalibrate_on_rank.py",
                str(rank),
                str(world),
                meeting,
                which,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        found = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * world, found
    return [json.loads(output) for output, _ in found]
