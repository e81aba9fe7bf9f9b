"""Today's findings, accepted: a file of fingerprints, so that later runs report only new ones.

    {"version": 1, "models": {"my.models:build": [{"rule", "module", "fingerprint"}, ...]}}

A fingerprint is of the rule and the module, not of the numbers, which differ from run to run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spiritlevel.doctor.finding import Finding
from spiritlevel.errors import UsageError
from spiritlevel.files import write_whole

__all__ = ["accepted", "fingerprints", "read", "write"]

_VERSION = 1


def fingerprints(findings: Iterable[Finding]) -> list[str]:
    """16 hexadecimal digits each; a rule's second finding at a module has its own."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for finding in findings:
        place = (finding.rule, finding.module)
        text = "\0".join([*place, *([str(seen[place])] if seen[place] else [])])
        found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
        seen[place] += 1
    return found


def accepted(path: Path, model: str) -> set[str]:
    """The fingerprints that the file has for this model. Raises UsageError."""
    return {entry["fingerprint"] for entry in read(path).get(model, ())}


def read(path: Path) -> dict[str, list[dict[str, str]]]:
    """Model -> accepted findings. Raises UsageError for what is no baseline."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"got {error.strerror or error} while reading baseline {path}; wanted a file that "
            "--write-baseline wrote. Write one first, or check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _no_baseline(path, f"which is no JSON ({error})") from error
    if not isinstance(told, dict) or told.get("version") != _VERSION:
        raise _no_baseline(path, f"without version {_VERSION}")
    models = told.get("models")
    if not isinstance(models, dict) or not all(map(_is_entries, models.values())):
        raise _no_baseline(path, "whose models are no lists of findings")
    return models


def _is_entries(entries: Any) -> bool:
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("fingerprint"), str) for entry in entries
    )


def _no_baseline(path: Path, why: str) -> UsageError:
    return UsageError(
        f"got {path} as the baseline, {why}; wanted a file that --write-baseline wrote. Write it "
        "anew"
    )


def write(path: Path, model: str, findings: Iterable[Finding]) -> None:
    """Accept these findings of the model; what the file has of others stays. Raises UsageError."""
    findings = list(findings)
    models = read(path) if path.exists() else {}
    models[model] = [
        {"rule": finding.rule, "module": finding.module, "fingerprint": fingerprint}
        for finding, fingerprint in zip(findings, fingerprints(findings), strict=True)
    ]
    told = {"version": _VERSION, "models": dict(sorted(models.items()))}
    write_whole(path, json.dumps(told, indent=2) + "\n")
