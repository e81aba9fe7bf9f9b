"""One architecture of somebody else's: converted, fused, and compared with its untouched twin.

All in float64, where rounding is far below what a wrong merge changes. The kernels are ours for
tensors of any size (`backend.SMALL` is 0), so that small inputs go through them, too.
"""

from __future__ import annotations

import copy
import math
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend

__all__ = ["TOLERANCE", "Architecture", "Row", "check"]

TOLERANCE = 1e-7
"""Of the largest value of a tensor. Deep networks of small batches make 1e-11 of a float64's 1e-16;
a wrong merge makes more than 1e-3."""

Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """`build` gives a model with random weights and an example for it, both float32."""

    package: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]


@dataclass
class Row:
    """What became of one architecture.

    `fused` and `with_example` count batch norms by what they were merged with, `left` and `closed`
    batch norms and other modules by why they were left.
    """

    package: str
    name: str
    norms: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    fused: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    with_example: dict[str, int] = field(default_factory=dict)
    traces: bool = False
    difference: float = 0.0
    remark: str = ""
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "wrong" if self.wrong else "refused" if self.refused else "right"


def check(architecture: Architecture) -> Row:
    """`convert` and `fuse` on one architecture; raises nothing for what they get wrong."""
    row = Row(architecture.package, architecture.name)
    torch.manual_seed(0)
    with warnings.catch_warnings(), _our_kernels():
        warnings.simplefilter("ignore")  # of the packages' own code
        model, example = architecture.build()
        model, example = _uneven(model.double()), _double(example)
        row.norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
        twin = _outcome(copy.deepcopy(model), example)
        again = _outcome(copy.deepcopy(model), example)
        row.difference = _distance(again, twin)[0]
        if row.difference > TOLERANCE:
            raise ValueError(f"{row.name} is no twin of itself: it differs by {row.difference:.1g}")
        _convert(row, model, example)
        _fuse(row, model, example, twin)
    return row


def _convert(row: Row, model: nn.Module, example: Any) -> None:
    for norm, make in (("batch", _batch_norm), ("group:8", _group_norm)):
        with _told(row, f"convert to {norm}"):
            changed = sl.convert(copy.deepcopy(model), norm=norm)
            expected = copy.deepcopy(model)
            for path in _paths(changed, "converted"):
                kind = type(changed.get_submodule(path)).__name__
                _by_hand(expected, path, kind, make)
            row.converted[norm] = len(_paths(changed, "converted"))
            named = {*_paths(changed, "converted"), *_paths(changed, "left")}
            silent = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
            if not named.issuperset(silent):
                row.wrong.append(f"convert to {norm}: the log names {named}, not all of {silent}")
            wanted = _outcome(expected, example)
            _compare_twins(row, f"convert to {norm}", changed, example, wanted)


def _fuse(row: Row, model: nn.Module, example: Any, twin: Numbers) -> None:
    keys = list(model.state_dict())
    for given, name in ((None, "fuse"), (example, "fuse with an example")):
        changed = copy.deepcopy(model)
        tensors = {id(t) for t in (*changed.parameters(), *changed.buffers())}
        with _told(row, name):
            if sl.fuse(changed, given) is not changed:
                row.wrong.append(f"{name}: the model is another object")
        if list(changed.state_dict()) != keys:
            row.wrong.append(f"{name}: other keys")
        if {id(t) for t in (*changed.parameters(), *changed.buffers())} != tensors:
            row.wrong.append(f"{name}: other tensors")
        if given is None:
            for how, copied in _copies(row, name, model, changed):
                _compare_twins(row, f"{name}, {how}", copied, example, twin)
            _trace(row, name, model, changed, example)
        _compare_twins(row, name, changed, example, twin)
        counts = row.with_example if given is not None else row.fused
        counts.update(_merged(changed))
    norms = {n for n, m in changed.named_modules() if isinstance(m, _BatchNorm)}
    for entry in getattr(changed, "spiritlevel_log", ()):
        if entry.action == "left":
            counts = row.left if norms.issuperset(entry.paths) else row.closed
            counts[entry.why] = counts.get(entry.why, 0) + 1


def _copies(
    row: Row, name: str, model: nn.Module, changed: nn.Module
) -> Iterator[tuple[str, nn.Module]]:
    yield "copied", copy.deepcopy(changed)
    try:
        pickle.dumps(model)
    except Exception:
        return  # nor does the original
    with _told(row, f"{name}, pickled"):
        yield "pickled", pickle.loads(pickle.dumps(changed))  # noqa: S301


def _trace(row: Row, name: str, model: nn.Module, changed: nn.Module, example: Any) -> None:
    """torch.fx on the fused model, where it can do the original."""
    for training in (True, False):
        try:
            traced = fx.symbolic_trace(copy.deepcopy(model).train(training))
            expected = _forward(traced, example, training)
        except Exception:
            continue
        row.traces = True
        with _told(row, f"{name}, traced"):
            traced = fx.symbolic_trace(copy.deepcopy(changed).train(training))
            _compare(row, f"{name}, traced", _forward(traced, example, training), expected)


