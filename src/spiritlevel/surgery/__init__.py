"""Change a model you have; `model.spiritlevel_log` says what was done, what was left and why."""

from spiritlevel.surgery.convert import convert
from spiritlevel.surgery.fold import fold
from spiritlevel.surgery.fuse import fuse
from spiritlevel.surgery.log import Entry
from spiritlevel.surgery.recalibrate import recalibrate
from spiritlevel.surgery.recalibration import Recalibrated, Recalibration

__all__ = ["Entry", "Recalibrated", "Recalibration", "convert", "fold", "fuse", "recalibrate"]
