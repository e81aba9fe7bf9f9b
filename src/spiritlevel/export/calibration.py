"""Calibration data for int8: inputs from whose values ranges are taken."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spiritlevel.errors import UsageError
from spiritlevel.export.example import Example

__all__ = ["Inputs", "are_classes", "refuse_calibration"]

Inputs = Sequence[Tensor]
"""Of one call of the model, by position."""


def refuse_calibration(
    calibration: Sequence[Inputs], targets: Sequence[Tensor | None], given: Example
) -> None:
    """Raises UsageError for calibration data that would make no ranges, or wrong ones."""
    for what, entries in (("calibration data", calibration), ("targets", targets)):
        if not isinstance(entries, Sequence):
            raise UsageError(
                f"got a {type(entries).__name__} as {what}, which is gone through more than once; "
                "wanted a list, with an entry for each batch"
            )
    if not any(each.numel() for inputs in calibration for each in inputs[:1]):
        raise UsageError(
            "got no calibration data for int8, which takes the ranges of its values from it; "
            "wanted a few hundred samples like those it is to run on"
        )
    if len(targets) > len(calibration):
        raise UsageError(
            f"got targets for {len(targets)} batches of {len(calibration)}; wanted those of each "
            "batch, or None for it"
        )
    for number, inputs in enumerate(calibration):
        _refuse_batch(number, inputs, given)


def _refuse_batch(number: int, inputs: Inputs, given: Example) -> None:
    if len(inputs) != len(given.tensors):
        raise UsageError(
            f"got {len(inputs)} inputs in batch {number} of the calibration data; wanted "
            f"{len(given.tensors)}: {', '.join(given.names)}"
        )
    for name, each, like, batched in zip(
        given.names, inputs, given.tensors, given.batched, strict=True
    ):
        skip = int(batched)
        if each.shape[skip:] != like.shape[skip:] or each.dtype != like.dtype:
            raise UsageError(
                f"got {name} of shape {tuple(each.shape)}, {each.dtype}, in batch {number} of "
                f"the calibration data; wanted that of the example, {tuple(like.shape)}, "
                f"{like.dtype}" + (", with any batch" if batched else "")
            )
        if not bool(each.isfinite().all()):
            raise UsageError(
                f"got {name} with NaN or infinite values in batch {number} of the calibration "
                "data, of which no range can be taken; wanted finite numbers. Leave such "
                "samples out"
            )


def are_classes(target: Tensor, samples: int) -> bool:
    """Whether a batch's targets are the class of each of its samples, by which int8 is judged."""
    return target.shape == (samples,) and not target.is_floating_point()
