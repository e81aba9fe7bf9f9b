"""Change a model you have; `model.spiritlevel_log` says what was done, what was left and why."""

from spiritlevel.surgery.convert import convert
from spiritlevel.surgery.fold import fold
from spiritlevel.surgery.fuse import fuse
from spiritlevel.surgery.log import Entry

__all__ = ["Entry", "convert", "fold", "fuse"]
