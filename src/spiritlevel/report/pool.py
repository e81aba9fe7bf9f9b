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
    census = _Census()
    census.count(value)
    pool: list[Any] = []
    places: dict[int, int] = {}

    def emitted(item: Any) -> Any:
        if not isinstance(item, dict | list):
            return item
        kind = census.kind_of[id(item)]
        if kind in places:
            return {"$": places[kind]}
        whole = (
            {name: emitted(one) for name, one in item.items()}
            if isinstance(item, dict)
            else [emitted(one) for one in item]
        )
        if census.times[kind] < 2 or census.sizes[kind] < _WORTH:
            return whole
        pool.append(whole)
        places[kind] = len(pool) - 1
        return {"$": places[kind]}

    found = emitted(value)
    return {"pool": pool, "value": found}


class _Census:
    """Of lists and dicts, where equal ones are of one kind: a number from 0."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[Any, ...], int] = {}
        self.times: list[int] = []
        """How often each kind comes."""
        self.sizes: list[int] = []
        """About how many characters each takes."""
        self.kind_of: dict[int, int] = {}
        """By `id`: all that is counted stays alive with the value."""

    def count(self, item: Any) -> tuple[Any, int]:
        """What is equal for equal items alone, and about the item's size."""
        if not isinstance(item, dict | list):
            # The type, too: 1, 1.0 and True are equal, and not the same in JSON.
            return (type(item), item), len(str(item)) + 1
        if isinstance(item, list) and {dict, list}.isdisjoint(map(type, item)):
            text = json.dumps(item)  # most of a page is in such lists
            return self._enter(item, (text,), len(text))
        names = tuple(item) if isinstance(item, dict) else None
        parts = [self.count(one) for one in (item.values() if isinstance(item, dict) else item)]
        key = (names, *(part for part, _ in parts))
        size = 2 + sum(size for _, size in parts) + sum(len(name) + 3 for name in names or ())
        return self._enter(item, key, size)

    def _enter(self, item: Any, key: tuple[Any, ...], size: int) -> tuple[int, int]:
        kind = self.kinds.setdefault(key, len(self.times))
        if kind == len(self.times):
            self.times.append(0)
            self.sizes.append(size)
        self.times[kind] += 1
        self.kind_of[id(item)] = kind
        return kind, size
