"""`spiritlevel env`: what a report of a fault needs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from spiritlevel.catalogue import columns, say
from spiritlevel.cli.lines import wrapped

__all__ = ["env"]


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Versions, threads, kernels, allocator: what a bug report needs, and nothing private."""
    from spiritlevel.study.environment import gather

    found = gather()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    lines = list(_lines(found))
    width = max(columns(name) for name, _ in lines) + 2
    room = shutil.get_terminal_size().columns - width if sys.stdout.isatty() else 10_000
    for name, value in lines:
        for part in wrapped(value, max(room, 20)) or [""]:
            print(f"{name}{' ' * (width - columns(name))}{part}".rstrip())
            name = ""


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, value), with an empty pair between the parts."""
    yield from found["versions"].items()
    yield "", ""
    yield from _system(found["system"])
    yield from _several("accelerator", found["accelerators"] or [say("terminal.env.none")])
    yield "", ""
    yield from _threads(found["threads"])
    yield "", ""
    yield from _kernels(found["kernels"])
    yield from _allocator(found["allocator"])
    yield "", ""
    for extra, missing in found["extras"].items():
        key = "lacks" if missing else "installed"
        told = say(f"terminal.env.{key}", missing=", ".join(missing), extra=extra)
        yield say("terminal.env.extra", extra=extra), told


def _system(system: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield say("terminal.env.system"), system["platform"]
    processor = say("terminal.env.with_capability", **system)
    yield say("terminal.env.processor"), processor
    yield say("terminal.env.cores"), say("terminal.env.usable", **system)
    if system["memory_gib"] is not None:
        yield say("terminal.env.memory"), say("terminal.env.free", **system)


def _threads(threads: dict[str, Any]) -> Iterator[tuple[str, str]]:
    libraries = {"MKL": threads["mkl"], "oneDNN": threads["onednn"]}
    built = [f"{name} {version}" for name, version in libraries.items() if version]
    told = [say("terminal.env.torch_threads", **threads)]
    told += [say("terminal.env.pool", pool=", ".join([threads["pool"], *built]))]
    numba = threads["numba"]
    told += [say("terminal.env.layer", layer=numba) if numba else say("terminal.env.no_numba")]
    yield from _several("threads", told + _variables(threads))


def _kernels(kernels: dict[str, Any]) -> Iterator[tuple[str, str]]:
    asked, active, version = kernels["asked"], kernels["backend"], kernels["numba"]
    told = [say("terminal.env.asked", asked=asked)]
    if active is None:
        told += [say("terminal.env.refused", why=kernels["refused"])]
    else:
        by_size = asked == "auto" and active == "cpu"
        told += [say(f"terminal.env.active.{'by_size' if by_size else active}")]
    numba = say("terminal.env.numba", version=version) if version else say("terminal.env.no_numba")
    version = kernels["triton"]
    triton = (
        say("terminal.env.triton", version=version) if version else say("terminal.env.no_triton")
    )
    told += [numba, triton, say(f"terminal.env.{kernels['oracle']}")]
    yield from _several("kernels", told)


def _allocator(allocator: dict[str, Any]) -> Iterator[tuple[str, str]]:
    preloaded, libc = allocator["preloaded"], allocator["libc"] or say("terminal.env.unknown")
    if preloaded:
        told = say("terminal.env.preloaded", preloaded=preloaded, libc=libc)
    else:
        told = say(f"terminal.env.{'tuned' if allocator['tuned'] else 'untuned'}", libc=libc)
    yield from _several("allocator", [told, *_variables(allocator)])


def _variables(part: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in part["variables"].items()]


def _several(name: str, values: list[str]) -> Iterator[tuple[str, str]]:
    """One label for several lines."""
    yield say(f"terminal.env.{name}"), values[0]
    for value in values[1:]:
        yield "", value
