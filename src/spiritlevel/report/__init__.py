"""One page, complete in itself, drawn from a plain dict. Imports no torch.

>>> from spiritlevel import report
>>> path = report.write(story, Path("report.html"))  # doctest: +SKIP

`story.Story` says what the dict holds.
"""

from spiritlevel.report.page import render, write

__all__ = ["render", "write"]
