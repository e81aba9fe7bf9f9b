"""A whole story, made up: every kind of figure, and text that wants to be more than text.

The curves are formulas, not measurements; they have the shapes that a study's have.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import Any

HOSTILE = "</script><script>alert(1)</script>"
STEPS = list(range(0, 501, 10))
RATES = [0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0]
LAYERS = list(range(1, 41))


def text(words: str) -> list[Any]:
    """Words that are not in the catalogue, as a story's text."""
    return ["page.plain", {"text": words}]


def axis(label: str, *, log: bool = False, limits: list[float] | None = None) -> dict[str, Any]:
    return {"label": text(label), "log": log, "range": limits}


def series(
    arm: str, x: list[Any], y: list[Any], style: str = "line", **rest: Any
) -> dict[str, Any]:
    label = rest.pop("label", None)
    return {
        "arm": arm,
        "label": label and text(label),
        "x": list(x),
        "y": list(y),
        "style": style,
        **rest,
    }


def lines(
    title: str, x: dict[str, Any], y: dict[str, Any], *drawn: Any, guides: Any = ()
) -> dict[str, Any]:
    return {
        "kind": "lines",
        "title": text(title),
        "x": x,
        "y": y,
        "series": list(drawn),
        "guides": list(guides),
    }


def guide(which: str, at: float, label: str) -> dict[str, Any]:
    return {"axis": which, "at": at, "label": text(label)}


def heatmap(title: str, rows: list[str], z: list[list[Any]], **colour: Any) -> dict[str, Any]:
    return {
        "kind": "heatmap",
        "title": text(title),
        "x": {"label": text("training step")},
        "y": {"label": text("layer, input at the top")},
        "columns": list(STEPS),
        "rows": rows,
        "z": z,
        "colour": {"label": text("standard deviation"), "log": True, "range": None, "middle": None}
        | colour,
    }


def figure(name: str, title: str, caption: str, *panels: Any) -> dict[str, Any]:
    return {"id": name, "title": text(title), "caption": text(caption), "panels": list(panels)}


def percentiles(noise: float, drift: float, arm: str, title: str) -> dict[str, Any]:
    """Three percentiles of one unit's input over training, after Ioffe & Szegedy's Fig. 1."""
    rng = random.Random(title)
    middle = [drift * (1 - math.exp(-s / 160)) + rng.gauss(0, noise) for s in STEPS]
    half = [1 + drift * s / 1500 for s in STEPS]
    low = [round(m - h, 4) for m, h in zip(middle, half, strict=True)]
    high = [round(m + h, 4) for m, h in zip(middle, half, strict=True)]
    return lines(
        title,
        axis("training step"),
        axis("input of one unit, 15th to 85th percentile", limits=[-3, 9]),
        series(arm, STEPS, middle, low=low, high=high),
    )


def learning_rates() -> dict[str, Any]:
    def losses(best: float, floor: float, scale: float = 1.0) -> list[float | None]:
        found = [floor + 0.35 * math.log10(rate / best) ** 2 * scale for rate in RATES]
        return [loss if rate < 20 * best else None for loss, rate in zip(found, RATES, strict=True)]

    drawn = []
    for arm, best, floor in (("none", 0.08, 0.34), ("batch", 0.25, 0.12), ("group", 0.12, 0.3)):
        drawn.append(series(arm, RATES, losses(best, floor)))
        for seed in (0.9, 1.0, 1.15):
            dots = [loss and loss * seed for loss in losses(best, floor)]
            drawn.append(series(arm, RATES, dots, "dots", label=f"{arm}, one seed"))
    limit = guide("y", 0.5, "0.5: trained")
    return lines(
        "Loss after 120 steps",
        axis("learning rate", log=True),
        axis("training loss", limits=[0, 2.5]),
        *drawn,
        guides=[limit],
    )


