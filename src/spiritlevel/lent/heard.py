"""What layers are given and give, read at their doors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

__all__ = ["channels_first", "heard", "heard_calls", "heard_outputs", "input_of", "removing"]

HearCall = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], object]


def channels_first(norm: nn.Module, x: Tensor) -> Tensor:
    """Others' layers may have the channels last, as their running statistics tell."""
    held = getattr(norm, "running_mean", None)
    if isinstance(held, Tensor) and x.shape[1] != held.numel() == x.shape[-1]:
        return x.movedim(-1, 1)
    return x


@contextmanager
def heard(
    modules: Mapping[str, nn.Module], hear: Callable[[str, nn.Module, Tensor], object]
) -> Iterator[None]:
    """Within it `hear(path, module, input)` is called before each pass of the modules."""

    def hear_call(
        path: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        x = input_of(given, named)
        if x is not None:
            hear(path, module, x)

    with heard_calls(modules, hear_call):
        yield


@contextmanager
def heard_calls(modules: Mapping[str, nn.Module], hear: HearCall) -> Iterator[None]:
    """Within it `hear(path, module, arguments, keywords)` is called before each forward of the
    modules, hooks or none: a model may call `module.forward(x)`."""

    def of(path: str, module: nn.Module) -> Any:
        inner = module.forward

        def forward(*given: Any, **named: Any) -> Any:
            hear(path, module, given, named)
            return inner(*given, **named)

        return forward

    with ExitStack() as back:
        for path, module in modules.items():
            had = vars(module).get("forward")
            module.forward = of(path, module)
            back.callback(_put_back, module, had)
        yield


@contextmanager
def heard_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Gives copies of the tensors that the modules give within it, in the order they are done."""
    found: dict[str, list[Tensor]] = {}

    def of(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            found.setdefault(name, []).extend(tensors)

        return hook

    with removing([module.register_forward_hook(of(name)) for name, module in modules.items()]):
        yield found


@contextmanager
def removing(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within it the hooks of these handles are called, after it no more."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _put_back(module: nn.Module, had: Any) -> None:
    if had is None:
        vars(module).pop("forward", None)
    else:
        module.forward = had


def input_of(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor, `input` and `x` before other keywords; None where it has no channels."""
    by_name = sorted(named.items(), key=lambda item: item[0] not in ("input", "x"))
    values = (*given, *(value for _, value in by_name))
    x = next((t for t in values if isinstance(t, Tensor)), None)
    fits = x is not None and x.dim() > 1 and x.is_floating_point() and x.numel()
    return x.detach() if x is not None and fits else None
