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
    "Claim",
    "Colour",
    "Control",
    "Example",
    "Figure",
    "Guide",
    "Headline",
    "Heatmap",
    "Lines",
    "Live",
    "Network",
    "Panel",
    "Panels",
    "Part",
    "Record",
    "Series",
    "Status",
    "Story",
    "Table",
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
    """With `own`, the range is that of its frame, where other axes have one for all frames."""

    label: Text
    log: bool
    range: NotRequired[list[float] | None]
    own: NotRequired[bool]


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
    """`z[row][column]`; the first row is drawn at the top. `tall`: it is all there is to look at,
    and may take most of a screen."""

    kind: Literal["heatmap"]
    title: Text
    x: Label
    y: Label
    columns: list[float]
    rows: list[str]
    z: list[Numbers]
    colour: Colour
    tall: NotRequired[bool]


Panel = Lines | Heatmap
Panels = list[Lines | Heatmap]


class Control(TypedDict):
    """What the reader sets: a slider over ordered values, or a choice among a few names."""

    label: Text
    values: list[str]
    start: int
    kind: Literal["slider", "choice"]


class Figure(TypedDict):
    """`frames`: the panels for every combination of the controls' values, the last control's
    running fastest; None where that combination was not run. `panels` are the frame at the start.
    `summary` says in a line what the figure shows; `records` are indices into the story's."""

    id: str
    title: Text
    caption: Text
    panels: Panels
    summary: NotRequired[Text]
    controls: NotRequired[list[Control]]
    frames: NotRequired[list[list[Lines | Heatmap] | None]]
    records: NotRequired[list[int]]


class Headline(TypedDict):
    quantity: Text
    value: str
    interval: str | None
    level: str
    n: int
    records: NotRequired[list[int]]


class Part(TypedDict):
    """`holds`: what the rule makes of it, None where it cannot tell; left out where none asks."""

    quantity: Text
    value: str
    interval: str | None
    n: int
    holds: NotRequired[bool | None]
    source: str
    records: NotRequired[list[int]]


Status = Literal["supported", "partly", "not supported", "inconclusive"]


class Network(TypedDict):
    """The verdict on a claim for one of several networks."""

    name: Text
    status: Status
    headline: Headline


class Claim(TypedDict):
    id: str
    title: Text
    status: Status
    headline: Headline
    networks: NotRequired[list[Network]]
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


class Record(TypedDict):
    """A line of `records.jsonl`, by its key."""

    key: str
    seconds: float
    failed: bool


class Live(TypedDict):
    """A run that goes on: `seconds` from one page to the next, `share` done, time `left`.

    `written`: when, in ISO 8601 with its zone.
    """

    written: str
    seconds: int
    done: int
    cells: int
    share: float
    left: str | None


class Story(TypedDict):
    run: Run
    data: Data
    environment: dict[str, str]
    claims: list[Claim]
    examples: list[Example]
    records: NotRequired[list[Record]]
    live: NotRequired[Live | None]
