"""Figures with fewer points, where the page would otherwise grow beyond its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spiritlevel.errors import UsageError
from spiritlevel.report.story import Figure, Heatmap, Lines, Panel, Series

__all__ = ["at_start", "fitted", "thinned"]

# With fewer points than this a curve has lost its shape.
LEAST = 8


def fitted(
    figures: Sequence[Figure], write: Callable[[Figure], str], room: int
) -> tuple[dict[str, str], dict[str, int]]:
    """Each figure's data as `write` gives it, and how many points were made one, by figure.

    The data take at most `room` characters in all. The largest figure is thinned first; if all
    are as thin as can be, the largest loses its controls and is drawn as at the start: for it
    the number is 0. Raises UsageError if that is not enough.
    """
    steps = {figure["id"]: 1 for figure in figures}
    written = {figure["id"]: write(figure) for figure in figures}
    whole = {figure["id"]: figure for figure in figures}
    left, played = dict(whole), {name for name, one in whole.items() if "frames" in one}
    while (size := sum(map(len, written.values()))) > room:
        if not left and not played:
            raise UsageError(
                f"got figures of {size / 1e6:.1f} MB with few points and without controls, wanted "
                f"at most {room / 1e6:.1f} MB on a page: draw fewer"
            )
        name = max(left or played, key=lambda one: len(written[one]))
        if name not in left:
            played.remove(name)
            written[name], steps[name] = write(at_start(whole[name])), 0
            continue
        shorter = write(thinned(left[name], 2 * steps[name]))
        if len(shorter) < len(written[name]):
            written[name], steps[name] = shorter, 2 * steps[name]
        else:
            del left[name]
    return written, steps


def at_start(figure: Figure) -> Figure:
    """The figure without its controls."""
    found = figure.copy()
    found.pop("controls", None)
    found.pop("frames", None)
    return found


def thinned(figure: Figure, step: int) -> Figure:
    """The figure with one of `step` points of each line and one of `step` columns of each map."""
    found = figure.copy()
    found["panels"] = [_thinned(panel, step) for panel in figure["panels"]]
    if "frames" in figure:
        found["frames"] = [
            None if frame is None else [_thinned(panel, step) for panel in frame]
            for frame in figure["frames"]
        ]
    return found


def _thinned(panel: Panel, step: int) -> Panel:
    if panel["kind"] == "heatmap":
        return _map_thinned(panel, step)
    found: Lines = panel.copy()
    found["series"] = [_series_thinned(series, step) for series in panel["series"]]
    return found


def _series_thinned(series: Series, step: int) -> Series:
    kept = _kept(len(series["x"]), step)
    found: Any = dict(series)
    for name in ("x", "y", "low", "high"):
        if name in found:
            found[name] = [found[name][index] for index in kept]
    whole: Series = found
    return whole


def _map_thinned(panel: Heatmap, step: int) -> Heatmap:
    kept = _kept(len(panel["columns"]), step)
    found: Heatmap = panel.copy()
    found["columns"] = [panel["columns"][index] for index in kept]
    found["z"] = [[row[index] for index in kept] for row in panel["z"]]
    return found


def _kept(length: int, step: int) -> list[int]:
    """Every `step`-th index and the last, but `LEAST` of them where there are so many."""
    step = max(1, min(step, length // LEAST))
    return sorted({*range(0, length, step), length - 1} if length else set())
