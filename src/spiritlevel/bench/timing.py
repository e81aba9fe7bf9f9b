"""How long subjects take beside each other: interleaved, and compared only within one run.

In each round every subject runs once, in a shuffled order, so that whatever the machine does
meanwhile meets all of them alike. Garbage collection is off. What a run returns is dropped after
the clock has stopped.

A ratio is of two medians. Its interval is a bootstrap over the rounds, which are drawn in pairs: a
slow moment that met both subjects does not widen it.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter, sleep
from typing import Any

import numpy as np

__all__ = [
    "LEVEL",
    "Ratio",
    "Samples",
    "Subject",
    "Summary",
    "best",
    "interleaved",
    "pooled",
    "ratio",
    "seconds",
    "summaries",
    "summary",
]

LEVEL = 0.95
_DRAWS = 2000
_WARM_UP = 3

Samples = Sequence[float]


@dataclass(frozen=True)
class Subject:
    """What is timed, and under which name."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of `n` samples, in seconds."""

    median: float
    q1: float
    q3: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, or the geometric mean of `n` such ratios, and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def interleaved(
    subjects: Sequence[Subject],
    rounds: int,
    tick: Callable[[float], None] | None = None,
    *,
    pause: float = 0.0,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, list[float]]:
    """Name -> seconds of each round. `tick` is told after each round which share is done.

    `pause` is waited before each run: other runtimes' threads spin for a while when they are done.
    `clock` is a device's; the processor's where it is None.
    """
    for _ in range(_WARM_UP):
        for subject in subjects:
            subject.run()
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    assert len(samples) == len(subjects), "each subject has a name of its own"
    order, shuffle = list(subjects), random.Random(0).shuffle
    with _no_collection():
        for done in range(1, rounds + 1):
            shuffle(order)
            for subject in order:
                sleep(pause)
                samples[subject.name].append((clock or seconds)(subject.run))
            if tick is not None:
                tick(done / rounds)
    return samples


def seconds(run: Callable[[], object]) -> float:
    """By the processor's clock. What `run` returns is dropped after it has stopped."""
    start = perf_counter()
    result = run()
    taken = perf_counter() - start
    del result
    return taken


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def summary(samples: Samples) -> Summary:
    """Of at least one sample."""
    q1, median, q3 = np.quantile(samples, (0.25, 0.5, 0.75))
    return Summary(float(median), float(q1), float(q3), len(samples))


def summaries(samples: Mapping[str, Samples]) -> dict[str, dict[str, Any]]:
    """Of each, by name, for JSON."""
    return {name: asdict(summary(one)) for name, one in samples.items()}


def best(samples: Mapping[str, Samples], names: Sequence[str]) -> Samples:
    """Of the subject whose median is the lowest."""
    return min((samples[name] for name in names), key=lambda one: float(np.median(one)))


def ratio(over: Samples, under: Samples) -> Ratio:
    """median(over) / median(under), of samples taken in the same rounds."""
    return pooled([(over, under)])


def pooled(pairs: Sequence[tuple[Samples, Samples]]) -> Ratio:
    """The geometric mean over pairs of median(over) / median(under), each from rounds of its own.

    The interval says how well these pairs were measured, not how others would come out.
    """
    rng = np.random.default_rng(0)
    value, draws = 0.0, np.zeros(_DRAWS)
    for over, under in pairs:
        a, b = np.asarray(over), np.asarray(under)
        drawn = rng.integers(len(a), size=(_DRAWS, len(a)))
        value += float(np.log(np.median(a) / np.median(b)))
        draws += np.log(np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1))
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    value, low, high = (float(np.exp(one / len(pairs))) for one in (value, low, high))
    return Ratio(value, low, high, len(pairs))
