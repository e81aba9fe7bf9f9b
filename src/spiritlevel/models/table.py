"""The table of the models: what each holds and costs, beside what has been published of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spiritlevel.errors import UsageError, did_you_mean
from spiritlevel.models.counts import Counts, counted
from spiritlevel.models.published import CIFAR10, Published, published
from spiritlevel.models.registry import create_model, list_models, model_options
from spiritlevel.models.reparam import deploy_

__all__ = ["Row", "model_table"]


@dataclass(frozen=True)
class Row:
    """A model, with options that a paper gives it or none."""

    published: Published
    """A model of which nothing is published has its name and the size of its images there."""
    image_size: int
    num_classes: int
    norm: str
    counts: Counts | None
    refused: str = ""
    """Why there are no counts."""

    @property
    def name(self) -> str:
        return self.published.model

    @property
    def code(self) -> str:
        """What makes it, in Python."""
        arguments = [repr(self.name), f"num_classes={self.num_classes}"]
        if self.norm != "batch":
            arguments.append(f"norm={self.norm!r}")
        arguments += [f"{key}={value!r}" for key, value in self.published.options.items()]
        if "image_size" in model_options(self.name):
            arguments.append(f"image_size={self.image_size}")
        made = f"create_model({', '.join(arguments)})"
        return f"deploy({made})" if self.published.deployed else made

    def to_json(self) -> dict[str, Any]:
        counts, told = self.counts, self.published
        return {
            "name": self.name,
            "options": dict(told.options),
            "deployed": told.deployed,
            "code": self.code,
            "image_size": self.image_size,
            "num_classes": self.num_classes,
            "norm": self.norm,
            "refused": self.refused or None,
            "parameters": counts and counts.parameters,
            "multiply_adds": counts and counts.multiply_adds,
            "multiply_adds_with_norms": counts and counts.multiply_adds_with_norms,
            "norm_layers": counts and counts.norm_layers,
            "norm_parameters": counts and counts.norm_parameters,
            "norm_elements": counts and counts.norm_elements,
            "published": {
                "data": told.data.name if told.accuracies else None,
                "accuracies": [vars(accuracy) for accuracy in told.accuracies],
                "parameters_millions": told.parameters,
                "multiply_adds_millions": told.multiply_adds,
            },
        }


def model_table(
    pattern: str = "*",
    image_size: int | None = None,
    num_classes: int | None = None,
    norm: str = "batch",
    progress: Callable[[float, str], None] | None = None,
) -> list[Row]:
    """The models whose names match a shell pattern, each with the variants that papers have.

    Without `image_size` and `num_classes` each is counted as published: 1000 classes at 224 px, or
    10 at 32 px. A model that does not take the size or the norm has a row that says so; where none
    does, UsageError is raised, as it is for a pattern without a match. `progress` is told the share
    that is counted, and the name of what comes next.
    """
    names = list_models(pattern)
    if not names:
        hint = did_you_mean(pattern, list_models())
        raise UsageError(
            f"got pattern {pattern!r}, which matches no model; wanted one such as "
            f"'ghostnet*', of: {', '.join(list_models())}.{hint}"
        )
    wanted = [each for name in names for each in published(name) or [Published(name, CIFAR10)]]
    rows: list[Row] = []
    for told in wanted:
        if progress is not None:
            progress(len(rows) / len(wanted), told.model)
        rows.append(_row(told, image_size, num_classes, norm))
    if all(row.counts is None for row in rows):
        raise UsageError(rows[0].refused)
    return rows


def _row(told: Published, image_size: int | None, num_classes: int | None, norm: str) -> Row:
    size = told.data.image_size if image_size is None else image_size
    classes = told.data.num_classes if num_classes is None else num_classes
    options = dict(told.options)
    if "image_size" in model_options(told.model):
        options["image_size"] = size
    try:
        with torch.device("meta"):
            model = create_model(told.model, classes, norm, **options)
        counts = counted(deploy_(model) if told.deployed else model, size)
    except UsageError as error:
        return Row(told, size, classes, norm, None, str(error))
    return Row(told, size, classes, norm, counts)