@contextmanager
def _told(row: Row, name: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        row.refused.append(f"{name}: {error}")
    except Exception as error:
        row.wrong.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")


@contextmanager
def _our_kernels() -> Iterator[None]:
    before, backend.SMALL = backend.SMALL, 0
    try:
        yield
    finally:
        backend.SMALL = before


def _merged(model: nn.Module) -> dict[str, int]:
    found = Counter[str]()
    for entry in getattr(model, "spiritlevel_log", ()):
        if entry.action == "fused":
            add, act = "+ add" in entry.why, "->" in entry.why
            found["add, activation" if add and act else "add" if add else "activation"] += 1
        elif entry.action == "replaced":
            found["alone"] += 1
    return dict(found)


def _paths(model: nn.Module, action: str) -> list[str]:
    return [p for e in getattr(model, "spiritlevel_log", ()) if e.action == action for p in e.paths]


def _by_hand(model: nn.Module, path: str, kind: str, make: Callable[[Any, str], Any]) -> None:
    old = model.get_submodule(path)
    new = make(old, kind).double().train(old.training)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        if getattr(old, name, None) is not None and hasattr(new, name):
            setattr(new, name, getattr(old, name))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _batch_norm(old: Any, kind: str) -> nn.Module:
    """`kind` is the name of a class with as many axes."""
    return getattr(nn, kind)(_channels(old), old.eps, getattr(old, "momentum", 0.1))


def _group_norm(old: Any, _: str) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, _channels(old)), _channels(old), old.eps)


def _channels(norm: Any) -> int:
    """Of a batch norm, a group norm, or the layer norm that `convert` knows."""
    for name in ("num_features", "num_channels"):
        if hasattr(norm, name):
            return int(getattr(norm, name))
    return int(norm.normalized_shape[0])


def _uneven(model: nn.Module) -> nn.Module:
    """Weights that begin at 0 or 1 would hide what is added, or not multiplied."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high)
    return model


def _double(example: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example)


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    if isinstance(example, dict):
        output = model(**example)
    else:
        output = model(*example) if isinstance(example, tuple) else model(example)
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if not tensors:
        raise ValueError(f"got no tensor from {type(model).__name__}")
    return tensors


def _forward(model: nn.Module, example: Any, training: bool) -> Numbers:
    with torch.no_grad():
        outputs = _run(model.train(training), tree_map_only(Tensor, Tensor.clone, example))
    return {f"output {i}": t for i, t in enumerate(outputs)}


def _outcome(model: nn.Module, example: Any) -> Numbers:
    """Outputs, gradients and buffers of a training pass, then outputs in eval."""
    leaves = tree_map_only(
        Tensor, lambda t: t.clone().requires_grad_(t.is_floating_point()), example
    )
    outputs = _run(model.train(), tree_map_only(Tensor, Tensor.clone, leaves))
    losses = [(t * _weights(t)).sum() for t in outputs if t.requires_grad]
    sum(losses[1:], losses[0]).backward()
    found = {f"output {i} in train()": t.detach().clone() for i, t in enumerate(outputs)}
    inputs = enumerate(t for t in tree_leaves(leaves) if isinstance(t, Tensor))
    named = [*model.named_parameters(), *((f"input {i}", t) for i, t in inputs)]
    found |= {f"gradient of {n}": t.grad.clone() for n, t in named if t.grad is not None}
    found |= {f"buffer {n}": t.clone() for n, t in model.named_buffers()}
    evaluated = _forward(model, example, training=False)
    return found | {f"{name} in eval()": t for name, t in evaluated.items()}


def _weights(like: Tensor) -> Tensor:
    """So that a normalized output has a gradient."""
    return torch.arange(like.numel(), dtype=like.dtype).mul(0.7).cos().view(like.shape)


def _compare(row: Row, name: str, found: Numbers, expected: Numbers) -> None:
    distance, where = _distance(found, expected)
    row.difference = max(row.difference, distance)
    if distance > TOLERANCE:
        row.wrong.append(f"{name}: {where} differs by {distance:.1g}")


def _compare_twins(row: Row, name: str, changed: nn.Module, example: Any, twin: Numbers) -> None:
    """Where our kernels differ by more, torch's own decide: with these there is no rounding.

    A network has kinks, and one number of rounding may fall on the other side.
    """
    again = copy.deepcopy(changed)
    distance, where = _distance(_outcome(changed, example), twin)
    row.difference = max(row.difference, distance)
    if distance > TOLERANCE:
        with backend.use("aten"):
            exact = _outcome(again, example)
        _compare(row, name, exact, twin)
        left = _distance(exact, twin)[0]
        row.remark = f"{where} differs by {distance:.0e}, on torch's kernels by {left:.0e}"


def _distance(found: Numbers, expected: Numbers) -> tuple[float, str]:
    """The largest difference relative to the largest value of its tensor, and where it is.

    A gradient that is nothing but rounding (of a bias before a batch norm) counts relative to a
    thousandth of the largest gradient.
    """
    if found.keys() != expected.keys():
        return math.inf, f"the presence of {sorted(found.keys() ^ expected.keys())[0]}"
    gradients = [t.abs().max().item() for n, t in expected.items() if n.startswith("gradient")]
    floor = max([*gradients, 1e-9]) / 1000
    worst = (0.0, "nothing")
    for name, b in expected.items():
        a = found[name]
        if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return math.inf, name
        if b.numel() == 0:
            continue
        a, b = (t.double().nan_to_num(0, 0, 0) for t in (a, b))
        scale = max(b.abs().max().item(), floor if name.startswith("gradient") else 1e-9)
        worst = max(worst, ((a - b).abs().max().item() / scale, name))
    return worst
