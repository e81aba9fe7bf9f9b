"""Images in: `load` reads them, `prepare` makes them a network's input, `batches` draws rows."""

from spiritlevel.data.images import Images
from spiritlevel.data.loader import Prepared, batches, prepare
from spiritlevel.data.sources import load

__all__ = ["Images", "Prepared", "batches", "load", "prepare"]
