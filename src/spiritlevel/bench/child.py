"""A function of this room in a process of its own, for what cannot be undone in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spiritlevel.errors import SpiritlevelError

__all__ = ["in_a_child", "in_children"]

_CALL = (
    "import importlib, json, sys; "
    "module, function, given = sys.argv[1:]; "
    "found = getattr(importlib.import_module(module), function)(**json.loads(given)); "
    "print(json.dumps(found))"
)


def in_a_child(
    module: str, function: str, given: Mapping[str, Any], variables: Mapping[str, str] | None = None
) -> Any:
    """What `function(**given)` of a module returns, all of it JSON, with environment variables.

    An end of this process by a signal ends the child. Raises SpiritlevelError where the child
    fails, with its last line.
    """
    return in_children(module, function, [given], variables)[0]


def in_children(
    module: str,
    function: str,
    given: Sequence[Mapping[str, Any]],
    variables: Mapping[str, str] | None = None,
) -> list[Any]:
    """The same in several at once, one for each of `given`. Where one fails, all are ended."""
    pipes: Any = {"stdin": subprocess.DEVNULL, "text": True}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CALL, module, function, json.dumps(each)],
            env={**os.environ, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **pipes,
        )
        for each in given
    ]
    try:
        return [_returned(child, f"{module}.{function}") for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _returned(child: subprocess.Popen[str], name: str) -> Any:
    out, error = child.communicate()
    if child.returncode != 0:
        last = (error.strip().splitlines() or ["nothing on stderr"])[-1]
        raise SpiritlevelError(
            f"got exit code {child.returncode} from a process that measured {name}, and: {last}. "
            "Report it, with `spiritlevel env`"
        )
    return json.loads(out.strip().splitlines()[-1])
