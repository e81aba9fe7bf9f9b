"""The time left, on a clock that the test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from spiritlevel.study import pace
from spiritlevel.study.records import Record
from spiritlevel.study.run import Progress


@pytest.fixture
def at(monkeypatch):
    """Sets the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = seconds

    return at


def progress(share: float, record: Record | None = None) -> Progress:
    return Progress(Path("run"), 0, 9, share, record)


RECORD = Record("key", "task", {}, {})


def test_the_rest_takes_as_long_as_what_is_done(at):
    run = pace.Pace()
    at(100)
    assert run.left(progress(0.0)) is None
    at(130)
    assert run.left(progress(0.25, RECORD)) == pytest.approx(90)


def test_what_was_on_disk_before_says_nothing_of_the_pace(at):
    run = pace.Pace()
    assert run.left(progress(0.5)) is None
    at(10)
    assert run.left(progress(0.6, RECORD)) == pytest.approx(40)


def test_from_a_sliver_of_work_nothing_can_be_told(at):
    run = pace.Pace()
    run.left(progress(0.0))
    at(10)
    assert run.left(progress(0.01, RECORD)) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "–:––"),
        (0, "0:00"),
        (59.6, "1:00"),
        (271, "4:31"),
        (3600, "1:00:00"),
        (3871, "1:04:31"),
    ],
)
def test_as_on_a_clock(seconds, told):
    assert pace.clock(seconds) == told
