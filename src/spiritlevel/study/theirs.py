"""The user's own code: its name, where it stands, and at which line of it an error came."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from spiritlevel.catalogue import say
from spiritlevel.errors import UsageError

__all__ = [
    "LIKE",
    "a",
    "folder",
    "name",
    "place",
    "shown",
    "source",
    "told",
    "where",
]

LIKE = "def build(num_classes, in_chans, norm): ..."

_LIBRARIES = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), sys.prefix)


def name(function: Any) -> str:
    """Such as build, Net.small or build(width=8) for a partial. Raises UsageError for a lambda."""
    if isinstance(function, partial):
        bound = [*map(_value, function.args)]
        bound += [f"{key}={_value(value)}" for key, value in function.keywords.items()]
        return f"{name(function.func)}({', '.join(bound)})"
    found = str(getattr(function, "__qualname__", type(function).__qualname__))
    if "<lambda>" in found:
        raise UsageError(
            "got a lambda as the model; "
            f"wanted a function with a name, which the records keep: {LIKE}"
        )
    return found.replace("<locals>.", "")


def _value(value: object) -> str:
    plain = value is None or isinstance(value, str | int | float)
    return repr(value)[:40] if plain else a(value)


def source(function: Any) -> tuple[str, int]:
    """File and line of a function, or of a class or an object that can be called."""
    given = function = inspect.unwrap(function)
    if inspect.isclass(function):
        try:
            return os.path.abspath(inspect.getfile(function)), inspect.findsource(function)[1] + 1
        except (OSError, TypeError):  # defined in a notebook, which has no file
            function = function.__init__
    elif not hasattr(function, "__code__"):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    if code is None:
        raise UsageError(
            f"got model={given!r}, which is not written in Python; wanted a function such as {LIKE}"
        )
    file = str(code.co_filename)
    return (file if file.startswith("<") else os.path.abspath(file)), int(code.co_firstlineno)


def folder(module: str, path: str, function: object) -> str | None:
    """The folder from which another process can import this very function, or None."""
    found: Any = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if module == "__main__" or file is None:
        return None
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not function:
        return None
    place = Path(file).resolve()
    place = place.parent if place.name == "__init__.py" else place
    return str(place.parents[module.count(".")])


def told(error: BaseException) -> str:
    """Such as ValueError: its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def where(error: BaseException, folder: str | None, file: str | None = None) -> str:
    """At the innermost line that an error passed through in `file`, or in a module of `folder`.

    Such as ", at ./my/models.py, line 12"; empty where it passed through none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f", at {place(error.filename, error.lineno or 0)}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == file or _is_users(f.filename, folder)]
    return f", at {place(own[-1].filename, own[-1].lineno or 0)}" if own else ""


def _is_users(file: str, folder: str | None) -> bool:
    """Whether it is in the folder, and not in a library that happens to be there, too."""
    if folder is None or not Path(file).is_relative_to(folder):
        return False
    inner = [library for library in _LIBRARIES if Path(library).is_relative_to(folder)]
    return "site-packages" not in file and not any(map(Path(file).is_relative_to, inner))


def place(file: str, line: int, language: str = "en") -> str:
    """Such as ./my/models.py, line 12; or In[3], line 2, for a cell of a notebook.

    In English, as errors are, unless a language is asked for.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    names = getattr(getattr(shell, "compile", None), "format_code_name", lambda _: None)(file)
    where = names[1] if names else shown(file)
    return say("terminal.place", language, file=where, line=line)


def shown(file: str) -> str:
    """Below the current folder as ./..., else whole."""
    path, here = Path(file), Path.cwd()
    return os.path.join(".", path.relative_to(here)) if path.is_relative_to(here) else file


def a(thing: object) -> str:
    """Its class with an article: an Identity, a BatchNorm2d."""
    name = type(thing).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
