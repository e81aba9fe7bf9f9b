"""tools/notebook.py: run the notebooks of examples/ and keep what they show in them.

An executed notebook says of which code its outputs are (`metadata.spiritlevel.sources`), so that a
test can tell outputs of older code. Nothing of the machine stays: no times, no paths of folders.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT = 300_000
"""Bytes of a notebook with its outputs: it is looked at on the web, and kept in git."""


def main() -> int:
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        executed(notebook)
        notebook.metadata["spiritlevel"] = {"sources": sources(notebook)}
        text = nbformat.writes(notebook) + "\n"
        if len(text.encode()) > LIMIT:
            print(f"{path.name}: {len(text.encode()):,} bytes, more than {LIMIT:,}")
            return 1
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text.encode()):,} bytes")
    return 0


def executed(notebook: Any, *, timeout: int = 600) -> Any:
    """The notebook, run from its first cell in an empty folder. A cell's error is raised."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources=resources,
            record_timing=False,
            coalesce_streams=True,
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs]
    return notebook


def _plain(output: Any) -> Any:
    """Without the name that only the kernel of this run knows."""
    output.get("transient", {}).pop("display_id", None)
    return output


def sources(notebook: Any) -> str:
    """A hash of all code, in its order."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
