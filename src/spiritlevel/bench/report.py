"""Tables of what was measured, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from spiritlevel.catalogue import say

__all__ = ["tables"]

_Found = Mapping[str, Any]
_COLUMNS = {
    "eager": "eager",
    "eager channels-last": "eager_cl",
    "compile": "compiled",
    "floor": "floor",
}
"""Figure -> key of its heading under `[terminal.bench]`."""
_MOST_KINDS = 4
"""Of operations, in a row; the JSON has all."""


def tables(found: _Found) -> Iterator[Table | str]:
    """In order, with sentences between, for what a function of this room returned."""
    yield from {
        "bench norms": _norms,
        "bench fuse": _fuse,
        "bench ghost": _ghost,
        "bench allocator": _allocator,
        "bench probe": _probe,
        "bench deploy": _deploy,
        "bench scale": _scale,
    }[found["command"]](found)


def _norms(found: _Found) -> Iterator[Table | str]:
    yield from found["notes"]
    compiled = any("compile" in group["ratios"] for group in found["figures"])
    columns = [name for name in _COLUMNS if name != "compile" or compiled]
    for group in found["figures"]:
        table = _table(_layer(group), "shape", *(_COLUMNS[name] for name in columns))
        mode, same = group["mode"], (group["act"], group["add"])
        for row in found["cases"]:
            if (row["act"], row["add"]) == same:
                ratios = row["modes"][mode]["ratios"]
                table.add_row(_shape(row), *(_ratio(ratios.get(name)) for name in columns))
        table.add_section()
        means = [_ratio(group["ratios"].get(name), interval=True) for name in columns]
        table.add_row(say("terminal.bench.mean"), *means)
        yield table
    yield _peaks(found)
    yield say("terminal.bench.how_norms", **found["settings"])
    if "first_step" in found:
        yield _first_step(found["first_step"])
        yield say("terminal.bench.how_first_step", **found["first_step"])


def _layer(group: _Found) -> str:
    layer = "BN + add" if group["add"] else "BN"
    return say("terminal.bench.layer", layer=layer, act=group["act"], mode=group["mode"])


def _shape(row: _Found) -> str:
    """Marked where tensors may stay in cache."""
    return f"{row['shape']}{'' if row['beyond_last_level_cache'] else ' *'}"


def _peaks(found: _Found) -> Table:
    names = list(dict.fromkeys(name for row in found["cases"] for name in row["peak_tensors"]))
    table = Table(title=say("terminal.bench.peak"), box=None, title_justify="left")
    table.add_column(say("terminal.bench.shape"))
    for name in ("BN", *names):
        table.add_column(name, justify="left" if name == "BN" else "right")
    for row in found["cases"]:
        peaks = [row["peak_tensors"].get(name) for name in names]
        layer = f"BN{' + add' if row['add'] else ''} + {row['act']}"
        table.add_row(row["shape"], layer, *("–" if p is None else f"{p:.2f}" for p in peaks))
    return table


def _first_step(found: _Found) -> Table:
    title = say("terminal.bench.first_step", model=found["model"])
    table = _table(title, "kernels", "first", "later", "added", "count")
    for layout, rows in found["seconds"].items():
        for name, row in rows.items():
            told = say(f"terminal.bench.{name}_start", layout=layout)
            seconds = [f"{row[key]:.2f}" for key in ("first", "later", "added")]
            table.add_row(told, *seconds, str(row["kernels_on_disk"] or "–"))
    return table


def _fuse(found: _Found) -> Iterator[Table | str]:
    table = _table(say("terminal.bench.step"), "network", "eager", "eager_cl", "memory")
    columns = ("eager", "eager channels-last")
    for row in found["cases"]:
        ratios = [_ratio(row["ratios"][name], interval=True) for name in columns]
        table.add_row(row["model"], *ratios, f"{row['peak_ratio']:.2f}")
    table.add_section()
    means = [_ratio(found["figures"][name], interval=True) for name in columns]
    table.add_row(say("terminal.bench.mean"), *means)
    yield table
    yield say("terminal.bench.how_fuse", **found["settings"])


def _ghost(found: _Found) -> Iterator[Table | str]:
    yield from found["notes"]
    for row in found["cases"]:
        title = say("terminal.bench.trained", **row)
        table = _table(title, "subject", "milliseconds", "over_ours", "peak_mb", "where")
        ours = row["seconds"]["ours"]["median"]
        shares = row.get("shares") or {name: {} for name in row["seconds"]}
        for name, share in shares.items():
            median = row["seconds"][name]["median"]
            most = ", ".join(f"{kind} {part:.0%}" for kind, part in [*share.items()][:_MOST_KINDS])
            peak = f"{row['peak_bytes'][name] / 1e6:.0f}" if name in row["peak_bytes"] else "–"
            table.add_row(name, f"{1e3 * median:.1f}", f"{median / ours:.2f}", peak, most)
        yield table
        ratios = _table("", "over", "mean_of_rounds", "peak_over")
        for name, one in row["ratios"].items():
            peak = row["peak_ratio"].get(name)
            told = "–" if peak is None else f"{peak:.2f}"
            ratios.add_row(found["meaning"][name], _ratio(one, interval=True), told)
        yield ratios
        if "floor" in row:
            floor = {key: f"{value:.4g}" for key, value in row["floor"].items()}
            yield say("terminal.bench.ghost_floor", **floor)
    how = "how_ghost_on_gpu" if "device" in found["settings"] else "how_ghost"
    yield say(f"terminal.bench.{how}", **found["settings"])


def _allocator(found: _Found) -> Iterator[Table | str]:
    table = _table(say("terminal.bench.allocators", **found["settings"]), "layer_column", "gain")
    for name, one in found["ratios"].items():
        table.add_row(name, _ratio(one, interval=True))
    yield table
    key = "how_allocator" if found["took_effect"] else "no_allocator"
    yield say(f"terminal.bench.{key}", **found["settings"])


def _probe(found: _Found) -> Iterator[Table | str]:
    title = say("terminal.bench.probed", **found["settings"])
    table = _table(title, "images", "looks", "cheap", "dear", "by_clock", "by_wall")
    for row in found["cases"]:
        alone = row["seconds"]["alone"]["median"]
        images = f"{row['batch']}×3×{row['size']}×{row['size']}, {1e3 * alone:.0f} ms"
        for name, inside in row["inside"].items():
            times = [f"{1e3 * inside[kind]:.1f} ms" for kind in ("cheap", "dear")]
            clock, wall = f"{100 * inside['share']:.2f} %", _percent(row["cost"][name])
            table.add_row(images, say(f"terminal.bench.{name}"), *times, clock, wall)
            images = ""
    yield table
    yield say("terminal.bench.how_probe", **found["settings"])


def _scale(found: _Found) -> Iterator[Table | str]:
    title = say("terminal.bench.scaled", **found["settings"])
    table = _table(title, "processes", "norm_batch", "norm_sync", "sync_over", "sent", "by_formula")
    for row in found["cases"]:
        times = [f"{1e3 * row['seconds'][norm]['median']:.0f} ms" for norm in ("batch", "sync")]
        sent, formula = row.get("bytes_a_process"), sum(row["formula"].values())
        seen = f"{sent['sync'] / 1e6:.2f} MB" if sent else "–"
        ratio = _ratio(row["ratio"], interval=True)
        table.add_row(str(row["processes"]), *times, ratio, seen, f"{formula / 1e6:.2f} MB")
    yield table
    yield say("terminal.bench.how_scale", **found["settings"])


def _deploy(found: _Found) -> Iterator[Table | str]:
    settings = found["settings"]
    for row in found["cases"]:
        title = say("terminal.bench.deployed", batch=row["batch"], **settings)
        columns = ("milliseconds", "throughput", "over_eager", "distance", "follows")
        table = _table(title, "form", *columns)
        eager = row["forms"]["eager"]["seconds"]["median"]
        by_time = sorted(row["forms"].items(), key=lambda item: item[1]["seconds"]["median"])
        for name, form in by_time:
            median = form["seconds"]["median"]
            rate, far = f"{form['images_a_second']:.1f}", f"{form['largest_difference']:.1g}"
            same = f"{form['correlation']:.2f}"
            table.add_row(name, f"{1e3 * median:.1f}", rate, f"{eager / median:.2f}", far, same)
        yield table
        ratios = _table("", "over", "mean_of_rounds")
        for name, one in row["ratios"].items():
            ratios.add_row(found["meaning"][name], _ratio(one, interval=True))
        yield ratios
        fastest = row["fastest"]
        told = {"fastest": fastest["float32"], "of_all": fastest["of all"]}
        yield say("terminal.bench.how_deploy", **settings, **told)


def _percent(one: _Found) -> str:
    value, low, high = (100 * (one[key] - 1) for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=None, title_justify="left")
    table.add_column(say(f"terminal.bench.{first}"))
    for name in others:
        table.add_column(say(f"terminal.bench.{name}"), justify="right")
    return table


def _ratio(one: _Found | None, *, interval: bool = False) -> str:
    if one is None:
        return "–"
    told = f"{one['value']:.2f}"
    return f"{told} ({one['low']:.2f} to {one['high']:.2f})" if interval else told
