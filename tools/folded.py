"""tools/folded.py [PACKAGE[.NAME] ...]: docs/fold.md, of small cases and of what others wrote.

The table of cases is made anew each time. Architectures are those of tools/zoo.py; with names, or
where a package is missing, rows of others stay as they are in docs/fold.json. `--page` writes the
page alone.
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
from peers_fold import rows  # noqa: E402
from zoo import PACKAGES, architectures  # noqa: E402
from zoo_fold import TOLERANCE, check  # noqa: E402

DOCS = ROOT / "docs"
HEAD = """# Fold: what becomes of a batch norm

`spiritlevel.fold(model, example)` merges batch norms into the layers beside them, compares the copy
with the model, and names what stays. Two tables say where that is right: small cases, next to
torch's own functions, and networks of other packages.

## Cases, and torch's own functions

Each column is a change of the same model in `eval()`, run in float64 on an input that the change
has not seen. **right**: the outputs are the model's, and no batch norm is left. **left**: they are,
and the batch norm is still there. **wrong**: they are not, and nothing was said. *–*: the function
does not apply.

- **the pair**: `torch.nn.utils.fusion.fuse_conv_bn_eval` or `fuse_linear_bn_eval` on the layer and
  its norm, as somebody would call them who sees the two side by side in the model;
- **torch.fx**: `torch.fx.experimental.optimization.fuse(model)`, which finds such pairs itself.

| case | the pair | torch.fx | `fold` |
|---|---|---|---|
"""
SECOND = f"""
## Architectures that we did not write

Each is folded with one input and compared with itself on another, in float64; a difference above
{TOLERANCE:g} of the largest value would be wrong. **merged** of **norms**: how many batch norms are
part of their neighbours; why the others stay is what `spiritlevel_log` says of each by its name.

"""


def main(names: list[str]) -> int:
    kept = DOCS / "fold.json"
    held: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for package in PACKAGES if names != ["--page"] else ():
        wanted = [n for n in names if n.split(".")[0] == package]
        if find_spec(package) is None or (names and not wanted):
            continue
        for each in architectures(package):
            full = f"{package}.{each.name}"
            if wanted and package not in wanted and full not in wanted:
                continue
            row = check(each)
            about = {"version": metadata.version(package), "torch": torch.__version__}
            held[full] = asdict(row) | about | {"verdict": row.verdict}
            print(f"{row.verdict}: {full}: {row.merged} of {row.norms}", row.why, flush=True)
            kept.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    (DOCS / "fold.md").write_text(page(list(held.values())))
    return 1 if any(row["verdict"] == "wrong" for row in held.values()) else 0


def page(held: list[dict[str, Any]]) -> str:
    cases = "".join(f"| {' | '.join(row)} |\n" for row in rows())
    return f"{HEAD}{cases}{SECOND}{_architectures(held)}"


def _architectures(held: list[dict[str, Any]]) -> str:
    norms, merged = (sum(row[name] for row in held) for name in ("norms", "merged"))
    counts = {v: sum(row["verdict"].startswith(v) for row in held) for v in ("right", "refused")}
    wrong = sum(row["verdict"] == "wrong" for row in held)
    lines = [
        "| package | architecture | norms | merged | left | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(held, key=lambda row: (row["package"], row["name"])):
        left = "; ".join(f"{n}: {why}" for why, n in row["left"].items()) or "0"
        name, package = row["name"].split(".")[-1], row["package"].replace("_", "-")
        cells = (package, name, str(row["norms"]), str(row["merged"]), left, row["verdict"])
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    versions = ", ".join(sorted({f"{row['package']} {row['version']}" for row in held}))
    told = (
        f"{len(held)} architectures: {counts['right']} right, {counts['refused']} refused by name, "
        f"{wrong} wrong; {merged} of {norms} batch norms are merged. The largest difference is "
        f"{max(row['difference'] for row in held):.0e}."
    )
    torchs = ", ".join(sorted({row["torch"] for row in held}))
    end = f"Made by `python tools/folded.py` with torch {torchs}; {versions}."
    return "\n".join((told, "", *lines, "", end, ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
