"""What a layer is given, read at its door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["channels_first", "heard"]


def channels_first(norm: nn.Module, x: Tensor) -> Tensor:
    """Others' layers may have the channels last, as their running statistics tell."""
    held = getattr(norm, "running_mean", None)
    if isinstance(held, Tensor) and x.shape[1] != held.numel() == x.shape[-1]:
        return x.movedim(-1, 1)
    return x


@contextmanager
def heard(
    modules: dict[str, nn.Module], hear: Callable[[str, nn.Module, Tensor], object]
) -> Iterator[None]:
    """Within it `hear(path, module, input)` is called before each pass of the modules."""

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = next((t for t in (*given, *named.values()) if isinstance(t, Tensor)), None)
            if x is not None and x.dim() > 1 and x.is_floating_point() and x.numel():
                hear(path, module, x.detach())

        return hook

    with ExitStack() as hooks:
        for path, module in modules.items():
            handle = module.register_forward_pre_hook(hook_of(path), with_kwargs=True)
            hooks.callback(handle.remove)
        yield
