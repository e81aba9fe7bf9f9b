"""Fold -> file -> run it -> compare: a model as a file that is known to be right."""

import sys
from types import ModuleType

from spiritlevel.export.metadata import Metadata, Normalization
from spiritlevel.export.read import read_metadata
from spiritlevel.export.report import Differs, ExportReport, Verification
from spiritlevel.export.steps import FORMATS, export

__all__ = [
    "FORMATS",
    "Differs",
    "ExportReport",
    "Metadata",
    "Normalization",
    "Verification",
    "export",
    "read_metadata",
]


class _ExportModule(ModuleType):
    """`sl.export(...)` is a verb and `spiritlevel.export` a room: the module answers to both."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _ExportModule
