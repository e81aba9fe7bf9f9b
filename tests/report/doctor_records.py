"""A probe's record and a diagnosis, made up, with text that wants to be more than text."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

from story import HOSTILE

STEPS = [0, 50, 100, 150]
NORMS = [f"blocks.{i}.primary_conv.1" for i in range(6)] + [HOSTILE]


def example_record() -> dict[str, Any]:
    """Seven norms and a convolution at four steps; the first norm is not read at step 0."""
    layers = [{"path": path, "kind": "norm", "type": "BatchNorm2d"} for path in NORMS]
    layers.insert(0, {"path": "stem", "kind": "weight", "type": "Conv2d"})

    def rows(read: Any, stem: Any = None) -> list[list[Any]]:
        norms = [[read(depth, step) for step in STEPS] for depth in range(len(NORMS))]
        return [[stem and stem(step) for step in STEPS], *norms]

    z_max = rows(lambda depth, step: 0.01 * (depth + 1) * math.exp(step / 50))
    z_max[1][0] = None
    z_max[2][0] = math.nan
    return {
        "title": "",
        "model": "GhostNet",
        "every": 50,
        "steps": STEPS,
        "layers": layers,
        "metrics": {
            "grad_norm": rows(lambda depth, step: depth / 10, lambda step: 2.0),
            "log_var_ratio_worst": rows(lambda depth, step: (depth - 3) * step / 50),
            "z_max": z_max,
            HOSTILE: rows(lambda depth, step: depth + step),
            "z_median": rows(lambda depth, step: None),
        },
        "counts": {"steps": 200, "forwards": 400, "skipped": 3, "of our own": 1},
        "counters": [
            {
                "path": path,
                "forwards_per_step": "2 (200 times)",
                "writes_train_grad": 200,
                "writes_train_no_grad": 0,
                "writes_eval": 17,
                "batch_size": "64",
            }
            for path in NORMS
        ],
        "overhead": {"share": 0.0123, "seconds": 0.31, "sampled_ms": 12.0, "step_ms": 0.13},
        "unseen": [f"{HOSTILE}: its input is a dict"],
        "notes": [HOSTILE],
        "decimated": "each 100th step is kept",
    }


def example_gap() -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "samples": 512,
        "eval": {"value": 0.60, "low": 0.55, "high": 0.65},
        "batch": {"value": 0.80, "low": 0.75, "high": 0.85},
        "recalibrated": {"value": 0.78, "low": 0.73, "high": 0.83},
        "layers": [
            {"module": f"blocks.{i}.bn", "value": 0.6 + 0.01 * i, "closed": 0.05 * i}
            for i in range(12)
        ]
        + [{"module": HOSTILE, "value": 0.57, "closed": -0.15}],
        "notes": ["the ranking took the first 8 batches"],
    }


def finding(severity: str, rule: str, module: str, **rest: Any) -> dict[str, Any]:
    found = {"rule": rule, "name": "some-name", "severity": severity, "module": module}
    return {**found, "message": f"{rule} was seen", "evidence": {}, "fix": "", **rest}


def example_diagnosis() -> dict[str, Any]:
    evidence = {"z": 2.7182818, "shape": [8, 10], "frozen": True, "first": None, "<b>": "<i>"}
    return {
        "version": 1,
        "model": HOSTILE,
        "spiritlevel": "0.1.0",
        "ok": False,
        "gap": example_gap(),
        "findings": [
            finding("info", "SL106", "stem.0"),
            finding("error", "SL201", HOSTILE, message=HOSTILE, evidence=evidence, fix=HOSTILE),
            finding("error", "SL502", "", fix="model = convert(model)\ncheck(model)"),
            finding("warning", "SL301", "blocks.1.bn"),
        ],
        "accepted": 2,
        "asked": ["SL106", "SL201", "SL301", "SL502"],
        "skipped": {"SL401": "needs a probe", "SL402": "needs a probe", "SL504": HOSTILE},
        "notes": [HOSTILE],
    }


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags_of(page):
    """Each start tag with its attributes, in order."""
    parser = _Tags()
    parser.feed(page)
    return parser.found
