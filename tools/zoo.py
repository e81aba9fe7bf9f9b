"""tools/zoo.py [PACKAGE[.NAME] ...]: convert and fuse what others wrote, into docs/zoo.*.

Without names, every package that can be imported. Rows of other packages stay as they are in
docs/zoo.json. For packages, see the extra `zoo` in pyproject.toml; pytorchcv, torchvision, timm and
segmentation-models-pytorch have to be installed with --no-deps, lest they bring another torch.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "surgery"))
import torch  # noqa: E402
from zoo import PACKAGES, architectures  # noqa: E402
from zoo_check import TOLERANCE, check  # noqa: E402

DOCS = ROOT / "docs"
HEAD = f"""# Architectures that we did not write

`spiritlevel.convert` and `spiritlevel.fuse` on networks of other packages, built without weights.
Each is compared with its untouched twin in float64: outputs and buffers in training and in eval,
gradients of every parameter and input, `state_dict` keys, a copy and a pickle, and torch.fx's own
`symbolic_trace` where the original can be traced. "Right" is: all of these within {TOLERANCE:g} of
the largest value. Where a model makes more than that of a mere rounding, it is run on torch's own
kernels, before and after, and the row says so; these then agree. `convert` is compared with torch's
own layers, put in by hand.

- **norms**: batch norms of the model; **converted**: norm layers that `convert` exchanged, for
  "batch" / for "group:8"; those it left are named in `model.spiritlevel_log`.
- **BN+act, BN+add+act, BN+add, BN alone**: what `fuse(model)` made of them, and in brackets, where
  it is not the same, `fuse(model, example)`.
- **left**: batch norms that stay as they were, and why.
- **closed**: modules whose own code is no graph; what is inside them is looked at one by one.
- **fx**: whether `torch.fx.symbolic_trace` takes the original (and so the fused one, too).

"""
COLUMNS = ("activation", "add, activation", "add", "alone")


def main(names: list[str]) -> int:
    kept = DOCS / "zoo.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for package in PACKAGES:
        wanted = [n for n in names if n.split(".")[0] == package]
        if find_spec(package) is None or (names and not wanted):
            print(f"{package}: not installed, or not asked for")
            continue
        for each in architectures(package):
            full = f"{package}.{each.name}"
            if wanted and package not in wanted and full not in wanted:
                continue
            try:
                row = check(each)
            except Exception as error:
                print(f"not built: {full}: {type(error).__name__}: {error}", flush=True)
                continue
            about = {"version": metadata.version(package), "torch": torch.__version__}
            rows[full] = asdict(row) | about | {"verdict": row.verdict}
            print(f"{row.verdict}: {full}", *row.wrong, *row.refused, sep="\n    ", flush=True)
            kept.write_text(json.dumps(rows, indent=1) + "\n")
            (DOCS / "zoo.md").write_text(page(list(rows.values())))
    return 1 if any(row["verdict"] == "wrong" for row in rows.values()) else 0


def page(rows: list[dict[str, Any]]) -> str:
    counts = {v: sum(r["verdict"] == v for r in rows) for v in ("right", "refused", "wrong")}
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    lines = [
        "| package | architecture | norms | converted | BN+act | BN+add+act | BN+add | BN alone "
        "| left | closed | fx | outcome |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += map(_line, rows)
    versions = sorted({f"{r['package']} {r['version']}" for r in rows})
    made = f"torch {', '.join(sorted({r['torch'] for r in rows}))}; {', '.join(versions)}"
    return (
        HEAD + f"{len(rows)} architectures: {told}. The largest difference is "
        f"{max(r['difference'] for r in rows):.0e}.\n\n" + "\n".join(lines) + "\n\n"
        f"Made by `python tools/zoo.py` with {made}.\n"
    )


def _line(row: dict[str, Any]) -> str:
    cells = [row["package"].replace("_", "-"), row["name"].split(".")[-1], str(row["norms"])]
    cells.append(" / ".join(str(n) for n in row["converted"].values()))
    for name in COLUMNS:
        one, other = row["fused"].get(name, 0), row["with_example"].get(name, 0)
        cells.append(str(one) if one == other else f"{one} ({other})")
    cells.append("; ".join(f"{n} {why}" for why, n in row["left"].items() if row["norms"]) or "0")
    cells.append(str(sum(row["closed"].values())))
    outcome = f"{row['verdict']}; {row['remark']}" if row.get("remark") else row["verdict"]
    cells += ["yes" if row["traces"] else "no", outcome]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
