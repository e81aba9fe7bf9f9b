"""`spiritlevel explain`: the arithmetic, step by step, for a terminal or a pipe."""

from spiritlevel.cli.explain.command import CONTEXT, explain

__all__ = ["CONTEXT", "explain"]
