"""What `check` says of each bug in the book, and of its clean twin."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from case_book import CASES, Entry

from spiritlevel.doctor.check import check
from spiritlevel.doctor.diagnosis import Diagnosis

__all__ = ["CASES", "Entry", "diagnosed", "false_alarms", "is_hit"]

for file in sorted(Path(__file__).parent.glob("cases_*.py")):
    importlib.import_module(file.stem)
CASES.sort(key=lambda entry: entry.rule)


def diagnosed(build: Callable[[], dict[str, Any]]) -> Diagnosis:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return check(**build())


def is_hit(entry: Entry, found: Diagnosis) -> bool:
    """Whether the rule names the module."""
    return (entry.rule, entry.module) in {(each.rule, each.module) for each in found.findings}


def false_alarms(entry: Entry, found: Diagnosis) -> list[str]:
    """Of any rule, in the twin; of the entry's own rule info, too."""
    return [
        f"{each.rule} {each.severity} at {each.module}: {each.message}"
        for each in found.findings
        if each.severity != "info" or each.rule == entry.rule
    ]