def depth() -> list[dict[str, Any]]:
    def growth(factor: float) -> list[float]:
        return [factor**layer for layer in LAYERS]

    arms = (("none", 0.5, "dash", "no normalization, weights × 0.5"), ("none", 1.99, "line", None))
    activations = [
        series(arm, LAYERS, growth(f), style, label=label) for arm, f, style, label in arms
    ]
    activations += [
        series("batch", LAYERS, [1.0] * 40),
        series("none", LAYERS, growth(0.99), "thin", label="healthy"),
    ]
    gradients = [
        series("batch", LAYERS, growth(1 / 1.21)),
        series("theory", LAYERS, growth(1 / 1.2111), "dash"),
    ]
    middle = guide("x", 20, "half way")
    return [
        lines("Activations", axis("layer"), axis("standard deviation", log=True), *activations),
        lines("Gradients", axis("layer"), axis("norm", log=True), *gradients, guides=[middle]),
    ]


def ghost() -> dict[str, Any]:
    sizes = [4, 8, 16, 64]
    means = [-0.0097, -0.0247, -0.0193, -0.0081]
    spread = [0.010, 0.007, 0.005, 0.002]
    low = [m - s for m, s in zip(means, spread, strict=True)]
    high = [m + s for m, s in zip(means, spread, strict=True)]
    none = guide("y", 0, "noise off")
    return lines(
        "Test loss against the arm without noise",
        axis("images that share their statistics", log=True),
        axis("difference in test loss"),
        series("ghost", sizes, means, "dots", low=low, high=high),
        series("layer", [16], [-0.013], "dots"),
        guides=[none],
    )


def scaling() -> dict[str, Any]:
    scales = [0.001, 0.01, 0.1, 1, 10]
    drawn = [
        series("batch", scales, [eps / a**2 for a in scales], style, label=f"ε = {eps:g}")
        for eps, style in ((1e-5, "line"), (1e-3, "dash"))
    ]
    exact = series("theory", scales, [3e-16] * 5, label="ε = 0, exact to rounding")
    return lines(
        "Relative error",
        axis("scale of the weights", log=True),
        axis("error", log=True),
        *drawn,
        exact,
    )


def maps() -> list[dict[str, Any]]:
    names = [f"blocks.{i // 4}.{i % 4}.ghost1.primary_conv.bn" for i in range(16)]
    names[3] = HOSTILE
    deviation: list[list[Any]] = [
        [10 ** (2 * math.sin(i / 3 + s / 120)) for s in STEPS] for i in range(len(names))
    ]
    deviation[5][10:14] = [None] * 4
    around_one = [
        [10 ** ((i - 8) / 6 * math.cos(s / 200)) for s in STEPS] for i in range(len(names))
    ]
    return [
        heatmap("Without normalization", names, deviation),
        heatmap("Against one", names, around_one, middle=1.0, label=text("ratio to 1")),
    ]


def control(kind: str, label: str, values: list[str], start: int = 0) -> dict[str, Any]:
    return {"label": text(label), "values": values, "start": start, "kind": kind}


NETWORKS = ["VGG", "residual", HOSTILE]
DEPTHS = ["10", "20", "40", "80"]


def played() -> dict[str, Any]:
    """Activations by depth for each network and depth, a line and a map; one was not run."""

    def frame(network: int, depth: int) -> list[dict[str, Any]]:
        layers = list(range(1, int(DEPTHS[depth]) + 1))
        plain = series("none", layers, [(0.9 - network / 40) ** layer for layer in layers])
        normed = series("batch", layers, [1 + network / 10] * len(layers), label="batch, rate 0.1")
        if network == 1:
            normed |= {"low": [0.9] * len(layers), "high": [1.3] * len(layers)}
        deviation = [[10 ** (math.sin(row) * (depth + 1) / 4)] * 51 for row in range(6 + network)]
        return [
            lines(
                f"{DEPTHS[depth]} layers of {NETWORKS[network]}",
                axis("layer"),
                axis("deviation", log=True),
                plain,
                *([normed] if depth else []),
                guides=[guide("y", 1.0, "kept")],
            ),
            heatmap("While it trains", [f"layer {row}" for row in range(6 + network)], deviation),
        ]

    frames: list[Any] = [
        frame(network, depth) for network in range(len(NETWORKS)) for depth in range(len(DEPTHS))
    ]
    frames[1 * len(DEPTHS) + 3] = None
    found = figure("play", "By network and depth", "Move the slider.", *frames[2])
    found["controls"] = [
        control("choice", "network", NETWORKS),
        control("slider", "depth", DEPTHS, start=2),
    ]
    found["frames"] = frames
    found["summary"] = text(f"Behind 40 layers 0.015 of 1 is left, in {HOSTILE} less.")
    return found


