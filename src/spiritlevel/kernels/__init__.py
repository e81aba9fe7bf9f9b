"""Numbers in, numbers out: the operations of normalization, without modules."""

from spiritlevel.kernels.allocator import tune_allocator

__all__ = ["tune_allocator"]
