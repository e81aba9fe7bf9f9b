"""The arithmetic of batch normalization, step by step (Ioffe & Szegedy 2015, Algorithm 1).

    y = gamma * (x - mean) / sqrt(variance + eps) + beta          variance: biased, divided by n

Numbers that come as text are never rounded on the way: "0.1" is 1/10, the variance of 1 3 5 is 8/3
and its root stays √(8/3). Arrays are computed in float64, each channel by itself.
"""

from spiritlevel.explain.arrays import (
    AXES,
    MAX_STEPS,
    SETTLED,
    BatchExplanation,
    Channel,
    RunningStep,
    explain_array,
)
from spiritlevel.explain.given import MAX_NUMBERS, load_array, parse_number, parse_numbers
from spiritlevel.explain.numbers import (
    TORCH_EPS,
    Explanation,
    Normalized,
    RoundedEarly,
    explain_numbers,
)
from spiritlevel.explain.rational import (
    Exact,
    Root,
    decimal,
    exact,
    readable,
    root,
    rounded,
    to_json,
)

__all__ = [
    "AXES",
    "MAX_NUMBERS",
    "MAX_STEPS",
    "SETTLED",
    "TORCH_EPS",
    "BatchExplanation",
    "Channel",
    "Exact",
    "Explanation",
    "Normalized",
    "Root",
    "RoundedEarly",
    "RunningStep",
    "decimal",
    "exact",
    "explain_array",
    "explain_numbers",
    "load_array",
    "parse_number",
    "parse_numbers",
    "readable",
    "root",
    "rounded",
    "to_json",
]
