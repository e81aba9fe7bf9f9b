"""A story held against its types: rather no page than half a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints, is_typeddict

from spiritlevel.errors import UsageError
from spiritlevel.report.story import Example, Heatmap, Lines, Story

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
    given, wanted = [e["id"] for e in whole["examples"]], get_args(get_type_hints(Example)["id"])
    if sorted(given) != sorted(wanted):
        raise UsageError(
            f"got the examples {', '.join(given) or 'none'}, wanted {', '.join(wanted)}, each once"
        )
    for where, panel in _panels(whole):
        _check_lengths(panel, where)
    return whole


def _hold(value: Any, wanted: Any, where: str) -> None:
    """Hold `value` against a type made of typed dicts, lists, literals and alternatives."""
    if not _suits(value, wanted):
        raise UsageError(f"got {value!r:.80} for {where}, wanted {_in_words(wanted)}")
    outside, options = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(wanted):
        _check_keys(value, wanted, where)
        for key, kind in get_type_hints(wanted).items():
            if key in value:
                _hold(value[key], kind, f"{where}.{key}")
    elif outside is list:
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
        kinds = get_args(get_type_hints(wanted).get("kind"))
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
    known = get_type_hints(wanted).keys()
    if missing := sorted(wanted.__required_keys__ - value.keys()):
        raise UsageError(f"got {where} without {', '.join(missing)}; wanted {', '.join(known)}")
    if unknown := sorted(map(str, value.keys() - known)):
        raise UsageError(
            f"got {where} with {', '.join(unknown)}, unknown to the page; wanted {', '.join(known)}"
        )


def _in_words(wanted: Any) -> str:
    outside, options = get_origin(wanted) or wanted, get_args(wanted)
    if is_typeddict(wanted):
        hints = get_type_hints(wanted)
        kind = "".join(f"{one} of " for one in get_args(hints.get("kind")))
        return f"{kind}{', '.join(hints)}"
    if outside is Literal:
        return " or ".join(map(repr, options))
    if outside in (list, dict):
        return f"a {outside.__name__}"
    return SIMPLE.get(outside) or " or ".join(_in_words(option) for option in options)


def _panels(story: Story) -> Iterator[tuple[str, Lines | Heatmap]]:
    for part in (*story["examples"], *story["claims"]):
        for figure in part["figures"]:
            for index, panel in enumerate(figure["panels"]):
                yield f"panel {index} of figure {figure['id']!r}", panel


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
