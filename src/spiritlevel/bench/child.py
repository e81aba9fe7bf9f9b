"""A function of this room in a process of its own, for what cannot be undone in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from spiritlevel.errors import SpiritlevelError

__all__ = ["in_a_child"]

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
    done = subprocess.run(
        [sys.executable, "-c", _CALL, module, function, json.dumps(given)],
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise SpiritlevelError(
            f"got exit code {done.returncode} from a process that measured {module}.{function}, "
            f"and: {last}. Report it, with `spiritlevel env`"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])
