"""Plain values with every list or dict that comes again written once."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["pooled"]

# A reference, such as {"$":123}, is shorter than what has so many characters.
_WORTH = 12


def pooled(value: Any) -> dict[str, Any]:
    """`{"pool": [...], "value": ...}`, where {"$": n} stands for the pool's item n.

    An item refers only to earlier ones. web/charts.js has the way back.
    """
    ids: dict[tuple[Any, ...], int] = {}
    seen: list[int] = []  # how often, by id
    sizes: list[int] = []  # about how many characters, by id
    known: dict[int, int] = {}  # id() of a container -> id; all stay alive with `value`
    _count(value, ids, seen, sizes, known)
    pool: list[Any] = []
    places: dict[int, int] = {}

    def emitted(item: Any) -> Any:
        if not isinstance(item, dict | list):
            return item
        key = known[id(item)]
        if key in places:
            return {"$": places[key]}
        whole = (
            {name: emitted(one) for name, one in item.items()}
            if isinstance(item, dict)
            else [emitted(one) for one in item]
        )
        if seen[key] < 2 or sizes[key] < _WORTH:
            return whole
        pool.append(whole)
        places[key] = len(pool) - 1
        return {"$": places[key]}

    found = emitted(value)
    return {"pool": pool, "value": found}


def _count(
    item: Any,
    ids: dict[tuple[Any, ...], int],
    seen: list[int],
    sizes: list[int],
    known: dict[int, int],
) -> tuple[Any, int]:
    """The key of an item, equal for equal items, and about its size; containers are counted."""
    if not isinstance(item, dict | list):
        # The type, too: 1, 1.0 and True are equal, and not the same in JSON.
        return (type(item), item), len(str(item)) + 1
    if isinstance(item, list) and {dict, list}.isdisjoint(map(type, item)):
        text = json.dumps(item)  # most of a page is in such lists
        return _counted(item, (text,), len(text), ids, seen, sizes, known)
    names = tuple(item) if isinstance(item, dict) else None
    parts = [
        _count(one, ids, seen, sizes, known)
        for one in (item.values() if isinstance(item, dict) else item)
    ]
    key = (names, *(part[0] for part in parts))
    size = 2 + sum(part[1] for part in parts) + sum(len(name) + 3 for name in names or ())
    return _counted(item, key, size, ids, seen, sizes, known)


def _counted(
    item: Any,
    key: tuple[Any, ...],
    size: int,
    ids: dict[tuple[Any, ...], int],
    seen: list[int],
    sizes: list[int],
    known: dict[int, int],
) -> tuple[int, int]:
    if key not in ids:
        ids[key] = len(seen)
        seen.append(0)
        sizes.append(size)
    place = ids[key]
    seen[place] += 1
    known[id(item)] = place
    return place, size
