"""tools/golden.py: tests/models/golden.json, from timm's GhostNets (1.0.31 wrote it).

timm imports beside a torch without CUDA when it and torchvision are installed with `--no-deps` and
torchvision's operators are at least declared, as `spiritlevel.bench.theirs` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MODELS = Path(__file__).parents[1] / "tests/models"
sys.path.insert(0, str(MODELS))

import golden  # noqa: E402

from spiritlevel.bench.theirs import timm  # noqa: E402


def main() -> None:
    library = timm()
    if library is None:
        sys.exit("timm does not import here; install timm and torchvision with --no-deps")
    written = {"timm": library.__version__}
    for name in golden.MODELS:
        model = library.create_model(name, num_classes=golden.CLASSES, drop_rate=0.0)
        found = {k: [float(f"{n:.10g}") for n in v] for k, v in golden.numbers(model).items()}
        written[name] = {"keys": golden.keys(model), **found}
    Path(MODELS / "golden.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
