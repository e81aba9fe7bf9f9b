"""What a page is drawn from: plain dicts, lists, strings and numbers, as JSON would hold them.

Each `Text` is said through the catalogue; each `str` is shown as it stands, escaped. Numbers in
texts and tables come already formatted; numbers in panels are finite, and None where there is none.
"""

# Without `from __future__ import annotations`, under which Python 3.11 does not see NotRequired.
from typing import Literal, NotRequired, TypedDict

from spiritlevel.report.words import Text

__all__ = [
    "Arm",
    "Axis",
    "Colour",
    "Example",
    "Figure",
    "Guide",
    "Heatmap",
    "Lines",
    "Series",
    "Story",
]

Arm = Literal[
    "none",
    "batch",
    "group",
    "layer",
    "noisy-batch",
    "noisy-none",
    "ghost",
    "off",
    "theory",
    "other",
]
Numbers = list[float | None]


class Run(TypedDict):
    name: str
    preset: str
    date: str
    seconds: float
    cells: int
    failed: int
    version: str
    command: str
    rules_changed: bool
    missing: int
    planned: int


class Counts(TypedDict):
    train: int
    test: int


class Data(TypedDict):
    name: str
    origin: str
    licence: str
    notes: list[str]
    counts: Counts
    classes: list[str]
    size: int
    channels: int
    fingerprint: str


class Axis(TypedDict):
    label: Text
    log: bool
    range: NotRequired[list[float] | None]


class Series(TypedDict):
    """One line, or one set of dots; `label` None takes the arm's own."""

    arm: Arm
    label: Text | None
    x: list[float]
    y: Numbers
    low: NotRequired[Numbers]
    high: NotRequired[Numbers]
    style: Literal["line", "dash", "dots", "thin"]


class Guide(TypedDict):
    axis: Literal["x", "y"]
    at: float
    label: Text


class Lines(TypedDict):
    kind: Literal["lines"]
    title: Text
    x: Axis
    y: Axis
    series: list[Series]
    guides: list[Guide]


class Label(TypedDict):
    label: Text


class Colour(TypedDict):
    """`middle` asks for a scale with two ends, neutral at that value."""

    label: Text
    log: bool
    range: list[float] | None
    middle: float | None


class Heatmap(TypedDict):
    """`z[row][column]`; the first row is drawn at the top."""

    kind: Literal["heatmap"]
    title: Text
    x: Label
    y: Label
    columns: list[float]
    rows: list[str]
    z: list[Numbers]
    colour: Colour


class Figure(TypedDict):
    id: str
    title: Text
    caption: Text
    panels: list[Lines | Heatmap]


class Headline(TypedDict):
    quantity: Text
    value: str
    interval: str | None
    level: str
    n: int


class Part(TypedDict):
    quantity: Text
    value: str
    interval: str | None
    n: int
    holds: bool | None
    source: str


class Claim(TypedDict):
    id: str
    title: Text
    status: Literal["supported", "partly", "not supported", "inconclusive"]
    headline: Headline
    sentences: list[Text]
    literature: Text | None
    rule: Text
    parts: list[Part]
    figures: list[Figure]


class Table(TypedDict):
    head: list[Text]
    rows: list[list[str]]


class Example(TypedDict):
    id: Literal["arithmetic", "shift", "scale", "bell"]
    title: Text
    sentences: list[Text]
    table: Table | None
    figures: list[Figure]


class Story(TypedDict):
    run: Run
    data: Data
    environment: dict[str, str]
    claims: list[Claim]
    examples: list[Example]