def claim(
    name: str, title: str, status: str, value: str, interval: str | None, *figures: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "title": text(title),
        "status": status,
        "headline": {
            "quantity": text("times less drift of a layer's inputs than without"),
            "value": value,
            "interval": interval,
            "level": "95 %",
            "n": 3,
            "records": [0, 1, 2, 7],
        },
        "networks": networks() if name in ("stabilises", "faster") else [],
        "sentences": [
            text("Over training, the last layer's inputs move six times less with it."),
            text("With noise added behind it they move as much as without, at the same speed."),
            text("So the inputs are steadier, but that is not why the training is quick."),
        ],
        "literature": None
        if name == "vanishing"
        else text("Santurkar et al. (2018) found the same with a deeper network."),
        "rule": text("Supported if the ratio is 2 or more in every layer and for every seed."),
        "parts": [
            {
                "quantity": text(f"Drift of layer {layer}, without over with"),
                "value": f"{3.1 * layer:.1f}",
                "interval": "2.9 to 3.4" if layer > 1 else None,
                "n": 3,
                "source": "Ioffe & Szegedy 2015, Fig. 1",
                "records": [layer],
            }
            # The rule does not ask for the last.
            | ({} if layer == 4 else {"holds": (True, False, None)[layer - 1]})
            for layer in (1, 2, 3, 4)
        ],
        "figures": list(figures),
    }


def networks() -> list[dict[str, Any]]:
    """A claim's verdict on each network; for one of them there is no number yet."""
    found = (("partly", "6.4"), ("not supported", "1.1"), ("inconclusive", "–"))
    return [
        {
            "name": text(name),
            "status": status,
            "headline": {
                "quantity": text("times less drift of a layer's inputs than without"),
                "value": value,
                "interval": "1.0 to 7.5" if value != "–" else None,
                "level": "95 %",
                "n": 3,
                "records": [0, 1, 2, 7],
            },
        }
        for name, (status, value) in zip(NETWORKS, found, strict=True)
    ]


def claims() -> list[dict[str, Any]]:
    steady = figure(
        "percentiles",
        "One unit of the last hidden layer",
        "Line: the median over 500 test images. Band: from the 15th to the 85th percentile.",
        percentiles(0.15, 5.0, "none", "Without"),
        percentiles(0.03, 0.3, "batch", "With batch normalization"),
        percentiles(0.6, 0.4, "noisy-batch", "With noise added behind it"),
    )
    rates = figure(
        "rates",
        "Which learning rates train at all",
        "Where a line ends, at least one seed diverged.",
        learning_rates(),
    )
    rates["records"] = list(range(8))
    deep = figure(
        "depth", "Forty layers deep", "At the first step, three kinds of weights.", *depth()
    )
    noise = figure(
        "ghost", "Less noise, less effect", "Bars: 95 % intervals over 6 seeds.", ghost()
    )
    exact = figure("scaling", "The weights' scale drops out", "Up to ε.", scaling())
    return [
        claim(
            "stabilises",
            "It steadies the inputs of the layers",
            "partly",
            "6.4",
            "3.9 to 10.4",
            steady,
        ),
        claim("faster", "It makes training faster", "supported", "10", "10 to 10", rates, played()),
        claim(
            "vanishing",
            "It keeps gradients from vanishing and exploding",
            "not supported",
            "1.21",
            "1.207 to 1.211",
            deep,
        ),
        claim(
            "regularises",
            "Its noise reduces overfitting",
            "inconclusive",
            "−0.019",
            "−0.024 to −0.014",
            noise,
        ),
        claim("decouples", "It makes layers independent", "partly", "3 × 10⁻¹⁶", None, exact),
    ]


