"""The four worked examples of the article: their cells, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import erf, exp, pi, sqrt
from statistics import fmean
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.explain import Explanation, exact, explain_numbers, rounded
from spiritlevel.report.story import Arm, Example, Lines, Table
from spiritlevel.report.words import Text
from spiritlevel.study.claims.judgement import number, setting
from spiritlevel.study.config import Plan
from spiritlevel.study.figures.build import arm_of, axis, figure, lines, series
from spiritlevel.study.networks import init_title
from spiritlevel.study.records import Cell, Records
from spiritlevel.study.tasks.examples import EDGES

__all__ = ["SCALES", "example_cells", "example_lines", "examples"]

SCALES = (0.001, 1.0, 1000.0)


def example_cells(plan: Plan) -> Iterator[Cell]:
    """(a) [1, 3, 5] is arithmetic and needs none; (b), (c) and (d) run on real images."""
    for seed in plan.seeds:
        yield Cell("example-shift", {"seed": seed, "batch_size": 128, "channels": 16, "size": 32})
        for norm in ("none", "batch"):
            arms = [("he", scale) for scale in SCALES]
            # Weights twice too large or too small: the article's snowball, and its fading.
            arms += [("he*2", 1.0), ("he*0.5", 1.0)]
            for init, scale in arms:
                yield Cell(
                    "example-scale",
                    {
                        "network": "mlp",
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
                "network": "small_vgg",
                "norm": "batch",
                "init": "he",
                "seed": seed,
                "lr": 0.1,
                "steps": plan.sweep_steps // 2,
                "batch_size": 64,
                "size": plan.size,
                "probe_images": 256,
            },
        )


def examples(records: Records) -> list[Example]:
    """The four as the page shows them; one whose runs are missing says so."""
    return [_arithmetic(), _shift(records), _scale(records), _bell(records)]


def example_lines(records: Records) -> list[str]:
    """The four in a line each, for the command line."""
    words = {
        "arithmetic": _arithmetic_words(explain_numbers(_ARTICLE)),
        "shift": _shift_words(records),
        "scale": _scale_words(records),
        "bell": _bell_words(records),
    }
    return [
        say(f"terminal.examples.{name}", **found)
        if found
        else say("terminal.not_measured", letter=letter)
        for letter, (name, found) in zip("abcd", words.items(), strict=True)
    ]


def _example(
    name: str,
    sentences: list[Text],
    table: Table | None,
    *panels: Any,
    records: Sequence[int] = (),
) -> Example:
    return {
        "id": name,  # type: ignore[typeddict-item]
        "title": f"examples.{name}.title",
        "sentences": sentences or ["examples.not_measured"],
        "table": table,
        "figures": [figure(f"examples.{name}", *panels, records=records)] if panels else [],
    }


_ARTICLE = [Fraction(1), Fraction(3), Fraction(5)]


def _arithmetic() -> Example:
    """[1, 3, 5] by the same code as `spiritlevel explain`."""
    found = explain_numbers(_ARTICLE)
    assert found.normalized is not None
    rows = [
        [*(str(exact(cell)) for cell in (value, difference, square)), rounded(result)]
        for value, difference, square, result in zip(
            found.values, found.differences, found.squares, found.normalized.results, strict=True
        )
    ]
    words = _arithmetic_words(found)
    head = _head("arithmetic", "x", "minus", "square", "result")
    sentences: list[Text] = [
        [f"examples.arithmetic.{name}", words] for name in ("steps", "rounding")
    ]
    return _example("arithmetic", sentences, {"head": head, "rows": rows})


def _arithmetic_words(found: Explanation) -> dict[str, str]:
    assert found.normalized is not None
    early = found.normalized.rounded_early
    assert early is not None
    return {
        "mean": str(exact(found.mean)),
        "variance": rounded(found.variance),
        "deviation": rounded(found.deviation),
        "result": rounded(early.result),
        "early": rounded(early.result_early, 2),
        "early_deviation": rounded(early.deviation, 2),
        "early_variance": rounded(early.variance),
    }


def _head(example: str, *names: str) -> list[Text]:
    return [f"examples.{example}.{name}" for name in names]


def _shift(records: Records) -> Example:
    runs = list(records.by_seed("example-shift").values())
    if not runs:
        return _example("shift", [], None)
    words = _shift_words(records)
    means = [f"{value:.0f}" for value in runs[0]["input_means"]]
    rows = [["–", *means, words["without"]], ["BN", *means, words["with"]]]
    head = _head("shift", "norm", "first", "second", "swing")
    panels = [_channels(runs[0][arm], arm) for arm in ("without", "with")]
    sentences: list[Text] = ["examples.shift.done", ["examples.shift.found", words]]
    read = records.numbers("example-shift")
    return _example("shift", sentences, {"head": head, "rows": rows}, *panels, records=read)


def _shift_words(records: Records) -> dict[str, str]:
    """How far the channels' means move, mean over channels and seeds."""
    runs = list(records.by_seed("example-shift").values())
    arms = ("without", "with") if runs else ()
    return {arm: number(fmean(run[arm]["mean_swing"] for run in runs)) for arm in arms}


