"""Speed and memory, ours beside others': in one process, interleaved, compared before timed."""

from spiritlevel.bench.agree import Mismatch
from spiritlevel.bench.allocator import allocator
from spiritlevel.bench.deploy import BATCHES, deploy
from spiritlevel.bench.first_step import first_step
from spiritlevel.bench.fuse import fuse
from spiritlevel.bench.ghost import CASES, QUICK, ghost
from spiritlevel.bench.ghost_gpu import ghost_on_gpu
from spiritlevel.bench.norms import SHAPES, norms
from spiritlevel.bench.probe import SIZES, probe
from spiritlevel.bench.scale import scale

__all__ = [
    "BATCHES",
    "CASES",
    "QUICK",
    "SHAPES",
    "SIZES",
    "Mismatch",
    "allocator",
    "deploy",
    "first_step",
    "fuse",
    "ghost",
    "ghost_on_gpu",
    "norms",
    "probe",
    "scale",
]
