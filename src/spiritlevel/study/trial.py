"""A network of the user's, tried out: its norms are those asked for, and images become logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spiritlevel.errors import UsageError
from spiritlevel.lent.guard import undisturbed
from spiritlevel.nn import BatchNorm2d, norm_layer
from spiritlevel.probe import norm_places
from spiritlevel.study import theirs

__all__ = ["Request", "Source", "passing", "try_out"]

_BATCH = 4  # images of a trial pass
_SIZE = 32  # px, where none is named
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DO = "Make it by spiritlevel.nn.norm_layer(norm)(num_features)"


@dataclass(frozen=True)
class Request:
    """What a network is asked to fit."""

    num_classes: int
    in_chans: int
    norm: str
    image_size: int | None

    def images(self) -> Tensor:
        """(4, in_chans, image_size, image_size), of noise."""
        size = self.image_size or _SIZE
        return torch.randn(_BATCH, self.in_chans, size, size)


@dataclass(frozen=True)
class Source:
    """Where a network comes from, for what is told of its faults."""

    where: str
    """Such as my.models:build (./my/models.py, line 12)."""
    file: str
    folder: str | None
    not_taken: tuple[str, ...]
    """Of num_classes, in_chans and image_size, those that the function has no parameter for."""

    def hint(self, *names: str) -> str:
        unread = [name for name in names if name in self.not_taken]
        return f" It does not take {' or '.join(unread)}: let it." if unread else ""


def try_out(make: Callable[[Request], nn.Module], asked: Request, source: Source) -> None:
    """Raises UsageError, naming what to change. Torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        model = make(asked)
        _check_kinds(model, asked.norm, source)
        if asked.norm != "batch":
            _check_places(make(replace(asked, norm="batch")), model, asked.norm, source)
        _check_logits(model, asked, source)


def _check_kinds(model: nn.Module, norm: str, source: Source) -> None:
    """No layer is left that the norm asked for would not have made."""
    modules = dict(model.named_modules())
    batch_norms = [name for name, module in modules.items() if isinstance(module, _BATCH_NORM)]
    expected = type(norm_layer(norm)(8))
    if expected is BatchNorm2d and not batch_norms:
        raise UsageError(
            f"got {source.where}: no layer normalises by batch though norm={norm!r} was asked; "
            f"wanted at least one. {_DO}"
        )
    if norm in ("none", "noisy-none"):
        left = norm_places(model)
    elif expected is BatchNorm2d:
        left = []
    elif expected is nn.GroupNorm:
        left = [*batch_norms, *(n for n, m in modules.items() if _other_groups(m, norm))]
    else:  # the user's own class of this norm is welcome, a batch norm that nobody asked for is not
        left = [name for name in batch_norms if not isinstance(modules[name], expected)]
    if left:
        more = f" (and {len(left) - 1} more like it)" if len(left) > 1 else ""
        raise UsageError(
            f"got {source.where}: {left[0] or 'the network'} is {_shown(modules[left[0]])} "
            f"though norm={norm!r} was asked{more}; wanted a norm that follows what is asked. {_DO}"
        )


def _shown(module: nn.Module) -> str:
    """With its groups, where it has some: another count of them may be all that is wrong."""
    groups = f" of {module.num_groups} groups" if isinstance(module, nn.GroupNorm) else ""
    return f"{theirs.a(module)}{groups}"


def _other_groups(module: nn.Module, norm: str) -> bool:
    """Whether it is torch's own group norm, in other groups than `norm` makes."""
    if type(module) is not nn.GroupNorm:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the groups do not divide is told where it trains
        made = norm_layer(norm)(module.num_channels)
    return bool(made.num_groups != module.num_groups)


def _check_places(usual: nn.Module, model: nn.Module, norm: str, source: Source) -> None:
    """Where the batch norms of `usual` are, `model` has a place for a norm, or for none."""
    modules = dict(model.named_modules())
    for name, module in usual.named_modules():
        if not isinstance(module, _BATCH_NORM):
            continue
        if name not in modules:
            raise UsageError(
                f"got {source.where}: {name} is {theirs.a(module)} with norm='batch', and with "
                f"norm={norm!r} there is no {name}; wanted the same layers by the same names. "
                f"{_DO}, which for none is an nn.Identity"
            )
        if isinstance(modules[name], nn.Identity) != (norm == "none"):
            wanted = "an nn.Identity" if norm == "none" else "a norm"
            raise UsageError(
                f"got {source.where}: {name} is {theirs.a(modules[name])} though norm={norm!r} "
                f"was asked; wanted {wanted} where norm='batch' has {theirs.a(module)}. {_DO}"
            )


def _check_logits(model: nn.Module, asked: Request, source: Source) -> None:
    for training in (True, False):
        mode = "training" if training else "eval"
        images = asked.images()
        trial = passing(images, asked, source, f"a trial pass ({mode})")
        with trial, undisturbed(model), torch.set_grad_enabled(training):
            logits = model.train(training)(images)
        got = tuple(logits.shape) if isinstance(logits, Tensor) else theirs.a(logits)
        if got != (_BATCH, asked.num_classes):
            raise UsageError(
                f"got {got} in {mode} from the network of {source.where} "
                f"for images {tuple(images.shape)}; "
                f"wanted logits {(_BATCH, asked.num_classes)}, images by classes."
                f"{source.hint('num_classes') or ' Change what its forward returns'}"
            )
        if training and not logits.requires_grad:
            raise UsageError(
                f"got logits that depend on no weight that learns from the network of "
                f"{source.where}; wanted one to train. Leave its weights requires_grad, and its "
                "forward without detach or no_grad"
            )


@contextmanager
def passing(images: Tensor, asked: Request, source: Source, what: str) -> Iterator[None]:
    """What the user's forward raises within it, told as the user's."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # What torch says of shapes that do not fit is a RuntimeError.
        hint = _of_shapes(str(error), asked, source) if isinstance(error, RuntimeError) else ""
        raise UsageError(
            f"got {theirs.told(error)} from the network of {source.where}"
            f"{theirs.where(error, source.folder, source.file)}, in {what} over images "
            f"{tuple(images.shape)} with norm={asked.norm!r}; "
            f"wanted logits {(_BATCH, asked.num_classes)}.{hint} Put that right and run again"
        ) from error


def _of_shapes(error: str, asked: Request, source: Source) -> str:
    if "channels" in error and "in_chans" not in source.not_taken:
        return f" Let its first layer have in_chans={asked.in_chans} of them."
    hint = source.hint("in_chans", "image_size")
    if "image_size" in source.not_taken:
        hint += " Images of the size that it is made for are asked for by --image-size."
    return hint
