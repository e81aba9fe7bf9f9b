"""What a probe can read, and how each of it is coloured. The words are the catalogue's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spiritlevel.report.words import Text

__all__ = ["METRICS", "Look", "groups", "look_of", "words_of"]

Kind = Literal["log", "linear", "from 0", "around 0", "around 1"]


@dataclass(frozen=True)
class Look:
    """`kind`: a logarithmic scale; a linear one; one that begins at 0, for shares and counts,
    whose rare high values must show; or one with two ends that is neutral at 0 or at 1."""

    group: str
    kind: Kind

    @property
    def log(self) -> bool:
        return self.kind == "log"

    @property
    def middle(self) -> float | None:
        return {"around 0": 0.0, "around 1": 1.0}.get(self.kind)


# In the order in which the page offers them.
METRICS: dict[str, Look] = {
    "z_max": Look("statistics", "log"),
    "z_median": Look("statistics", "log"),
    "log_var_ratio_worst": Look("statistics", "around 0"),
    "log_var_ratio_median": Look("statistics", "around 0"),
    "pass_shift": Look("statistics", "log"),
    "batches_tracked": Look("statistics", "linear"),
    "input_mean": Look("input", "around 0"),
    "input_std": Look("input", "log"),
    "input_p05": Look("input", "around 0"),
    "input_p50": Look("input", "around 0"),
    "input_p95": Look("input", "around 0"),
    "values": Look("input", "log"),
    "output_mean": Look("output", "around 0"),
    "output_std": Look("output", "log"),
    "output_p05": Look("output", "around 0"),
    "output_p50": Look("output", "around 0"),
    "output_p95": Look("output", "around 0"),
    "gamma_min": Look("affine", "around 1"),
    "gamma_mean": Look("affine", "around 1"),
    "gamma_max": Look("affine", "around 1"),
    "beta_min": Look("affine", "around 0"),
    "beta_mean": Look("affine", "around 0"),
    "beta_max": Look("affine", "around 0"),
    "grad_norm": Look("learning", "log"),
    "update_ratio": Look("learning", "log"),
    "dead_share": Look("health", "from 0"),
    "saturated_share": Look("health", "from 0"),
    "non_finite": Look("health", "from 0"),
}
_UNKNOWN = Look("other", "linear")


def look_of(name: str) -> Look:
    """A metric that is not known here is drawn on a linear scale."""
    return METRICS.get(name, _UNKNOWN)


def groups() -> list[str]:
    """Their groups, in the order in which the page offers them."""
    return [*dict.fromkeys(look.group for look in METRICS.values()), _UNKNOWN.group]


def words_of(name: str) -> dict[str, Text]:
    """The metric's title, what its colours are, and how to read its map."""
    if name in METRICS:
        start = f"probe_page.metrics.{name}."
        return {word: start + word for word in ("title", "colour", "read")}
    own: Text = ["page.plain", {"text": name}]
    return {"title": own, "colour": own, "read": "probe_page.unknown_read"}
