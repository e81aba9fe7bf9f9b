"""What a graph shows of who feeds whom, and that nothing is claimed that it does not show."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.doctor.structure import Structure
from spiritlevel.models import create_model


class Block(nn.Module):
    """Every way in which a norm's output may go on, one norm each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.scaled, self.dropped, self.rectified, self.given = (
            nn.BatchNorm2d(8) for _ in range(5)
        )
        self.drop = nn.Dropout(0.1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x):
        y = self.conv(x)
        x = x + self.last(y)
        scaled = self.scaled(x)
        x += scaled * self.gate(scaled)
        x = torch.add(self.drop(self.dropped(x)).view(x.size(0), 8, x.shape[2], x.shape[3]), x)
        x = x + self.rectified(x).relu()
        return self.given(x) + 1


class Branching(nn.Module):
    """No graph: it looks at values."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        for part in self.parts:
            x = part(x)
        return x


class Tapping(Branching):
    """It reads what is between the modules of a Sequential."""

    def forward(self, x):
        taps = [x]
        for layer in self.parts[0]:
            taps.append(layer(taps[-1]))
        return taps[-1] if x.sum() > 0 else taps[1]


def test_what_ends_in_a_sum():
    block = Block()
    structure = Structure(block)
    found = {name: structure.ends_in_sum(norm) for name, norm in block.named_children()}
    assert found["last"] is True
    assert found["scaled"] is True
    assert found["dropped"] is True
    assert found["rectified"] is None
    assert found["given"] is False


def test_the_sum_may_be_outside_of_a_closed_part():
    class Adds(Branching):
        def forward(self, x):
            return x + self.parts[0](x)

    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.adds, self.norm = Adds(Branching(nn.BatchNorm1d(4))), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.adds(x))

    model = Wraps()
    structure = Structure(model)
    assert structure.ends_in_sum(model.adds.parts[0].parts[0]) is None
    assert structure.ends_in_sum(model.norm) is False


def test_a_fused_norm_is_given_what_it_adds():
    model = create_model("small_resnet")
    last = [block.norm2 for stage in model.stages for block in stage]
    assert {Structure(model).ends_in_sum(norm) for norm in last} == {True}
    sl.fuse(model)
    structure = Structure(model)
    assert {structure.ends_in_sum(norm) for norm in last} == {True}
    assert {chain[0].name for norm in last for chain in structure.before(norm)} == {"Conv2d"}


def test_what_came_before_is_told_until_several_join():
    block = Block()
    structure = Structure(block)
    assert [[step.path for step in chain] for chain in structure.before(block.last)] == [["conv"]]
    ((step, *rest),) = structure.before(block.rectified)
    assert (step.name, rest) == ("add", [])
    assert [step.path for step in structure.readers(block.conv)] == ["last"]


def test_sizes_are_no_readers():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x)
            return F.interpolate(self.norm(y), size=(y.shape[2] * 2, y.size(3) * 2))

    model = Sized()
    assert [step.path for step in Structure(model).readers(model.conv)] == ["norm"]


def test_a_sequential_in_code_that_is_no_graph_is_known():
    model = Branching(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    linear, norm, _ = model.parts[0]
    structure = Structure(model)
    assert [step.path for step in structure.readers(linear)] == ["parts.0.1"]
    assert structure.sure(linear)
    assert structure.ends_in_sum(norm) is False


def test_but_not_sure_where_that_code_may_read_between():
    model = Tapping(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    linear, *_ = model.parts[0]
    structure = Structure(model)
    assert [step.path for step in structure.readers(linear)] == ["parts.0.1"]
    assert not structure.sure(linear)


def test_what_no_graph_shows_is_absent():
    model = Branching(nn.Linear(3, 4), nn.BatchNorm1d(4))
    structure = Structure(model)
    linear, norm = model.parts
    assert structure.calls(norm) == 0
    assert structure.before(norm) == structure.readers(linear) == []
    assert structure.ends_in_sum(norm) is None
    assert not structure.sure(linear)


def test_a_layer_called_twice_has_two_calls():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 4), norm)
    structure = Structure(model)
    assert structure.calls(norm) == 2
    assert [chain[0].path for chain in structure.before(norm)] == ["0", "3"]


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would have us export
        return torch.jit.trace(small().eval(), torch.ones(2, 3))


@pytest.mark.parametrize(
    "build",
    [
        nn.Sequential,
        lambda: nn.BatchNorm1d(3),
        lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
        lambda: nn.ModuleList([nn.BatchNorm1d(3)]),
        lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        lambda: nn.LSTM(3, 4),
        scripted,
        lambda: nn.DataParallel(small()),
        pytest.param(lambda: torch.compile(small(), backend="eager"), marks=pytest.mark.slow),
        lambda: torch.fx.symbolic_trace(small()),
    ],
)
def test_no_model_is_too_odd(build):
    model = build()
    structure = Structure(model)
    for module in model.modules():
        structure.before(module)
        structure.readers(module)
        structure.ends_in_sum(module)
        structure.sure(module)


class Restless(nn.Module):
    """Its forward writes to all that a forward can write to."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.history = 0, []

    def forward(self, x):
        self.calls += 1
        self.history.append(random.random())
        self.steps += torch.rand(())
        return self.norm(x)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Restless(), nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[2].eval()
    model[2].register_forward_hook(lambda *_: None)
    before = (random.getstate(), torch.get_rng_state().tolist())
    Structure(model)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert (model[0].calls, model[0].history, model[0].steps.item()) == (0, [], 0.0)
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert type(model.training) is type(model[0].training) is bool
    assert len(model[2]._forward_hooks) == 1
    assert model[0].norm.num_batches_tracked.item() == 0


LAYERS = st.sampled_from(
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.BatchNorm1d(4),
        lambda: nn.LayerNorm(4),
        lambda: nn.ReLU(inplace=True),
        lambda: nn.Dropout(0.2),
        lambda: nn.Identity(),
        lambda: nn.Flatten(),
    ]
)


@settings(max_examples=30, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=6), st.booleans())
def test_a_chain_is_read_as_it_was_built(build, closed):
    """In a Sequential each layer is fed by the one before it, whatever is around it."""
    layers = [make() for make in build]
    model = nn.Sequential(*layers)
    structure = Structure(Branching(model) if closed else model)
    seen = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    if not any(isinstance(layer, nn.BatchNorm1d | nn.LayerNorm) for layer in layers):
        return
    for place, layer in enumerate(seen):
        (chain,) = structure.before(layer)
        assert [step.module for step in chain] == seen[:place][::-1]
        after = ["output"] if layer is seen[-1] else [structure._paths[seen[place + 1]]]
        assert [step.path or step.name for step in structure.readers(layer)] == after
