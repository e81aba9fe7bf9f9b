"""Numbers from a running model. Measuring never changes it: see `lent.guard`."""

from spiritlevel.probe.invariance import (
    effective_rate,
    gradient_cosine,
    scaling_errors,
    weight_scaling,
)
from spiritlevel.probe.landscape import LandscapeReading, along_gradient
from spiritlevel.probe.layers import norm_places, normalised_weights, weight_layers
from spiritlevel.probe.moments import Moments, input_moments, unit_percentiles
from spiritlevel.probe.noise import batch_noise
from spiritlevel.probe.shift import ShiftReading, covariate_shift
from spiritlevel.probe.signal import SignalReading, growth_per_layer, signal_by_depth

__all__ = [
    "LandscapeReading",
    "Moments",
    "ShiftReading",
    "SignalReading",
    "along_gradient",
    "batch_noise",
    "covariate_shift",
    "effective_rate",
    "gradient_cosine",
    "growth_per_layer",
    "input_moments",
    "norm_places",
    "normalised_weights",
    "scaling_errors",
    "signal_by_depth",
    "unit_percentiles",
    "weight_layers",
    "weight_scaling",
]
