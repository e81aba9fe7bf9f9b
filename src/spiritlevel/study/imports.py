"""Which of a user's files a module of theirs is made of, read from the import statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["own_files"]


def own_files(module: str, root: Path) -> list[Path]:
    """The files under `root` that importing `module` from there may read, its own among them.

    As the text says it: an import within a function counts, one whose name is computed does not.
    """
    found: set[Path] = set()
    todo = list(_files(module, root))
    while todo:
        package, file = todo.pop()
        if file in found:
            continue
        found.add(file)
        with suppress(OSError, SyntaxError, ValueError):
            for name in _named(ast.parse(file.read_bytes()), package):
                todo += _files(name, root)
    return sorted(found)


def _files(module: str, root: Path) -> Iterator[tuple[list[str], Path]]:
    """The module and the packages it is in: the package that relative imports start from, file."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:end])
        if (init := base / "__init__.py").is_file():
            yield parts[:end], init
        elif (file := base.with_name(f"{base.name}.py")).is_file():
            yield parts[: end - 1], file


def _named(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Modules that are imported; after `from a import b`, a.b may be one, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
