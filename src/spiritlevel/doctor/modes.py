"""SL201, SL203: norms whose mode is not what the model's owner thinks it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import nn

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import listed, momentum, running, spared
from spiritlevel.doctor.twins import twins

__all__: list[str] = []


@rule("SL201", "eval-keeps-training", "error", threads=("roytseng-tw/Detectron.pytorch#104",))
def eval_keeps_training(rule: Rule, case: Case) -> Iterator[Finding]:
    """`model.eval()` leaves a batch norm in training.

    In what is then called evaluation, the output depends on the samples of the batch, and the test
    data goes into the running statistics. The cause is a `train()`, which eval() calls, that was
    written anew: it forgets the mode, or the children. It is called to see (and the model put back
    as it was), so this is certain. Silent on batch norms without running statistics.
    """
    modules = dict(case.model.named_modules())
    left = [path for path in case.still_training if running(modules[path]) is not None]
    if left:
        path, more = listed(left)
        owner = _own_train(case.model, path)
        by = f"; {owner} has a train() or eval() of its own" if owner else ""
        yield rule.found(
            path,
            f"is in training after model.eval(){more}{by}",
            fix="in that train(mode), call super().train(mode) first, and return self; set modes "
            "of parts only after it, and only where mode is True",
            norms=len(left),
            threshold=0,
            layers=left,
        )


@dataclass
class _Frozen:
    """Batch norms without grad in train(), by what that means."""

    with_weights: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


@rule(
    "SL203",
    "frozen-but-training",
    "warning",
    threads=(
        "pytorch/pytorch#86590",
        "pytorch/pytorch#66073",
        "pytorch/pytorch#10856",
        "chemprop/chemprop#952",
        "Lightning-AI/pytorch-lightning#15062",
        "speediedan/finetuning-scheduler#13",
    ),
)
def frozen_but_training(rule: Rule, case: Case) -> Iterator[Finding]:
    """A frozen batch norm is in train(), so its running statistics go on changing.

    `requires_grad=False` stops gradients, not the running mean and variance, and each
    `model.train()` sets the norms back to training. The "frozen" part drifts towards the new data,
    and in training it sees the batch's statistics, in eval() others. A warning where the weights
    before the norm are frozen as well and other parameters learn. Info where nothing in the model
    learns (a recalibration looks like this), where the weights before the norm do learn, which then
    wants running statistics that follow, and where the norm has a gradient: it was frozen only for
    this step, as a GAN's discriminator is; but not where all layers before it are frozen, too, and
    it feeds layers that learn, as a backbone does. Silent on a twin of a part that learns: momentum
    networks (MoCo, BYOL) are in train() on purpose.
    """
    norms = {path: norm for path, norm in case.batch_norms.items() if _drifts(norm)}
    if not norms:
        return
    learning = any(parameter.requires_grad for parameter in case.model.parameters())
    momentum_nets = _momentum_networks(case.model) if learning else []
    weights_frozen = _with_frozen_weights(case.model, norms)
    frozen = _Frozen()
    for path, norm in norms.items():
        if any(path.startswith(f"{top}.") for top in momentum_nets):
            continue
        still = learning and path in weights_frozen
        still = still and (not _had_gradient(norm) or _in_backbone(case, path, norm))
        (frozen.with_weights if still else frozen.alone).append(path)
    fix = "norm.eval() on these after each model.train() (or in a train() of your own), or "
    fix += 'spiritlevel.convert(part, norm="frozen")'
    if frozen.with_weights:
        path, more = listed(frozen.with_weights)
        yield rule.found(
            path,
            f"is frozen (requires_grad=False) with the weights before it, but in train(){more}: "
            f"each batch moves its running statistics by {_share(norms[path])}",
            fix=fix,
            layers=frozen.with_weights,
            momentum=momentum(norms[path]),
        )
    elif frozen.alone:
        path, more = listed(frozen.alone)
        what = "though weights around it learn" if learning else "as nothing else in the model does"
        yield rule.found(
            path,
            f"does not learn (requires_grad=False), {what}, and is in train(){more}: each batch "
            f"moves its running statistics by {_share(norms[path])}",
            fix=f"nothing, if that is meant; else {fix}",
            severity="info",
            layers=frozen.alone,
            momentum=momentum(norms[path]),
        )


def _drifts(norm: nn.Module) -> bool:
    """Whether all its parameters are frozen and a batch would move its running statistics."""
    tracks = running(norm) is not None and getattr(norm, "track_running_stats", True)
    return bool(spared(norm) and norm.training and tracks and momentum(norm) != 0.0)


def _had_gradient(norm: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in norm.parameters(recurse=False))


def _in_backbone(case: Case, path: str, norm: nn.Module) -> bool:
    """Whether all that is registered before it is frozen, and what learns is fed by it."""
    for name, module in case.model.named_modules():
        if name == path:
            break
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            return False
    return case.structure.feeds(
        norm, lambda part: any(p.requires_grad for p in part.parameters(recurse=False))
    )


def _with_frozen_weights(model: nn.Module, norms: Collection[str]) -> set[str]:
    """Those whose weights are frozen: of the layer registered before, or after where none is."""
    found: set[str] = set()
    waiting: list[str] = []
    frozen: bool | None = None  # the last layer's; None before the first
    for path, module in model.named_modules():
        if path in norms:
            waiting.append(path)
        elif any(p.dim() > 1 for p in module.parameters(recurse=False)):
            frozen = not any(p.requires_grad for p in module.parameters(recurse=False))
        if frozen is not None:
            found.update(waiting if frozen else ())
            waiting.clear()
    return found.union(waiting)  # no weights at all


def _momentum_networks(model: nn.Module) -> list[str]:
    def frozen(part: nn.Module) -> bool:
        return not any(p.requires_grad for p in part.parameters())

    return [twin.path for twin in twins(model, follows=frozen, leads=lambda p: not frozen(p))]


def _share(norm: nn.Module) -> str:
    share = momentum(norm)
    return "its share of all batches" if share is None else f"a share of {share:g}"


def _own_train(model: nn.Module, path: str) -> str:
    """The innermost module around the norm that sets modes in its own way."""
    steps = path.split(".") if path else []
    for length in range(len(steps), -1, -1):
        module = model.get_submodule(".".join(steps[:length]))
        kind = type(module)
        if kind.train is not nn.Module.train or kind.eval is not nn.Module.eval:
            return kind.__name__
    return ""
