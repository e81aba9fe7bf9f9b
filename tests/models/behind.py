"""What made a tensor."""

from __future__ import annotations

import torch


def last(t):
    return t.contiguous(memory_format=torch.channels_last)


def nodes(y):
    """Class names of the graph behind y, each as often as it stands there."""
    found, left, seen = [], [y.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(type(node).__name__)
        left += [before for before, _ in node.next_functions]
    return found
