"""A model in training or in eval as its user runs it, for a while, in one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.lent.guard import undisturbed
from spiritlevel.lent.kept import kept
from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.state import buffers_now, modes_now, random_states, set_random_states
from spiritlevel.nn.sync import alone

__all__ = [
    "active_dropouts",
    "borrowed",
    "frozen_norms",
    "put_in",
    "refuse_lazy",
    "seeded",
    "seeded_within",
    "takes_batch",
]

SEED = 0
"""Of the dropout in what is measured, so that a verdict is the same each time."""


@contextmanager
def borrowed(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Run the model within as you like; all is put back. Gives what puts the buffers back at once.

    Our kernels are torch's meanwhile, compiled models run eagerly, and no `SyncBatchNorm` nor
    `DistributedDataParallel` asks another process, which need not be measuring, or have as many
    batches. Raises UsageError for lazy layers.
    """
    refuse_lazy(model)
    needs = [(p, p.requires_grad) for p in model.parameters()]
    buffers_back = buffers_now(model)
    try:
        with kept(model), undisturbed(model), backend.use("aten"), alone(), _eager():
            for module in model.modules():
                # Not a subclass with a forward of its own, which may do more than normalize.
                if getattr(type(module), "forward", None) is nn.SyncBatchNorm.forward:
                    module.forward = partial(_alone, module)
                if isinstance(module, nn.parallel.DistributedDataParallel):
                    module.require_forward_param_sync = False
                if isinstance(module, nn.DataParallel):
                    module.device_ids = []  # on its first device: copies of a norm are not heard
            yield buffers_back
    finally:
        for parameter, needed in needs:
            parameter.requires_grad_(needed)


def refuse_lazy(model: nn.Module) -> None:
    """Raises UsageError for a model with layers whose shapes are still to be told."""
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise UsageError(
            "got a model with lazy layers; run it once on a batch before it is measured"
        )


def _eager() -> Any:
    """Setting it imports the compiler, which takes seconds; nothing is compiled where it is not."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _alone(norm: Any, x: Tensor) -> Tensor:
    """What it does where there is no other process."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        seen = norm.num_batches_tracked
        momentum = 0.0 if seen is None else 1.0 / float(seen)
    given = not norm.training or norm.track_running_stats
    mean, var = (norm.running_mean, norm.running_var) if given else (None, None)
    batch = norm.training or (norm.running_mean is None and norm.running_var is None)
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, batch, momentum, norm.eps)


def frozen_norms(model: nn.Module) -> set[str]:
    """Batch norms that keep to their running statistics while the model trains, as it is now.

    Those in eval in a model that is in train(); those in eval whose parameters are not trained
    where others are; those that the model's own train() leaves in eval. To be asked within
    `borrowed`: it calls train().
    """
    norms = batch_norms(model)
    learns = any(p.requires_grad for p in model.parameters())
    training = model.training or any(norm.training for norm in norms.values())
    found = set()
    for path, norm in norms.items():
        own = list(norm.parameters(recurse=False))
        spared = learns and bool(own) and not any(p.requires_grad for p in own)
        if not norm.training and (training or spared):
            found.add(path)
    modes_back = modes_now(model)
    model.train()
    found.update(path for path, norm in norms.items() if not norm.training)
    modes_back()
    return found


@contextmanager
def seeded_within(model: nn.Module) -> Iterator[None]:
    """Within it the random states are those of `seeded`; after it they go on as they stood.

    Those of Python, NumPy and the CPU, from which a loader draws between two passes of the model.
    """
    states, cpu = random_states(), torch.get_rng_state()
    try:
        seeded(model)
        yield
    finally:
        set_random_states(states)
        torch.set_rng_state(cpu)


def put_in(model: nn.Module, mode: str, frozen: set[str]) -> None:
    """`train`, as the model's own train() has it; `eval`; or `batch`, eval but for batch norms."""
    norms = batch_norms(model)
    if mode == "train":
        model.train()
        for path in frozen:
            norms[path].eval()
        return
    model.eval()
    if mode == "batch":
        for path, norm in norms.items():
            norm.training = path not in frozen


def takes_batch(norm: nn.Module) -> bool:
    """Whether it takes the statistics of the batch as it stands."""
    return norm.training or (
        getattr(norm, "running_mean", None) is None and getattr(norm, "running_var", None) is None
    )


def active_dropouts(model: nn.Module) -> list[nn.Module]:
    """Those with a chance above 0, in whatever mode."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


def seeded(model: nn.Module) -> None:
    """Start the random states of the CPU and of the model's devices anew, and of no other's."""
    torch.default_generator.manual_seed(SEED)
    for device in {p.device for p in model.parameters() if p.device.type == "cuda"}:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(SEED)
