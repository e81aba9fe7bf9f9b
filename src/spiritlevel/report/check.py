"""A story held against its types: rather no page than half a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints, is_typeddict

from spiritlevel.errors import UsageError
from spiritlevel.report.story import Example, Figure, Heatmap, Lines, Panels, Story

__all__ = ["check"]

CLAIMS = 5
SIMPLE = {
    float: "a finite number",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    NoneType: "None",
}


def check(story: Mapping[str, Any]) -> Story:
    """The same story, with nothing missing, nothing unknown, and lengths that agree.

    Raises UsageError naming the first piece that is off.
    """
    _hold(story, Story, "story")
    whole = cast(Story, story)
    if len(whole["claims"]) != CLAIMS:
        raise UsageError(f"got {len(whole['claims'])} claims in the story, wanted all {CLAIMS}")
    given, wanted = [e["id"] for e in whole["examples"]], get_args(_hints(Example)["id"])
    if sorted(given) != sorted(wanted):
        raise UsageError(
            f"got the examples {', '.join(given) or 'none'}, wanted {', '.join(wanted)}, each once"
        )
    figures = [one for part in (*whole["examples"], *whole["claims"]) for one in part["figures"]]
    for figure in figures:
        _check_controls(figure)
        for where, panel in _panels(figure):
            _check_lengths(panel, where)
    names = [figure["id"] for figure in figures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"got the figure {twice[0]!r} twice, wanted a name of its own for each")
    _check_records(whole)
    return whole


@cache
def _hints(typed: Any) -> dict[str, Any]:
    return get_type_hints(typed)


def _hold(value: Any, wanted: Any, where: str) -> None:
    """Hold `value` against a type made of typed dicts, lists, literals and alternatives."""
    if not _suits(value, wanted):
        raise UsageError(f"got {value!r:.80} for {where}, wanted {_in_words(wanted)}")
    outside, options = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(wanted):
        _check_keys(value, wanted, where)
        for key, kind in _hints(wanted).items():
            if key in value:
                _hold(value[key], kind, f"{where}.{key}")
    elif outside is list:
        if options[0] in (float, float | None) and all(_is_number(item) for item in value):
            return
        for index, item in enumerate(value):
            _hold(item, options[0], f"{where}[{index}]")
    elif outside is dict:
        for key, item in value.items():
            _hold(key, options[0], f"a key of {where}")
            _hold(item, options[1], f"{where}[{key!r}]")
    elif options and outside is not Literal:
        for option in options:
            if _suits(value, option):
                _hold(value, option, where)


def _suits(value: Any, wanted: Any) -> bool:
    """Whether `value` looks, from outside, to be of the type; among dicts their `kind` decides."""
    outside, options = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(wanted):
        kinds = get_args(_hints(wanted).get("kind"))
        return isinstance(value, Mapping) and (not kinds or value.get("kind") in kinds)
    if outside is Literal:
        return value in options
    if outside is list:
        return isinstance(value, list | tuple)
    if outside is float:
        return _suits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if outside is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if outside is dict or not options:
        return outside is Any or isinstance(value, outside)
    return any(_suits(value, option) for option in options)


def _check_keys(value: Mapping[str, Any], wanted: Any, where: str) -> None:
    known = _hints(wanted).keys()
    if missing := sorted(wanted.__required_keys__ - value.keys()):
        raise UsageError(f"got {where} without {', '.join(missing)}; wanted {', '.join(known)}")
    if unknown := sorted(map(str, value.keys() - known)):
        raise UsageError(
            f"got {where} with {', '.join(unknown)}, unknown to the page; wanted {', '.join(known)}"
        )


def _in_words(wanted: Any) -> str:
    outside, options = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(wanted):
        hints = _hints(wanted)
        kinds = get_args(hints.get("kind"))
        return f"{' or '.join(kinds)}{' of ' if kinds else ''}{', '.join(hints)}"
    if outside is Literal:
        return " or ".join(map(repr, options))
    if outside in (list, dict):
        return f"a {outside.__name__}"
    return SIMPLE.get(outside) or " or ".join(_in_words(option) for option in options)


def _is_number(value: Any) -> bool:
    """The usual number, told quickly: a page may hold a million of them."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _check_controls(figure: Figure) -> None:
    """Frames for all combinations of the controls, alike in kind, and the first among them."""
    where, controls = f"figure {figure['id']!r}", figure.get("controls", [])
    for control in controls:
        if not 0 <= control["start"] < len(control["values"]):
            raise UsageError(
                f"got start {control['start']} for a control of {where} with "
                f"{len(control['values'])} values, wanted the index of one of them"
            )
    if ("controls" in figure) != ("frames" in figure):
        raise UsageError(f"got controls or frames alone in {where}, wanted both or neither")
    if not controls:
        return
    frames, wanted = figure["frames"], math.prod(len(control["values"]) for control in controls)
    if len(frames) != wanted:
        raise UsageError(
            f"got {len(frames)} frames in {where}, wanted {wanted}: one for each combination of "
            "its controls' values"
        )
    start = 0
    for control in controls:
        start = start * len(control["values"]) + control["start"]
    if frames[start] != figure["panels"]:
        raise UsageError(
            f"got frame {start} of {where}, at which its controls start, unlike its panels; "
            "wanted the same"
        )
    looks = _look(figure["panels"])
    for index, frame in enumerate(frames):
        if frame is not None and _look(frame) != looks:
            raise UsageError(
                f"got frame {index} of {where} with {_look(frame)}, wanted {looks} as at the start"
            )


