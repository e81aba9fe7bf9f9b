"""Rules on how many values a batch norm takes its statistics over."""

from __future__ import annotations

from collections.abc import Iterator

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import and_others
from spiritlevel.doctor.finding import Finding, Severity
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.probe.evidence import Layer

__all__: list[str] = []

FEW_VALUES = 16
"""Values a channel: below, a batch's deviation is off by 18 % and more from batch to batch."""


@rule(
    "SL303",
    "too-few-values",
    "error",
    needs=("data",),
    threads=(
        "MCG-NKU/SCNet#8",
        "VinAIResearch/ISBNet#12",
        "fastai/fastai#1352",
        "https://discuss.pytorch.org/t/26274",
    ),
)
def too_few_values(rule: Rule, case: Case) -> Iterator[Finding]:
    """Statistics are taken over too few values a channel: batch x positions is small.

    With one value training raises. With two each output is 1 or -1, whatever the input was: its
    scale is lost. Below 16 the statistics of a batch are mostly noise.

    Counted is, in training mode, the smallest statistic of each batch: one call, one ghost group.
    Told is the middle batch, so a short last one does not count (SL304). Info where the model is in
    eval(): then nothing shows that training draws such batches. Silent on frozen layers and on
    batch renormalization, which is made for small batches.
    """
    refused = [path for path, layer in case.data.layers.items() if layer.single]
    last = {len(case.data.sizes) - 1} if len(case.data.sizes) > 1 else set()
    middle_ones = [index + 1 for index in case.data.dropped if index not in last]
    if refused and middle_ones:
        yield rule.found(
            refused[0],
            f"1 value a channel in {len(middle_ones)} of {len(case.data.sizes)} batches (at least "
            f"{FEW_VALUES}): training raises{_unless_used(case)}",
            fix=_LARGER,
            severity=_in_training(case, "error"),
            values=1,
            threshold=FEW_VALUES,
            batches=len(middle_ones),
        )
        return
    few = []
    for path, layer in case.data.layers.items():
        if layer.train is None or layer.frozen or "Renorm" in layer.kind:
            continue
        values = sorted(layer.train.values)[len(layer.train.values) // 2]
        if values < FEW_VALUES:
            few.append((values, path))
    if few:
        values = min(few)[0]
        paths = [path for count, path in few if count == values]
        what = "each output is 1 or -1 before scale and shift" if values == 2 else "they are noisy"
        yield rule.found(
            paths[0],
            f"statistics of {values} values a channel (at least {FEW_VALUES}): {what}"
            f"{and_others([paths[0], *(path for _, path in few if path != paths[0])])}"
            f"{_unless_used(case)}",
            fix=_LARGER,
            severity=_in_training(case, "error" if values == 2 else "warning"),
            values=values,
            threshold=FEW_VALUES,
            layers=len(few),
        )


_LARGER = "larger batches; or a norm without batch statistics there, as GroupNorm; or freeze it"


@rule(
    "SL304",
    "last-batch-of-one",
    "error",
    needs=("data",),
    threads=("fastai/fastai#1352", "https://discuss.pytorch.org/t/26274"),
)
def last_batch_of_one(rule: Rule, case: Case) -> Iterator[Finding]:
    """The last batch of an epoch holds one sample, and a layer takes one value a sample.

    Training then raises "Expected more than 1 value per channel", after a whole epoch.

    The DataLoader tells the size of the last batch, or the batches themselves do where all were
    read. Where the layer has positions enough in one image, the batch is small but valid, and
    nothing is said; a warning where a single image gives fewer than 16 values, and info where the
    model is in eval(), which takes batches of any size.
    """
    last = _last(case)
    sizes = case.data.sizes
    if last is None or sizes[0] <= last:
        return
    for path, layer in case.data.layers.items():
        if layer.frozen:
            continue
        values = 1 if _raised_at_last(case, layer) else _values(case, path, layer, last)
        if values is None or values >= FEW_VALUES or (last > 1 and values > 1):
            continue
        raises = values == 1
        yield rule.found(
            path,
            f"the last batch holds {last} of {sizes[0]} samples, {values} "
            f"value{'s' * (values > 1)} a channel here: "
            + ("training raises" if raises else f"too few for statistics (from {FEW_VALUES})")
            + _unless_used(case),
            fix="DataLoader(..., drop_last=True)",
            severity=_in_training(case, "error" if raises else "warning"),
            last=last,
            values=values,
            threshold=2 if raises else FEW_VALUES,
        )
        return


def _in_training(case: Case, severity: Severity) -> Severity:
    """Of a model in eval() nothing shows that it is trained on batches as these."""
    return severity if case.model.training else "info"


def _unless_used(case: Case) -> str:
    return "" if case.model.training else ", if training draws such batches; eval() takes any"


def _last(case: Case) -> int | None:
    if case.loader is not None:
        found: int | None = case.loader.last
        return found
    data = case.data
    return data.sizes[-1] if data.exhausted and len(data.sizes) > 1 else None


def _raised_at_last(case: Case, layer: Layer) -> bool:
    return layer.single and case.data.dropped[-1:] == (len(case.data.sizes) - 1,)


def _values(case: Case, path: str, layer: Layer, samples: int) -> int | None:
    """In the smallest statistic of a batch of so many; None where rows are no samples."""
    reading = layer.train
    if reading is None or reading.spread is None:
        return None
    group = getattr(case.batch_norms.get(path), "group_size", None)

    def smallest(size: int) -> int:
        return size % group or group if isinstance(group, int) and size > group else size

    positions = reading.values[0] // max(1, smallest(reading.spread.sizes[0]))
    return smallest(samples) * positions