def examples() -> list[dict[str, Any]]:
    arithmetic = {
        "head": [text("value"), text("minus the mean"), text("squared"), text("normalized")],
        "rows": [["1", "−2", "4", "−1.2247"], ["3", "0", "0", "0"], ["5", "2", "4", "1.2247"]],
    }
    bars = series(
        "batch", [-3, -2, -1, 0, 1, 2, 3], [0.004, 0.05, 0.24, 0.4, 0.24, 0.05, 0.004], "dots"
    )
    curve = [x / 10 for x in range(-40, 41)]
    normal = series("theory", curve, [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in curve])
    bell = lines("Layer 3", axis("normalized activation"), axis("density"), bars, normal)
    named = {
        "arithmetic": ("Mean and variance of 1, 3 and 5", arithmetic, []),
        "shift": ("The mean of an input moves from 100 to 50", None, []),
        "scale": (
            "Inputs a thousand times too large, or too small",
            None,
            [figure("maps", "Forty layers over training", "Grey: no value.", *maps())],
        ),
        "bell": (
            "How much lies within one and three deviations",
            None,
            [
                figure(
                    "bell",
                    "Activations of four layers",
                    "Squares: shares measured on 500 images.",
                    *[bell] * 4,
                )
            ],
        ),
    }
    return [
        {
            "id": name,
            "title": text(title),
            "sentences": [
                text(
                    "The mean is 3, the differences are −2, 0, 2, and their squares' mean is 2.67."
                ),
                text("Divided by its root, 1.63, they become −1.22, 0 and 1.22."),
            ],
            "table": table,
            "figures": figures,
        }
        for name, (title, table, figures) in named.items()
    ]


def example_story() -> dict[str, Any]:
    """A new story each time, so that a test may break it."""
    return {
        "run": {
            "name": "quick",
            "preset": "quick",
            "date": "2026-11-23",
            "seconds": 271.4,
            "cells": 214,
            "failed": 2,
            "version": "0.1.0",
            "command": "spiritlevel study --preset quick --seed 10",
            "rules_changed": False,
            "missing": 0,
            "planned": 214,
        },
        "data": {
            "name": "my \"best\" photos & 'others' <b>",
            "origin": "folder: /home/someone/photos/a-rather-long-name/without-a-place-to-break",
            "licence": "not stated",
            "notes": ["12 images of 28×28 pixels were brought to 32×32.", "Ünïcödé: 数字, אבג, 🐦"],
            "counts": {"train": 4000, "test": 1000},
            "classes": ["cat", HOSTILE, "日本語", "שלום", "$x^2$", "%{x}"],
            "size": 32,
            "channels": 1,
            "fingerprint": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b82",
        },
        "environment": {
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "threads": "1 a cell",
            "workers": "2",
        },
        "claims": claims(),
        "examples": examples(),
        "records": [
            {"key": key, "seconds": 1.25, "failed": key.endswith("7")}
            for key in (*(f"sweep/lr=0.1,norm=batch,seed={n}" for n in range(8)), HOSTILE)
        ],
    }


def live_story() -> dict[str, Any]:
    """The same while its run goes on, read anew every hour."""
    story = example_story()
    story["run"] |= {"missing": 180, "cells": 34}
    written = datetime.now(UTC).isoformat(timespec="seconds")
    story["live"] = {"written": written, "seconds": 3600, "done": 34, "cells": 214}
    story["live"] |= {"share": 0.16, "left": "3 min"}
    return story
