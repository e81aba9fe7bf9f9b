"""Images in: `load` reads them, `prepare` makes them a network's input, `batches` draws rows."""

from spiritlevel.data.augment import crop_and_flip
from spiritlevel.data.images import Images
from spiritlevel.data.loader import Prepared, batches, prepare
from spiritlevel.data.pixels import Pixels
from spiritlevel.data.preprocessing import Preprocessing
from spiritlevel.data.sources import load

__all__ = [
    "Images",
    "Pixels",
    "Prepared",
    "Preprocessing",
    "batches",
    "crop_and_flip",
    "load",
    "prepare",
]
