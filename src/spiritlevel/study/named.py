"""Something of the user's own, found by the name pkg.module:name."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from typing import Any

from spiritlevel.errors import UsageError, did_you_mean
from spiritlevel.study import theirs

__all__ = ["named"]


def named(
    spec: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    what: str = "model",
    wanted: str = "a function there that builds a network",
) -> tuple[Any, str]:
    """What "pkg.module:name" names, and the folder from which it was imported.

    `folder` (default: the current one) goes before all else that Python imports from, and stays
    there. A dot after the colon reaches into a class. Raises UsageError.
    """
    module_name, _, path = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        shape = "factory" if what == "model" else what
        raise UsageError(f"got {what} {spec!r}; wanted pkg.module:{shape}, {_example(spec)}")
    root = os.path.abspath(folder or ".")
    if root not in map(os.path.abspath, sys.path):
        sys.path.insert(0, root)
    found = _import(spec, module_name, root, what)
    for name in path.split("."):
        if not hasattr(found, name):
            raise _no_such_name(spec, found, name, what, wanted)
        found = getattr(found, name)
    return found, root


def _no_such_name(spec: str, holder: Any, name: str, what: str, wanted: str) -> UsageError:
    module, _, path = spec.partition(":")
    if module == "__main__":
        return UsageError(
            f"got {what} {spec}, a function of a notebook or script that this is not; "
            f"wanted it itself. Go on from there, by {what}={path}"
        )
    hint = did_you_mean(name, [n for n in dir(holder) if n[0] != "_"])
    file = theirs.shown(getattr(sys.modules[module], "__file__", None) or module)
    return UsageError(f"got {what} {spec}, but {file} has no {path}; wanted {wanted}.{hint}")


def _import(spec: str, name: str, root: str, what: str) -> Any:
    try:
        importlib.invalidate_caches()  # the module may have been written a moment ago
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise UsageError(
                f"got {theirs.told(error)} from the module of {what} {spec}"
                f"{theirs.where(error, root)}, as it is imported; "
                "wanted a module that imports. Put that right and run again"
            ) from error
        hint = _meant(missing, root)
        raise UsageError(
            f"got {what} {spec}, but there is no module {missing} in {root} or among what is "
            "installed; wanted one that can be imported from here. "
            f"Go to its folder, or mend the name.{hint}"
        ) from None
    if getattr(module.__spec__, "_initializing", False):
        raise UsageError(
            f"got {what} {spec} while {name} is being imported: it starts the study itself; "
            'wanted that call under: if __name__ == "__main__":'
        )
    return module


def _meant(name: str, root: str) -> str:
    """A hint at modules whose names are like it, beside where it was looked for."""
    package, _, last = name.rpartition(".")
    paths = list(getattr(sys.modules.get(package), "__path__", [])) if package else [root]
    beside = [found.name for found in pkgutil.iter_modules(paths)]
    return did_you_mean(last, beside, within=f"{package}." if package else "")


def _example(spec: str) -> str:
    """What was probably meant: here my.models:build, for my/models.py:build."""
    module, _, name = spec.partition(":")
    dotted = re.sub(r"\.py$", "", module).replace("\\", "/").removeprefix("./").replace("/", ".")
    meant = [*dotted.split("."), *name.split(".")]
    return f"here {dotted}:{name}" if all(map(str.isidentifier, meant)) else "as my.models:build"
