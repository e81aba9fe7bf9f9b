"""Networks that nobody would draw: fold is right on each, or says what it leaves."""

from __future__ import annotations

import copy

import torch
from fold_cases import lived
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.surgery.in_eval import is_norm

CHANNELS = 6


def conv(**options):
    return nn.Conv2d(CHANNELS, CHANNELS, options.pop("kernel", 3), **options)


LAYERS = {
    "conv": lambda: conv(padding=1),
    "conv 1x1": lambda: conv(kernel=1, bias=False),
    "depthwise": lambda: conv(padding=1, groups=CHANNELS),
    "grouped": lambda: conv(padding="same", groups=2),
    "reflected": lambda: conv(padding=1, padding_mode="reflect", bias=False),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1, groups=3),
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "norm, not affine": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "norm, fused": lambda: sl.nn.BatchNormAct2d(CHANNELS, act="relu"),
    "norm, fused with nothing": lambda: sl.nn.BatchNormAct2d(CHANNELS, act="identity"),
    "norm, frozen": lambda: sl.nn.FrozenBatchNorm(CHANNELS),
    "act": lambda: nn.Hardswish(),
    "dropout": lambda: nn.Dropout(0.5),
    "shuffle": lambda: nn.ChannelShuffle(2),
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "pool over zeros": lambda: nn.AvgPool2d(3, 1, 1),
    "pad": lambda: nn.ReflectionPad2d((1, 0, 0, 1)),
}
FUNCTIONS = {
    "add": lambda a, b: a + F.interpolate(b, a.shape[2:]),
    "relu": lambda a, _: F.relu(a),
    "written": lambda a, _: a.clone().mul_(0.5),
    "halves": lambda a, b: torch.cat([a[:, :3], F.interpolate(b, a.shape[2:])[:, 3:]], 1),
    "turned": lambda a, _: a.transpose(2, 3),
    "flipped": lambda a, _: a.flip(1),
    "there and back": lambda a, _: a.flatten(2).unflatten(2, a.shape[2:]),
}


class Program(nn.Module):
    """Each step reads one or two values that were made before; all that nobody reads is given."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict({str(n): LAYERS[kind]() for kind, n, *_ in steps if n >= 0})

    def forward(self, x):
        values, read = [x], set()
        for kind, layer, a, b in self.steps:
            one, other = values[a % len(values)], values[b % len(values)]
            read |= {a % len(values)} | ({b % len(values)} if kind in ("add", "halves") else set())
            if layer < 0:
                values.append(FUNCTIONS[kind](one, other))
            else:
                values.append(self.layers[str(layer)](one))
        return [value for place, value in enumerate(values) if place not in read]


@st.composite
def programs(draw):
    steps: list[tuple[str, int, int, int]] = []
    made: list[tuple[str, int]] = []
    for _ in range(draw(st.integers(1, 9))):
        # Mostly the value before, so that layers stand beside one another.
        a = draw(st.sampled_from([-1, -1, -1, -2, 0, 1]))
        kind = draw(st.sampled_from([*LAYERS, "norm", "norm", "conv", *FUNCTIONS, "again"]))
        if kind == "again":
            if made:
                steps.append((*draw(st.sampled_from(made)), a, 0))
        elif kind in LAYERS:
            made.append((kind, len(made)))
            steps.append((*made[-1], a, 0))
        else:
            steps.append((kind, -1, a, draw(st.integers(-3, 3))))
    return steps


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=programs(), seed=st.integers(0, 5))
def test_it_is_never_wrong_in_silence(steps, seed):
    torch.manual_seed(seed)
    model = lived(Program(steps), seed)
    folded = sl.fold(model, torch.randn(2, CHANNELS, 8, 8))
    left = {path for entry in folded.spiritlevel_log for path in entry.paths}
    stays = {path for path, module in folded.named_modules() if is_norm(module)}
    assert stays <= left
    x = torch.randn(3, CHANNELS, 8, 9)
    exact = sl.fold(copy.deepcopy(model).double(), torch.randn(2, CHANNELS, 8, 8).double())
    for changed, within in ((exact, 1e-11), (folded.double(), 1e-5)):
        for y, wanted in zip(changed(x.double()), model.double()(x.double()), strict=True):
            assert (y - wanted).abs().max() <= within * wanted.abs().max()
