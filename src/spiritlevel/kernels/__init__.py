"""Numbers in, numbers out: the operations of normalization, without modules.

Numba is imported when a kernel of it first runs.
"""

from spiritlevel.kernels.activations import ACTIVATIONS
from spiritlevel.kernels.allocator import tune_allocator
from spiritlevel.kernels.backend import BACKENDS, use
from spiritlevel.kernels.ops import batch_norm_act

__all__ = ["ACTIVATIONS", "BACKENDS", "batch_norm_act", "tune_allocator", "use"]
