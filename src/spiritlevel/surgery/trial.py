"""Whether a batch norm takes the statistics of what it is given: its forward may be its own."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.pooled import Pooled
from spiritlevel.surgery.statistics import tracks

__all__ = ["OWN_FORWARD", "takes", "unusual_norms", "why_unmeasured"]

OWN_FORWARD = "its own forward does not take the statistics of what it is given"


def unusual_norms(model: nn.Module) -> set[str]:
    """Batch norms with a forward that is neither torch's nor one of ours."""
    return {path for path, norm in batch_norms(model).items() if not _usual(norm)}


def _usual(norm: nn.Module) -> bool:
    home = getattr(type(norm).forward, "__module__", "")
    known = home == nn.modules.batchnorm.__name__ or home.startswith("spiritlevel.nn.")
    return known and "forward" not in vars(norm)


def why_unmeasured(model: nn.Module, unusual: set[str], *, alone: bool) -> dict[str, str]:
    """By path, why a batch norm cannot be measured; `unusual` are those of `unusual_norms`.

    `alone`: there is no other process, which a trial of a forward might wait for.
    """
    homes: dict[int, set[str]] = defaultdict(set)
    for path, module in model.named_modules():
        if tracks(module):
            for each in (module.running_mean, module.running_var):
                homes[each.data_ptr()].add(path)
    shared = {path for at, paths in homes.items() if at and len(paths) > 1 for path in paths}
    found = dict.fromkeys(shared, "it shares its running statistics with another layer")
    for path in unusual:
        if "forward" in vars(model.get_submodule(path)):
            found[path] = "its forward was replaced, so it cannot be tried on a copy"
        elif not alone:
            found[path] = "its forward is its own, which can be tried in one process only"
    return found


@torch.no_grad()
def takes(
    norm: Any, given: tuple[Any, ...], named: Mapping[str, Any], x: Tensor, part: Pooled
) -> bool:
    """Whether, in training, it takes the statistics of `x`, which are `part`; tried on a copy."""
    if part.count < 2:
        return False
    try:
        other = copy.deepcopy(norm)
        other.train()
        other.momentum = 1.0  # nothing of the running statistics is left
        other.running_mean.zero_()
        other.running_var.fill_(-1.0)
        given, named = tree_map_only(Tensor, torch.clone, (given, dict(named)))
        type(other).forward(other, *given, **named)  # the class's: the module's own listens
        mean, var = (t.double().cpu().flatten() for t in (other.running_mean, other.running_var))
    except Exception:
        return False
    if not bool((part.mean + part.var).isfinite().all()):
        return not bool((mean + var).isfinite().all())  # to be refused as what it is
    eps = max(torch.finfo(t.dtype).eps for t in (x, other.running_mean, other.running_var))
    slack = max(1e-3, 4 * eps)
    near = (mean - part.mean).abs() <= slack * part.std + 8 * eps * part.mean.abs()
    floor = (8 * eps * part.mean).square()
    alike = [(var - each).abs() <= slack * each + floor for each in (part.unbiased, part.var)]
    return bool(near.all()) and any(bool(each.all()) for each in alike)
