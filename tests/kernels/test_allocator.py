import subprocess
import sys

import pytest

from spiritlevel.kernels import tune_allocator

# 40 MiB is above 32 MiB, up to which glibc raises its own threshold. ru_minflt counts pages.
COUNT_FAULTS = """
import resource, sys
from spiritlevel.kernels import tune_allocator
took_effect = tune_allocator() if sys.argv[1] == "tuned" else False
size = 40 << 20
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(took_effect, size // resource.getpagesize(), faults[-1])
"""


def faults_per_block(setting):
    """In a child: the setting is the whole process's, for good."""
    command = [sys.executable, "-c", COUNT_FAULTS, setting]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took_effect, pages, faults = done.stdout.split()
    return took_effect == "True", int(faults) / int(pages)


def test_large_blocks_are_no_longer_faulted_anew():
    took_effect, tuned = faults_per_block("tuned")
    if not took_effect:
        pytest.skip("the C library is not glibc")
    _, untouched = faults_per_block("untouched")
    assert untouched > 0.9
    assert tuned < 0.1


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_says_no(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert tune_allocator() is False


def test_a_c_library_without_mallopt(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())  # musl's has none
    assert tune_allocator() is False
