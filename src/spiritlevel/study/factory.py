"""The user's own network: a function that builds one with any norm, found by name and tried out.

    def build(num_classes, in_chans, norm):
        return MyNet(num_classes, in_chans, spiritlevel.nn.norm_layer(norm))

Whatever goes wrong in the user's code is told as theirs, with the line of theirs where it did.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spiritlevel.catalogue import say, spoken
from spiritlevel.errors import UsageError
from spiritlevel.nn import norm_layer
from spiritlevel.study import theirs
from spiritlevel.study.imports import own_files
from spiritlevel.study.named import named
from spiritlevel.study.records import read_json
from spiritlevel.study.trial import Request, Source, passing, try_out

__all__ = ["Factory", "as_factory", "load_factory", "told_in"]


@dataclass(frozen=True, eq=False)
class Factory:
    """A function that builds the user's network, and where it stands."""

    spec: str
    """module:name, as the records call it."""
    function: Callable[..., Any]
    file: str
    line: int
    folder: str | None = None
    """From where another process imports it by `spec`; None: it travels as code."""
    _tried: set[Request] = field(default_factory=set, repr=False)

    def build(
        self, *, num_classes: int, in_chans: int, norm: str, image_size: int | None = None
    ) -> nn.Module:
        """A network: images (N, in_chans, image_size, image_size) -> logits (N, num_classes).

        The function is given what its signature asks for. Before the first network of each kind a
        twin is tried out, which leaves torch's random state as it was. Raises UsageError for a
        network that a study cannot use, and for whatever the user's code raises.
        """
        asked = Request(num_classes, in_chans, norm, image_size)
        if asked not in self._tried:
            try_out(self._call, asked, self._source)
            self._tried.add(asked)
        return self._call(asked)

    def told(self) -> str:
        """A sentence that names the code of the user's that is about to run."""
        place = theirs.place(self.file, self.line, spoken())
        return say("terminal.own_code", name=self.name, place=place, spec=self.spec)

    def files(self) -> list[Path]:
        """Its file, and those in its folder that it imports, directly or not."""
        module, folder = self.spec.partition(":")[0], self.folder
        beside = [] if folder is None else own_files(module, Path(folder))
        return sorted({Path(self.file), *beside})

    def digest(self) -> str | None:
        """sha256 of those files; None where it is in none."""
        try:
            digest = hashlib.sha256()
            for file in self.files():
                digest.update(file.read_bytes())
            return digest.hexdigest()
        except OSError:  # a cell of a notebook
            return None

    @property
    def name(self) -> str:
        return self.spec.partition(":")[2]

    @property
    def _source(self) -> Source:
        taken = _signature(self).parameters
        not_taken = tuple(name for name, words in _SAME.items() if not set(words) & set(taken))
        where = f"{self.spec} ({theirs.place(self.file, self.line)})"
        return Source(where, self.file, self.folder, not_taken)

    def _call(self, asked: Request) -> nn.Module:
        arguments = _arguments(self, asked)
        try:
            model = self.function(**arguments)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"got {theirs.told(error)} from {self._source.where}"
                f"{theirs.where(error, self.folder, self.file)}, "
                f"called as {self.name}({_shown(arguments)}); "
                "wanted a network. Put that right and run again"
            ) from error
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"got {theirs.a(model)} from {self._source.where}; "
                "wanted a network, a torch.nn.Module. Let it return one"
            )
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
            self._settle(model, asked)
        return model

    def _settle(self, model: nn.Module, asked: Request) -> None:
        """Let lazy layers draw their weights here, whichever pass would have been their first."""
        images = torch.zeros_like(asked.images())
        with passing(images, asked, self._source, "the first pass"), torch.no_grad():
            model.eval()(images)
        model.train()

    def __reduce__(self) -> Any:
        # What was tried here need not be tried again elsewhere.
        if self.folder is not None:
            return load_factory, (self.spec, self.folder), self._tried
        return Factory, (self.spec, self.function, self.file, self.line), self._tried

    def __setstate__(self, tried: set[Request]) -> None:
        self._tried.update(tried)


# ---- finding -------------------------------------------------------------------------------------


