"""Where a run goes on from: whole files that say so themselves, the newest two.

RUN/checkpoints/00001234-9f86d081884c7d65.pt is the state after 1,234 updates; what follows is the
head of the sha256 of its bytes, so that a torn or altered file is known for one. Each is written
beside its place, synced and renamed. Nothing in one ever runs: it is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.files import write_whole

__all__ = ["Checkpoints"]

_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.pt")
_KEPT = 2


class Checkpoints:
    """Those of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"

    def save(self, state: dict[str, Any], *, step: int) -> Path:
        """Write it, and let go of all but the newest two. Raises RecordsError, the others whole."""
        content = io.BytesIO()
        torch.save(state, content)
        whole = content.getvalue()
        path = self.folder / f"{step:08}-{_digest(whole)}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, whole)
        except (OSError, UsageError) as error:
            why = getattr(error, "strerror", None) or str(error).removeprefix("got ")
            raise RecordsError(
                f"got no room for a checkpoint of {len(whole) / 1e6:.1f} MB ({why}); what was "
                "saved before is whole. Make room, and go on by --resume"
            ) from error
        for old in [each for each in self._found() if each != path][_KEPT - 1 :]:
            old.unlink(missing_ok=True)
        return path

    def _found(self) -> list[Path]:
        """The newest first; of one step, what was written last."""
        if not self.folder.is_dir():
            return []
        named = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(named, key=lambda p: (p.name[:8], p.stat().st_mtime_ns), reverse=True)

    def newest(
        self, use: Callable[[dict[str, Any]], None], told: Callable[[str], None]
    ) -> Path | None:
        """Hand the newest that is whole and that `use` takes to it; None if there are none at all.

        `told` is given a line for each that is refused, by itself or by `use`, which raises
        UsageError. Raises RecordsError where every one is.
        """
        self._sweep()
        refused = []
        for path in self._found():
            try:
                use(_read(path))
            except UsageError as error:
                refused.append(path)
                told(f"{path}: {error}")
                continue
            for other in refused:  # kept, but no longer one of the newest two
                other.rename(other.with_name(f"{other.name}.refused"))
                told(f"{other} is kept as {other.name}.refused")
            return path
        if refused:
            names = ", ".join(path.name for path in refused)
            raise RecordsError(
                f"got {self.folder} with {names}, of which none can be gone on from; wanted one "
                "that this run wrote. Restore one, undo what was changed in config.toml, or start "
                "a new run"
            )
        return None

    def any(self) -> bool:
        return bool(self._found())

    def _sweep(self) -> None:
        """What a killed process left half-written."""
        if self.folder.is_dir():
            for draft in self.folder.glob(".*.pt.*.tmp"):
                draft.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordsError(f"got {error.strerror or error}; wanted a file to read") from error
    if _digest(content) != named[2]:
        raise RecordsError(
            f"got {len(content):,} bytes that are not those that were written: it is torn or "
            "altered"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle raises whatever it likes
        raise RecordsError("got what is no checkpoint; wanted one that a run wrote") from error
    if not isinstance(state, dict) or state.get("format") != 1:
        raise RecordsError("got a checkpoint of another program; wanted one that a run wrote")
    return state
