"""The ratios that are told of a layer, and their geometric means over shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spiritlevel.bench.floor import COPY, passes
from spiritlevel.bench.peers import CHANNELS_LAST, Case
from spiritlevel.bench.timing import Ratio, Samples, best, pooled, ratio

__all__ = ["FIGURES", "figures", "pairs", "ratios"]

FIGURES = {
    "eager": "eager contiguous over ours contiguous: above 1, ours is faster",
    "eager channels-last": "eager channels-last over ours channels-last",
    "eager best": "the faster eager layout over the faster of ours",
    "compile": "the faster layout under torch.compile over the faster of ours",
    "floor": "the faster of ours over the floor: 1 is as fast as a copy moves what must move",
}
"""Name -> what it is, for the JSON and for the reader."""


def pairs(samples: Mapping[str, Samples], copies: float) -> dict[str, tuple[Samples, Samples]]:
    """Of a case and mode, each figure's (over, under); `copies` are the floor's."""
    both = [name for name in ("ours", f"ours{CHANNELS_LAST}") if name in samples]
    ours = best(samples, both)
    found = {"eager": (samples["eager"], samples["ours"])}
    if len(both) == 2:
        name = f"eager{CHANNELS_LAST}"
        found[name] = (samples[name], samples[both[1]])
    for peer, figure in (("eager", "eager best"), ("compile", "compile")):
        names = [name for name in (peer, f"{peer}{CHANNELS_LAST}") if name in samples]
        if names:
            found[figure] = (best(samples, names), ours)
    found["floor"] = (ours, [copies * one for one in samples["copy"]])
    return found


def ratios(samples: Mapping[str, Samples], copies: float) -> dict[str, Ratio]:
    return {name: ratio(*pair) for name, pair in pairs(samples, copies).items()}


def figures(
    measured: Sequence[tuple[Case, Mapping[str, Mapping[str, Samples]]]],
) -> list[dict[str, Any]]:
    """Layer by layer and mode by mode, each figure over all shapes that have it."""
    groups: dict[tuple[str, bool, str], dict[str, list[tuple[Samples, Samples]]]] = {}
    for case, modes in measured:
        for mode, samples in modes.items():
            group = groups.setdefault((case.act, case.add, mode), {})
            copies = passes(mode, case.act, case.add) / COPY
            for name, pair in pairs(samples, copies).items():
                group.setdefault(name, []).append(pair)
    return [
        {
            "act": act,
            "add": add,
            "mode": mode,
            "ratios": {name: pooled(found).to_json() for name, found in group.items()},
        }
        for (act, add, mode), group in groups.items()
    ]
