"""When a training step begins and ends, whatever the loop: seen from optimizer and gradients.

torch tells of every optimizer's steps. Steps that never came, such as those that a GradScaler skips
after an overflow, show in gradients that are gone although nothing stepped. Where no optimizer of
torch's is at work, a step is a change of the parameters between two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiritlevel.errors import UsageError
from spiritlevel.probe.counting import Counts, in_backward

__all__ = ["Steps"]

_SENTINELS = 3
"""Parameters whose gradients and versions stand for all of them."""


class Steps:
    """Counts steps and passes; calls `before(optimizer)` and `after()` around each step.

    Raises UsageError for an optimizer that has none of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        counts: Counts,
        *,
        before: Callable[[Any], None],
        after: Callable[[], None],
    ) -> None:
        self.model, self.counts = model, counts
        self.before, self.after = before, after
        self.optimizer = _innermost(optimizer)
        """The one given; else the last that stepped."""
        self._given = optimizer is not None
        learning = [p for p in model.parameters() if p.requires_grad and not is_lazy(p)]
        self._sentinels = learning[:: max(1, len(learning) // _SENTINELS)][:_SENTINELS]
        self._depth = 0
        self._stepped = False
        """Whether an optimizer of torch's was ever seen to step."""
        self._owned: dict[int, bool] = {}
        self._backward_open = False
        """A backward pass since the last step."""
        self._walk: int | None = None
        self._in_step = self._since_backward = 0
        self._versions: tuple[int, ...] = ()
        self._at_backward: tuple[int, ...] = ()
        self._modes: set[bool] = set()
        self._was_training = False
        self._overflows: list[Tensor] = []
        if self._given and not self._owns(self.optimizer):
            raise UsageError(
                f"got a {type(self.optimizer).__name__} that has none of the model's parameters; "
                "wanted the optimizer that trains this model"
            )

    def attach(self, stack: ExitStack) -> None:
        """Until the stack closes."""
        from torch.optim import optimizer as optim

        for register, hook in (
            (optim.register_optimizer_step_pre_hook, self._pre),
            (optim.register_optimizer_step_post_hook, self._post),
        ):
            stack.callback(register(hook).remove)
        for parameter in self._sentinels:
            for handle in (
                parameter.register_hook(self._before_gradient),  # type: ignore[no-untyped-call]
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._after_gradient
                ),
            ):
                stack.callback(handle.remove)
        self._versions = self._version()

    def forward_begins(self, *, training: bool, all_eval: bool) -> None:
        """A pass of the model itself; `training`: gradients are recorded."""
        if not training or in_backward():
            return
        self._look_for_skipped()
        versions = self._version()
        moved = versions != self._versions
        if moved and not self._stepped and not self._given:
            self._ended()
        elif moved and self._in_step:
            self.counts.perturbed += 1
        self._versions = versions
        self._in_step += 1
        self._since_backward += 1
        self._modes.add(all_eval)

    def _before_gradient(self, _gradient: Tensor) -> None:
        """A backward pass is about to add to a gradient."""
        if torch._C._current_graph_task_id() != self._walk:
            self._look_for_skipped()

    def _after_gradient(self, _parameter: Tensor) -> None:
        walk = torch._C._current_graph_task_id()
        if walk == self._walk:
            return
        self._walk, self._at_backward = walk, self._version()
        self.counts.backwards += 1
        self.counts.per_backward[min(self._since_backward, 64)] += 1
        self._since_backward = 0
        self._backward_open = True

    def _look_for_skipped(self) -> None:
        """Gradients of a backward pass that are gone, and no parameter moved: a skipped step."""
        if not self._backward_open or self._depth or self._version() != self._at_backward:
            return
        gradients = [p.grad for p in self._sentinels if p.requires_grad]
        if gradients and all(g is None or not g.any() for g in gradients):
            self.counts.skipped += 1
            self._backward_open = False
            self._in_step = 0

    def _pre(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if not self._owns(optimizer):
            return
        self._depth += 1
        if self._depth == 1:
            self._stepped = True
            if not self._given:
                self.optimizer = optimizer
            found = getattr(optimizer, "found_inf", None)
            if isinstance(found, Tensor):  # a fused optimizer skips by itself
                self._overflows.append(found.detach().clone())
            self.before(optimizer)

    def _post(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if not self._owns(optimizer) or not self._depth:
            return
        self._depth -= 1
        if self._depth == 0:
            self._ended()

    def _ended(self) -> None:
        counts = self.counts
        if self._modes == {True}:
            counts.all_eval_steps += 1
            if self._was_training and counts.first_eval_step is None:
                counts.first_eval_step = counts.steps
        elif self._modes:
            self._was_training = True
        counts.per_step[min(self._in_step, 64)] += 1
        counts.steps += 1
        self._in_step, self._backward_open, self._modes = 0, False, set()
        self._versions = self._version()
        if len(self._overflows) >= 64:
            self.settle()
        self.after()

    def settle(self) -> None:
        """Read the overflows that a device has kept for us."""
        if self._overflows:
            self.counts.skipped += int(sum(float(each) > 0 for each in self._overflows))
            self._overflows.clear()

    def _owns(self, optimizer: Any) -> bool:
        """Whether it has parameters of the model, and of the optimizer that was given."""
        key = id(optimizer)
        if key not in self._owned:
            ours = {id(p) for p in self.model.parameters()}
            if self._given:
                ours &= set(map(id, _parameters_of(self.optimizer)))
            self._owned[key] = any(id(p) in ours for p in _parameters_of(optimizer))
        return self._owned[key]

    def _version(self) -> tuple[int, ...]:
        return tuple(p._version for p in self._sentinels)


def _innermost(optimizer: Any) -> Any:
    """Other libraries wrap optimizers: `.optimizer` is what they wrap."""
    for _ in range(8):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def _parameters_of(optimizer: Any) -> Iterator[Tensor]:
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise UsageError(
            f"got {type(optimizer).__name__} for optimizer; wanted a torch.optim.Optimizer, or "
            "None: torch tells of the steps of every optimizer"
        )
    for group in groups:
        yield from group["params"]