def load_factory(spec: str, folder: str | os.PathLike[str] | None = None) -> Factory:
    """The factory named "pkg.module:factory", from the modules that `python -m` would find there.

    `folder` (default: the current one) goes before all else that Python imports from, and stays
    there. A dot after the colon reaches into a class. Raises UsageError.
    """
    found, root = named(spec, folder)
    if not callable(found):
        raise UsageError(
            f"got model {spec}, which is {theirs.a(found)}; wanted a function there that builds a "
            "network"
        )
    factory = as_factory(found)
    travels = None if spec.startswith("__main__:") else root
    return Factory(spec, factory.function, factory.file, factory.line, travels)


def told_in(run: Path) -> list[str]:
    """For a run's folder: which code of the user's it runs, where that can still be found."""
    told = []
    for network in read_json(run / "config.json")["plan"]["networks"]:
        if ":" in network:
            with suppress(UsageError):  # a function in hand may have no name to find it by
                told.append(load_factory(network).told())
    return told


def as_factory(model: str | Callable[..., Any] | Factory) -> Factory:
    """From "pkg.module:factory", or from the function or class itself. Raises UsageError."""
    if isinstance(model, Factory):
        return model
    if isinstance(model, str):
        return load_factory(model)
    if isinstance(model, nn.Module):
        raise UsageError(
            f"got model={type(model).__name__}(...), a network that is built already; wanted a "
            "function that builds a new one for each norm and seed: "
            f"{theirs.LIKE}"
        )
    if not callable(model):
        raise UsageError(
            f"got model={model!r}; wanted a function that builds a network, "
            "or its name as pkg.module:factory"
        )
    name = theirs.name(model)
    inner = model.func if isinstance(model, partial) else model
    module = getattr(inner, "__module__", None) or "__main__"
    file, line = theirs.source(inner)
    return Factory(f"{module}:{name}", model, file, line, theirs.folder(module, name, model))


# ---- calling -------------------------------------------------------------------------------------

_SAME = {
    "num_classes": ("num_classes", "classes"),
    "in_chans": ("in_chans", "in_channels"),
    "image_size": ("image_size", "img_size"),
}


def _signature(factory: Factory) -> inspect.Signature:
    try:
        return inspect.signature(factory.function)
    except (TypeError, ValueError):
        raise UsageError(
            f"got {factory.spec}, whose signature cannot be read; "
            f"wanted a function such as {theirs.LIKE}"
        ) from None


def _arguments(factory: Factory, asked: Request) -> dict[str, Any]:
    """What the function's signature asks for. Raises UsageError where it takes no norm."""
    signature = _signature(factory)
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given: dict[str, Any] = {}
    for ours, names in _SAME.items():
        value = getattr(asked, ours)
        given |= {name: value for name in names if name in named and value is not None}
    if "norm" in named or (open_ended and "norm_layer" not in named):
        given["norm"] = asked.norm
    if "norm_layer" in named:
        given["norm_layer"] = norm_layer(asked.norm)
    if open_ended and not given.keys() & set(_SAME["num_classes"]):
        given["num_classes"] = asked.num_classes
    _check_signature(factory, signature, given)
    return given


def _check_signature(
    factory: Factory, signature: inspect.Signature, given: Mapping[str, Any]
) -> None:
    where, shown = factory._source.where, f"{factory.name}{signature}"
    if not given.keys() & {"norm", "norm_layer"}:
        raise UsageError(
            f"got {where}, whose signature {shown} takes no norm; wanted a network that can be "
            "built with any norm and with none. Give it one:\n"
            "    from spiritlevel.nn import norm_layer\n"
            "    def build(num_classes, in_chans, norm):\n"
            "        ... norm_layer(norm)(64) ...  # where nn.BatchNorm2d(64) stood"
        )
    lacking = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in given
    ]
    if lacking:
        raise UsageError(
            f"got {where}, whose signature {shown} wants {', '.join(lacking)}; a study gives, "
            "by name: num_classes, in_chans, image_size, norm or norm_layer. "
            f"Give {', '.join(lacking)} a default"
        )


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={'...' if name == 'norm_layer' else repr(value)}"
        for name, value in arguments.items()
    )
