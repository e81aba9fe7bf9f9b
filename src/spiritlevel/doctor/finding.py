"""What a rule says: which layer, which number, which threshold, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SEVERITIES", "Finding", "Severity"]

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The gravest first. `info`: only suspicious, or good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be."""

    rule: str
    """Such as SL203."""
    severity: Severity
    module: str
    """The module's path, as `named_modules` has it; "" is the model itself."""
    message: str
    """What was seen and what was expected, with the numbers, in a sentence or two."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Plain numbers and texts, the thresholds among them."""
    fix: str = ""
    """What to do, in a sentence or a snippet."""
