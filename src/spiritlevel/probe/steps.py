"""When a training step begins and ends, whatever the loop: seen from optimizer and gradients.

torch tells of every optimizer's steps. Steps that never came, such as those that a GradScaler skips
after an overflow, show in gradients that are gone although nothing stepped. Where no optimizer of
torch's is at work, a step is a change of the parameters between two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from spiritlevel.errors import UsageError
from spiritlevel.probe.counting import MANY, Counts, in_backward, walk_now
from spiritlevel.probe.hooks import Hook

__all__ = ["Steps", "Watcher"]

_SENTINELS = 3
"""Parameters whose gradients and versions stand for all of them."""
_MOST_OVERFLOWS = 64
"""Kept on a device before they are read, which waits for it."""


class Watcher(Protocol):
    """Who is told of steps."""

    def before_step(self, optimizer: Any) -> None: ...

    def gradients_are_there(self) -> None:
        """Within a step: after its closure, if it has one."""

    def after_step(self) -> None: ...

    def another_pass(self) -> None:
        """A training pass of the model begins, and the step has had one before."""

    def step_was_skipped(self, *, late: bool) -> None:
        """`late`: the next step's pass has already been."""


class Steps:
    """Counts steps and passes, and tells `watcher` of them.

    Raises UsageError for an optimizer that has none of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        counts: Counts,
        *,
        watcher: Watcher,
    ) -> None:
        self.model, self.counts, self.watcher = model, counts, watcher
        self.optimizer = _innermost(optimizer)
        """The one given; else the last that stepped."""
        self._given = isinstance(self.optimizer, Optimizer)
        """Of another kind, its steps are not told: the parameters tell them."""
        self._sentinels: list[nn.Parameter] = []
        self._stepping: list[Any] = []
        """Optimizers within `step`, the outermost first."""
        self._closure = False
        self.stepped = False
        """Whether an optimizer of torch's was ever seen to step."""
        self._owned: WeakKeyDictionary[Any, tuple[int, bool]] = WeakKeyDictionary()
        self._walk_of_step: int | None = None
        self._backward_open = False
        """A backward pass since the last step."""
        self._walk: int | None = None
        self._in_step = self._since_backward = 0
        self._versions: tuple[Any, ...] = ()
        self._at_backward: tuple[Any, ...] = ()
        self._modes: set[bool] = set()
        self._was_training = False
        self._overflows: list[Tensor] = []
        if optimizer is not None and not self._shares(self.optimizer):
            raise UsageError(
                f"got a {type(self.optimizer).__name__} that has none of the model's parameters; "
                "wanted the optimizer that trains this model"
            )

    def attach(self, stack: ExitStack) -> None:
        """Until the stack closes."""
        stack.callback(register_optimizer_step_pre_hook(self._pre).remove)
        stack.callback(register_optimizer_step_post_hook(self._post).remove)
        learning = self._learning()
        spread = learning[:: max(1, len(learning) // _SENTINELS)][:_SENTINELS]
        # A backward pass reaches the last first, when all others are as they were; of a weight and
        # a bias either may be the first, under autocast the weight.
        self._sentinels = list(dict.fromkeys((*spread, *learning[-2:])))
        before, after = Hook(self._before_gradient), Hook(self._after_gradient)
        for parameter in self._sentinels:
            for handle in (
                parameter.register_hook(before),  # type: ignore[no-untyped-call]
                parameter.register_post_accumulate_grad_hook(after),  # type: ignore[no-untyped-call]
            ):
                stack.callback(handle.remove)
        self._versions = self._version()

    def forward_begins(self, *, training: bool, all_eval: bool) -> None:
        """A pass of the model itself; `training`: gradients are recorded."""
        if not training or in_backward():
            return
        if self._stepping and not self._closure:
            self._stepping.clear()  # it has raised: a step runs the model in its closure only
        self._look_for_skipped()
        versions = self._version()
        moved = versions != self._versions
        if moved and not self.stepped and not self._given:
            self._ended()
        elif moved and self._in_step:
            self.counts.perturbed += 1
        self._versions = versions
        if self._in_step:
            self.watcher.another_pass()
        self._in_step += 1
        self._since_backward += 1
        self._modes.add(all_eval)

    def _before_gradient(self, _gradient: Tensor) -> None:
        """A backward pass is about to add to a gradient."""
        if walk_now() != self._walk and self._since_backward:
            self._look_for_skipped(late=True)

    def _after_gradient(self, _parameter: Tensor) -> None:
        walk = walk_now()
        if walk == self._walk:
            return
        self._walk, self._at_backward = walk, self._version()
        self.counts.backwards += 1
        self.counts.per_backward[min(self._since_backward, MANY)] += 1
        self._since_backward = 0
        self._backward_open = True

    def _look_for_skipped(self, *, late: bool = False) -> None:
        """Gradients of a backward pass that are gone, and no parameter moved: a skipped step."""
        if not self._backward_open or self._stepping or self._version() != self._at_backward:
            return
        if _gone(self._sentinels) and _gone(self._learning()):
            self.counts.skipped += 1
            self._backward_open = False
            self._in_step = int(late)
            self.watcher.step_was_skipped(late=late)

    def _pre(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._owns(optimizer):
            self._backward_open = False  # what was walked back was that one's loss
            return None
        if any(each is optimizer for each in self._stepping):
            self._stepping.clear()  # it has raised in its step before
        self._stepping.append(optimizer)
        if len(self._stepping) > 1:
            return None
        self.stepped = True
        if not self._given:
            self.optimizer = optimizer
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor):  # a fused optimizer skips by itself
            self._overflows.append(found.detach().clone())
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._closure = callable(closure)
        if not self._closure and not self._is_new():
            return None
        self.watcher.before_step(optimizer)
        if not self._closure:
            self.watcher.gradients_are_there()
            return None

        run: Any = closure

        def told() -> Any:
            loss = run()
            self.watcher.gradients_are_there()
            return loss

        if len(args) > 1:
            return (args[0], told, *args[2:]), kwargs
        return args, {**kwargs, "closure": told}

    def _post(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if not self._stepping or self._stepping[-1] is not optimizer:
            return
        self._stepping.pop()
        if not self._stepping and (self._closure or self._is_new()):
            self._closure = False
            self._ended()

    def _is_new(self) -> bool:
        """Whether the model has run since the last step: several optimizers may make one step."""
        return self._in_step > 0 or self._last_walk() != self._walk_of_step

    def _last_walk(self) -> int | None:
        """The walk back that goes on, else the last one."""
        walk = walk_now()
        return self._walk if walk == -1 else walk

    def _ended(self) -> None:
        counts = self.counts
        if self._modes == {True}:
            counts.all_eval_steps += 1
            if self._was_training and counts.first_eval_step is None:
                counts.first_eval_step = counts.steps
        elif self._modes:
            self._was_training = True
        counts.per_step[min(self._in_step, MANY)] += 1
        counts.steps += 1
        self._in_step, self._backward_open, self._modes = 0, False, set()
        self._walk_of_step = self._last_walk()
        self._versions = self._version()
        if len(self._overflows) >= _MOST_OVERFLOWS:
            self.settle()
        self.watcher.after_step()

    def settle(self) -> None:
        """Read the overflows that a device has kept for us."""
        if self._overflows:
            self.counts.skipped += int(sum(float(each) > 0 for each in self._overflows))
            self._overflows.clear()

    def _owns(self, optimizer: Any) -> bool:
        """Whether it has parameters of the model, and of the optimizer that was given."""
        held = sum(len(group["params"]) for group in getattr(optimizer, "param_groups", ()))
        known = self._owned.get(optimizer)
        if known is None or known[0] != held:  # groups may be added
            ours = self._shares(optimizer)
            if self._given and ours:
                given = set(map(id, _parameters_of(self.optimizer)))
                ours = any(id(p) in given for p in _parameters_of(optimizer))
            self._owned[optimizer] = known = held, ours
        return known[1]

    def _shares(self, optimizer: Any) -> bool:
        ours = {id(p) for p in self.model.parameters()}
        return any(id(p) in ours for p in _parameters_of(optimizer))

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad and not is_lazy(p)]

    def _version(self) -> tuple[Any, ...]:
        """Changes when parameters do, also through `.data`, of which autograd is not told."""
        return tuple((p._version, p.data_ptr(), *_first(p)) for p in self._sentinels)


def _first(parameter: nn.Parameter) -> list[float]:
    """Two of its values; none on a device, which would have to be waited for."""
    if not parameter.is_cpu or parameter.is_complex():
        return []
    values: list[float] = parameter.detach().reshape(-1)[:2].tolist()
    return values


def _gone(parameters: list[nn.Parameter]) -> bool:
    gradients = [p.grad for p in parameters if p.requires_grad]
    return bool(gradients) and all(g is None or not g.any() for g in gradients)


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