def _look(panels: Panels) -> list[tuple[Any, ...]]:
    """What must be alike in all frames for their axes to be: each panel's kind and scales."""
    return [
        (panel["kind"], panel["x"]["log"], panel["y"]["log"])
        if panel["kind"] == "lines"
        else (panel["kind"], panel["colour"]["log"], panel["colour"]["middle"])
        for panel in panels
    ]


def _check_records(story: Story) -> None:
    """Whatever says which records it comes from names ones that are there."""
    known = len(story.get("records", []))
    for where, indices in _traced(story):
        if wrong := [index for index in indices if not 0 <= index < known]:
            raise UsageError(
                f"got record {wrong[0]} for {where}, wanted the index of one of the story's {known}"
            )


def _traced(story: Story) -> Iterator[tuple[str, Sequence[int]]]:
    for part in (*story["examples"], *story["claims"]):
        for figure in part["figures"]:
            yield f"figure {figure['id']!r}", figure.get("records", [])
    for claim in story["claims"]:
        where = f"claim {claim['id']!r}"
        yield f"the headline of {where}", claim["headline"].get("records", [])
        for network in claim.get("networks", []):
            yield f"a network of {where}", network["headline"].get("records", [])
        for index, one in enumerate(claim["parts"]):
            yield f"part {index} of {where}", one.get("records", [])


def _panels(figure: Figure) -> Iterator[tuple[str, Lines | Heatmap]]:
    for index, panel in enumerate(figure["panels"]):
        yield f"panel {index} of figure {figure['id']!r}", panel
    for number, frame in enumerate(figure.get("frames", [])):
        for index, panel in enumerate(frame or []):
            yield f"panel {index} in frame {number} of figure {figure['id']!r}", panel


def _check_lengths(panel: Lines | Heatmap, where: str) -> None:
    if panel["kind"] == "heatmap":
        rows, columns = len(panel["rows"]), len(panel["columns"])
        found = sorted({len(row) for row in panel["z"]})
        if len(panel["z"]) != rows or found not in ([], [columns]):
            raise UsageError(
                f"got {len(panel['z'])} rows of {found} values in {where}, "
                f"wanted {rows} rows of {columns}"
            )
        return
    for index, series in enumerate(panel["series"]):
        lengths = {
            key: len(value) for key, value in series.items() if isinstance(value, list | tuple)
        }
        lengths.pop("label", None)
        if len(set(lengths.values())) > 1 or ("low" in series) != ("high" in series):
            raise UsageError(
                f"got series {index} of {where} with lengths {lengths}, "
                "wanted x and y alike, and low and high both or neither"
            )
