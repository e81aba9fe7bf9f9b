"""The state of one fusion: what is still to be done, and the two ways to change a model."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiritlevel.kernels.activations import Activation
from spiritlevel.surgery import eligible, of_timm
from spiritlevel.surgery.hidden import hidden_in
from spiritlevel.surgery.log import Entry, Journal
from spiritlevel.surgery.tracer import Slot, hooked, layer

__all__ = ["Work", "wraps"]


class Work:
    """`unlike` are batch norms to whose output a tensor of another shape is added."""

    def __init__(
        self, model: nn.Module, journal: Journal, unlike: Collection[nn.Module] = ()
    ) -> None:
        self.model, self.journal, self.unlike = model, journal, unlike
        self.paths = {module: path for path, module in model.named_modules()}
        self.places = eligible.places(model)
        why_left = eligible.why_left(model)
        self.left: dict[nn.Module, str] = {norm: why for norm, why in why_left.items() if why}
        self.open: set[nn.Module] = {norm for norm, why in why_left.items() if not why}
        """Batch norms to be dealt with."""
        self.found: dict[nn.Module, Entry] = {}
        """What was done, by the batch norm or the rewritten module."""
        self.untraced: dict[nn.Module, str] = {}
        """Modules whose own code is no graph, and why."""
        self.fixed: dict[nn.Module, str] = {}
        """Modules whose forward stays, and why."""
        self.hidden = {inner for module in model.modules() for inner in hidden_in(module)}
        """Modules that others keep beside their children."""
        self.seen: dict[nn.Module, str] = {}
        """Batch norms in modules that may be looked into from outside, and by what."""
        self.reasons: dict[nn.Module, str] = {}
        """Why a batch norm found nothing to be merged with."""

    def closed(self, module: nn.Module) -> bool:
        """Whether a graph shows it as one node."""
        return layer(module) or hooked(module) or wraps(module) or module in self.untraced

    def leave(self, norm: nn.Module, why: str) -> None:
        """Let a batch norm be as it is; one of timm's is ours by then, alone."""
        self.open.discard(norm)
        if norm in self.found:
            self.alone(norm, why)
        else:
            self.left[norm] = why

    def alone(self, norm: nn.Module, why: str) -> None:
        """It is ours, and merged with nothing."""
        self.found[norm] = Entry("replaced", (self.paths[norm],), f"alone: {why}")

    def swap(self, norm: nn.Module, act: Activation | None) -> None:
        """Change the class, and nothing that the layer holds but timm's activation."""
        before, held = type(norm), dict(norm._modules)

        def undo() -> None:
            norm.__class__ = before
            vars(norm).pop("act", None)
            norm._modules.update(held)
            if was_open:
                self.open.add(norm)

        was_open = norm in self.open
        self.journal.done(undo)
        plain = eligible.plain(before)
        assert plain is not None, "open ones have one"
        norm.__class__ = plain if act is None else eligible.FUSED[plain]
        if of_timm.is_timms(before):
            norm._modules.clear()
        if act is not None:
            norm.act = act  # type: ignore[assignment]
        self.open.discard(norm)

    def absorb(self, slot: Slot) -> None:
        """Let nothing stand where an activation stood."""
        act = slot.parent._modules[slot.name]
        if type(act) is nn.Identity:
            return
        gone = nn.Identity().train(slot.parent.training if act is None else act.training)
        self.journal.done(lambda: slot.parent._modules.__setitem__(slot.name, act))
        slot.parent._modules[slot.name] = gone

    def entries(self) -> list[Entry]:
        """The lines of the log, in the order of the modules."""
        order = {module: i for i, module in enumerate(self.paths)}
        done = sorted(self.found, key=lambda module: order[module])
        left: dict[nn.Module, str] = dict(self.left)
        left |= {module: why for module, why in self.untraced.items() if _holds_norm(module)}
        stay = sorted(left, key=lambda module: order[module])
        found = [self.found[module] for module in done]
        found += [Entry("left", (self.paths[module],), left[module]) for module in stay]
        return found or [Entry("left", (), "there is no batch norm that is not fused already")]


def wraps(module: nn.Module) -> bool:
    wrappers = ("torch.nn.parallel.", "torch.distributed.", "torch._dynamo.")
    return type(module).__module__.startswith(wrappers)


def _holds_norm(module: nn.Module) -> bool:
    return any(
        isinstance(inner, _BatchNorm) or "BatchNorm" in getattr(inner, "original_name", "")
        for inner in module.modules()
    )