def _channels(run: dict[str, Any], arm: str) -> Lines:
    colour: Arm = "none" if arm == "without" else "batch"
    first, second = run["means"]
    channels = list(range(1, len(first) + 1))
    drawn = [
        series(colour, channels, first, "dots", "labels.mean_100"),
        series("other", channels, second, "dots", "labels.mean_50"),
    ]
    # Behind BN all means are rounding errors, which a scale of their own would blow up.
    y = axis("channel_mean", range=None if colour == "none" else (-1, 1))
    return lines(f"arms.{colour}", axis("channel"), y, drawn)


# (weights, input scale) of the rows of example (c), and their names.
_ROWS = {
    "small": ("he", 0.001),
    "middle": ("he", 1.0),
    "large": ("he", 1000.0),
    "half": ("he*0.5", 1.0),
    "double": ("he*2", 1.0),
}
_STYLES = {"small": "thin", "middle": "line", "large": "dots", "half": "dash", "double": "dash"}


def _scale_runs(records: Records, norm: str, row: str) -> list[dict[str, Any]]:
    init, scale = _ROWS[row]
    found = records.by_seed("example-scale", norm=norm, init=init, input_scale=scale)
    return list(found.values())


def _scale(records: Records) -> Example:
    words = _scale_words(records)
    if not words:
        return _example("scale", [], None)
    rows, drawn = [], []
    for row, (init, scale) in _ROWS.items():
        cells = [
            words[f"{row}_{norm}{end}"] for end in ("", "_gradient") for norm in ("none", "batch")
        ]
        rows.append([setting(scale), init_title(init), *cells])
        for norm in ("none", "batch"):
            curve = _scale_runs(records, norm, row)[0]["activation_std"]
            style = "thin" if norm == "batch" else _STYLES[row]
            here = {"scale": setting(scale), "weights": init_title(init)}
            label: Text = ["labels.scale_none", here] if norm == "none" else "labels.scale_batch"
            drawn.append(series(arm_of(norm), list(range(1, len(curve) + 1)), curve, style, label))
    head = _head("scale", "input", "weights", "act_none", "act_batch", "grad_none", "grad_batch")
    panel = lines("labels.scale_panel", axis("layer"), axis("activation_std", log=True), drawn)
    sentences: list[Text] = [[f"examples.scale.{name}", words] for name in ("done", "found")]
    read = records.numbers("example-scale")
    return _example("scale", sentences, {"head": head, "rows": rows}, panel, records=read)


def _scale_words(records: Records) -> dict[str, str]:
    """Seed means by row and norm: the last layer's input deviation, an early gradient's norm."""
    words = {"depth": str(max(records.values("example-scale", "depth"), default=0))}
    for norm in ("none", "batch"):
        for row in _ROWS:
            runs = _scale_runs(records, norm, row)
            if not runs:
                return {}
            for quantity, end in (("last_activation", ""), ("first_gradient", "_gradient")):
                words[f"{row}_{norm}{end}"] = number(fmean(run[quantity] for run in runs))
    return words


def _bell(records: Records) -> Example:
    runs = list(records.by_seed("example-bell").values())
    if not runs:
        return _example("bell", [], None)
    words = _bell_words(records)
    rows = [
        [
            f"±{k}",
            _percent(f"{100 * erf(k / sqrt(2)):.1f}"),
            *(_percent(words[f"{moment}_{k}"]) for moment in _MOMENTS),
        ]
        for k in (1, 2, 3)
    ]
    middles = [low + 0.05 for low in EDGES[:-1]]
    normal = [exp(-z * z / 2) / sqrt(2 * pi) for z in middles]
    drawn = [
        series("batch", middles, runs[0]["before"]["density"], "thin", "labels.before"),
        series("batch", middles, runs[0]["after"]["density"], "line", "labels.after"),
        series("theory", middles, normal, "dash", "labels.normal"),
    ]
    panel = lines("labels.bell_panel", axis("deviations"), axis("density"), drawn)
    head = _head("bell", "within", "normal", *_MOMENTS)
    sentences: list[Text] = ["examples.bell.done", ["examples.bell.found", words]]
    read = records.numbers("example-bell")
    return _example("bell", sentences, {"head": head, "rows": rows}, panel, records=read)


_MOMENTS = ("before", "after")


def _percent(text: str) -> str:
    return say("joints.percent", n=text)


def _bell_words(records: Records) -> dict[str, str]:
    """Shares in percent within 1, 2 and 3 deviations, mean over seeds."""
    runs = list(records.by_seed("example-bell").values())
    if not runs:
        return {}
    shares = {
        f"{moment}_{k}": f"{100 * fmean(run[moment]['within'][k] for run in runs):.1f}"
        for moment in _MOMENTS
        for k in "123"
    }
    return shares | {"largest": number(max(run["after"]["largest"] for run in runs))}
