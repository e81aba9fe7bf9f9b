"""Axes, ticks and the look that all charts share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from spiritlevel.errors import UsageError
from spiritlevel.report.story import Axis

__all__ = ["FEW", "axis", "drawable", "hover_text", "layout", "number_text", "placed", "scale"]

# Up to this many points, each of them is marked and may have its own tick.
FEW = 12
FONT = "var(--font)"
CLEAR = "rgba(0,0,0,0)"


def layout(height: int, **rest: Any) -> dict[str, Any]:
    """A Plotly layout, `height` in pixels; the width is the reader's."""
    return {
        "height": height,
        "margin": {"l": 4, "r": 14, "t": 14, "b": 4},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "showlegend": False,
        "hovermode": "closest",
        "font": {"family": FONT, "size": 12, "color": "var(--muted)"},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--rule)",
            "font": {"family": FONT, "color": "var(--text)", "size": 13},
            "align": "left",
        },
    } | rest


def axis(*, grid: bool) -> dict[str, Any]:
    """An axis with grid lines, or with a line and tick marks."""
    return {
        "showgrid": grid,
        "gridcolor": "var(--grid)",
        "zeroline": False,
        "showline": not grid,
        "linecolor": "var(--rule)",
        "ticks": "" if grid else "outside",
        "ticklen": 4,
        "tickcolor": "var(--rule)",
        "automargin": True,
        "nticks": 7,
        "exponentformat": "power",
    }


def scale(story_axis: Axis, values: Iterable[float | None], *, at_points: bool) -> dict[str, Any]:
    """Kind, range and ticks of an axis over `values`; `at_points`: ticks at them, if few."""
    known = sorted({value for value in values if value is not None})
    wanted, log = story_axis.get("range"), story_axis["log"]
    found: dict[str, Any] = {"type": "log" if log else "linear"}
    if wanted:
        found["range"] = placed(wanted, log=log, what="range")
    if not known:
        return found
    places = placed(known, log=log, what="value")
    if at_points and len(known) <= FEW:
        return found | _ticks_at(_apart(known, places))
    if log:
        low, high = wanted or (known[0], known[-1])
        return found | _ticks_at(_log_ticks(low, high))
    return found


def _ticks_at(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at `values`, all plain, or all powers of ten but those near 1."""
    plain = all(_is_plain(value) for value in values)
    texts = [number_text(value, plain=plain or 0.1 <= value <= 10) for value in values]
    return {"tickvals": list(values), "ticktext": texts}


def _apart(values: Sequence[float], places: Sequence[float]) -> list[float]:
    """Those of the sorted values that lie a tenth of the axis behind the one kept before."""
    gap = (places[-1] - places[0]) / 10
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= gap:
            kept.append(index)
    return [values[index] for index in kept]


def _log_ticks(low: float, high: float) -> list[float]:
    """At most seven powers of ten from `low` to `high`; below three, steps of 1, 2, 5, or even."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**k for k in exponents if low <= 10.0**k <= high]
    if len(powers) >= 3:
        return powers[:: math.ceil(len(powers) / 7)]
    steps = [m * 10.0**k for k in exponents for m in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    if len(inside) >= 3:
        return inside
    inside = _even(low, high)
    return inside if len(inside) >= 2 else sorted({float(f"{low:.3g}"), float(f"{high:.3g}")})


def _even(low: float, high: float) -> list[float]:
    """Two to nine multiples of 1, 2 or 5 times a power of ten."""
    if low == high:
        return []
    power = 10.0 ** math.floor(math.log10((high - low) / 8))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 8)
    first, last = math.ceil(low / step), math.floor(high / step)
    return sorted({float(f"{n * step:.6g}") for n in range(first, last + 1)})


def placed(values: Iterable[float], *, log: bool, what: str) -> list[float]:
    """Where `values` lie on an axis. Raises UsageError for 0 or less on a logarithmic one."""
    values = list(values)
    if log and any(value <= 0 for value in values):
        raise UsageError(f"got a {what} of {values} on a logarithmic axis, wanted numbers above 0")
    return [math.log10(value) if log else value for value in values]


def drawable(values: Iterable[float | None], *, log: bool, figures: int = 6) -> list[float | None]:
    """The values to so many figures, and None for what a logarithmic axis cannot show."""
    return [None if v is None or (log and v <= 0) else float(f"{v:.{figures}g}") for v in values]


def _is_plain(value: float) -> bool:
    return value == 0 or 1e-3 <= abs(value) <= 1e4


def number_text(value: float, *, plain: bool | None = None) -> str:
    """A number as HTML: as it is from 0.001 to 10000, else as a power of ten."""
    if _is_plain(value) if plain is None else plain:
        return _with_minus(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    power = f"10<sup>{_with_minus(int(exponent))}</sup>"
    return power if float(mantissa) == 1 else f"{_with_minus(float(mantissa))}·{power}"


def _with_minus(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def hover_text(html: str) -> str:
    """Plotly shows simple HTML, which is wanted, and fills in %{...}, which never is."""
    return str(html).replace("%{", "%&#123;")
