"""The four worked examples of the article: their cells, and what came out."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.study.config import Plan
from spiritlevel.study.records import Cell

__all__ = ["EXAMPLES", "SCALES", "example_cells"]

EXAMPLES = ("arithmetic", "shift", "scale", "bell")
SCALES = (0.001, 1.0, 1000.0)


def example_cells(plan: Plan) -> Iterator[Cell]:
    """(a) [1, 3, 5] is arithmetic and needs none; (b), (c) and (d) run on real images."""
    for seed in plan.seeds:
        yield Cell("example-shift", {"seed": seed, "batch_size": 128, "channels": 16, "size": 32})
        for norm in ("none", "batch"):
            arms = [("he", scale) for scale in SCALES]
            # Weights twice too large or too small: the snowball, and the fading, that the article means.
            arms += [("he*2", 1.0), ("he*0.5", 1.0)]
            for init, scale in arms:
                yield Cell(
                    "example-scale",
                    {
                        "norm": norm,
                        "init": init,
                        "input_scale": scale,
                        "seed": seed,
                        "depth": min(20, plan.depth),
                        "width": plan.width,
                        "batch_size": 128,
                        "size": 32,
                    },
                )
        yield Cell(
            "example-bell",
            {
                "model": "small_vgg",
                "seed": seed,
                "lr": 0.1,
                "steps": plan.sweep_steps,
                "batch_size": 64,
                "size": plan.size,
                "probe_images": 256,
            },
        )
