"""Which module of a model raised an error, read off its traceback."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["innermost", "told_of"]


def innermost(error: BaseException) -> tuple[nn.Module, list[Any]] | None:
    """The innermost module at work, and what it was given; None where none was called."""
    found = None
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        module = frame.f_locals.get("self")
        if frame.f_code.co_name == "_call_impl" and isinstance(module, nn.Module):
            given = frame.f_locals.get("args", ()), frame.f_locals.get("kwargs", {})
            found = module, [*given[0], *given[1].values()]
        step = step.tb_next
    return found


def told_of(model: nn.Module, error: Exception, batch: Any) -> str:
    """In words: which module of the model raised it, what that was given, and what to do."""
    module, given = innermost(error) or (None, batch)
    shapes = [tuple(t.shape) for t in tree_leaves(given) if isinstance(t, Tensor)]
    if module is None:
        where = f"the forward pass of {type(model).__name__}"
    else:
        path = next((path for path, each in model.named_modules() if each is module), None)
        name = "the model itself" if path == "" else f"{path!r}" if path else "a module outside it"
        where = f"{name} ({type(module).__name__})"
    fed = f"given {', '.join(map(str, shapes))}" if shapes else "given no tensor"
    text = " ".join((str(error).strip() or "no text").split())[:400]
    if "does not require grad" in text:
        text += ". The check runs without gradients: take torch.enable_grad() in forward="
    return (
        f"{where} raised {type(error).__name__}, {fed}: {text}. Batches are tensors, "
        "(input, ..., target) tuples or dicts of keywords; pass forward=lambda model, batch: ... "
        "for others"
    )
