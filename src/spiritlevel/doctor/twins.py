"""SL211: a copy within the model that follows another part's weights, but not its buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import at_init, counted, held, local, running, varies
from spiritlevel.lent.norms import batch_norms

__all__ = ["NEAR", "Twin", "twins", "unfollowed"]

NEAR = 0.5
"""Of the weights' norm. An average lags its source by per cents; two networks that were started
apart are 1.4 apart."""

Test = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Twin:
    path: str
    of: str
    distance: float
    """Between their weights, of the norm of those that it follows."""


@rule(
    "SL211",
    "twin-without-buffers",
    "warning",
    threads=(
        "DLR-RM/stable-baselines3#996",
        "DLR-RM/stable-baselines3#1004",
        "CuriousAI/mean-teacher#9",
        "HiLab-git/SSL4MIS#77",
        "facebookresearch/moco#70",
        "pytorch/ignite#2590",
    ),
)
def twin_without_buffers(rule: Rule, case: Case) -> Iterator[Finding]:
    """A part follows the weights of another, but its running statistics are as they start.

    So does a teacher, a target or a momentum network that copies or averages `parameters()`: the
    buffers are none. In eval() it normalizes by nothing. Two parts are twins where all names and
    shapes agree and the weights are within 50 % of each other, which networks started apart never
    are; and one follows where its gammas and betas are trained, too. Silent where both have counted
    batches, where none has, and where they share a weight.
    """
    for twin in unfollowed_twins(case.model):
        modules = dict(case.model.named_modules())
        seen = max(map(counted, batch_norms(modules[twin.of]).values()))
        yield rule.found(
            twin.path,
            f"has the weights of {twin.of or 'the model'} within {twin.distance:.1%}, but running "
            f"statistics of 0 and 1 and no batch counted, where that has counted {seen:.0f}",
            fix="copy the buffers with the weights, at each step: for to, of in "
            "zip(teacher.buffers(), student.buffers()): to.copy_(of)",
            twin=twin.of,
            distance=twin.distance,
            threshold=NEAR,
            batches=0,
            twin_batches=seen,
        )


def unfollowed(model: nn.Module) -> set[str]:
    """Paths of the batch norms that SL211 speaks of."""
    tops = [twin.path for twin in unfollowed_twins(model)]
    return {path for path in batch_norms(model) if any(path.startswith(f"{top}.") for top in tops)}


def unfollowed_twins(model: nn.Module) -> list[Twin]:
    norms = batch_norms(model).values()
    if not any(map(counted, norms)) or not any(map(at_init, norms)):
        return []
    return twins(model, follows=_trained_but_uncounted, leads=_counted)


def twins(model: nn.Module, *, follows: Test, leads: Test) -> list[Twin]:
    """Parts with batch norms that are alike but in their values, the outermost only.

    The first of each has `follows`, the second `leads`.
    """
    alike: dict[Any, list[str]] = {}
    modules = {path: m for path, m in model.named_modules() if path and any(m.children())}
    for path, module in modules.items():
        if (form := _form(module)) is not None:
            alike.setdefault(form, []).append(path)
    found: list[Twin] = []
    for paths in alike.values():
        sources = [path for path in paths if len(paths) > 1 and leads(modules[path])]
        for path in paths if sources else []:
            inside = any(path.startswith(f"{twin.path}.") for twin in found)
            if inside or path in sources or not follows(modules[path]):
                continue
            near = [Twin(path, of, _distance(modules[path], modules[of])) for of in sources]
            best = min(near, key=lambda twin: twin.distance)
            if best.distance < NEAR:
                found.append(best)
    return found


def _form(module: nn.Module) -> Any:
    """Names and shapes of all it holds; None without a batch norm and a weight matrix."""
    if not batch_norms(module):
        return None
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if any(is_lazy(tensor) for _, tensor in tensors) or not _weights(module):
        return None
    return tuple((name, tuple(tensor.shape)) for name, tensor in tensors)


def _weights(module: nn.Module) -> list[Tensor]:
    """Not gammas and betas, which start alike in all networks."""
    weights = [p for p in module.parameters() if p.dim() > 1 and p.numel() and not p.is_meta]
    return [local(weight.detach()) for weight in weights]


def _distance(one: nn.Module, other: nn.Module) -> float:
    """Far where they share a weight: then none is a copy."""
    pairs = list(zip(_weights(one), _weights(other), strict=True))
    if any(a.data_ptr() == b.data_ptr() for a, b in pairs):
        return float("inf")
    apart = sum(float((a - b.to(a)).norm() ** 2) for a, b in pairs)
    size = sum(float(b.norm() ** 2) for _, b in pairs)
    return float((apart / size) ** 0.5) if size else float("inf")


def _counted(module: nn.Module) -> bool:
    """Whether all its running statistics have seen batches."""
    norms = [norm for norm in batch_norms(module).values() if running(norm) is not None]
    return bool(norms) and all(counted(norm) for norm in norms)


def _trained_but_uncounted(module: nn.Module) -> bool:
    norms = list(batch_norms(module).values())
    return all(
        at_init(norm) and varies(held(norm, "weight"), 1.0) and varies(held(norm, "bias"), 0.0)
        for norm in norms
    )
