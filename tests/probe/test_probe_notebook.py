"""What a notebook shows of a real probe: before, while and after it reads."""

from __future__ import annotations

import math

import pytest
import torch
from notebook_reader import Reader
from torch import nn

import spiritlevel as sl
from spiritlevel.report.numbers import number, percent


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten()
    )


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 3, 6, 6)).square().mean().backward()
    optimizer.step()


@pytest.fixture
def read():
    """A probe that has read steps 0, 2 and 4 of 5, and what was shown in the middle of it."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sl.Probe(model, every=2) as probe:
        for _ in range(5):
            step(model, optimizer)
        middle = probe._repr_html_()
    return probe, middle


def test_the_numbers_are_those_of_its_last_reading(read):
    probe, _ = read
    last = {row["layer"]: row for row in probe.readings if row["step"] == 4}
    rows = {row[0].partition("\n")[0]: row[1:] for row in Reader(probe._repr_html_()).rows()[1:]}
    assert set(rows) == {"1", "3"}, "norms alone"
    norm = last["1"]
    assert rows["1"] == [
        number(norm["z_median"], 3),
        number(norm["z_max"], 3),
        f"{number(math.exp(norm['log_var_ratio_median']), 3)}×",
        number(norm["values"], 3),
        number(norm["grad_norm"], 3),
        number(norm["update_ratio"], 3),
        percent(norm["dead_share"]),
    ]
    assert norm["values"] == 8 * 4 * 4
    assert rows["3"][:3] == ["–", "–", "–"], "it has no running statistics"


def test_what_it_says_of_itself(read):
    probe, _ = read
    text = Reader(probe._repr_html_()).text
    assert "Sequential, 2 normalization layers: 5 steps, 3 of them read (every 2)" in text
    assert f"It has cost {percent(probe.overhead.share)} of the time" in text
    assert "step 4" in text


def test_it_shows_itself_while_it_is_open(read):
    _, middle = read
    assert "5 steps, 3 of them read" in Reader(middle).text
    assert "It reads still, and has cost" in Reader(middle).text


def test_it_shows_itself_before_any_step():
    model = net()
    probe = sl.Probe(model)
    assert "No step has been read yet." in Reader(probe._repr_html_()).text
    with probe:
        assert "0 steps, 0 of them read" in Reader(probe._repr_html_()).text
        assert probe.is_open
    assert not probe.is_open


def test_showing_it_changes_no_reading():
    def run(*, show):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(1)
        with sl.Probe(model, every=2) as probe:
            for _ in range(4):
                step(model, optimizer)
                if show:
                    probe._repr_html_()
        return probe.readings.to_json()

    assert run(show=True) == run(show=False)


def test_of_a_layer_that_ended_early_the_last_step_that_read_it_is_shown():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.use_b = nn.BatchNorm1d(3), nn.BatchNorm1d(3), True

        def forward(self, x):
            return self.b(self.a(x)) if self.use_b else self.a(x)

    model = Early()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sl.Probe(model, every=1) as probe:
        for model.use_b in (True, True, False):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
    rows = {row[0].partition("\n")[0]: row[0] for row in Reader(probe._repr_html_()).rows()[1:]}
    assert rows["a"].endswith("step 2")
    assert rows["b"].endswith("step 1")


def test_a_layer_with_values_that_are_not_finite_comes_first():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].register_forward_pre_hook(lambda _, inputs: (inputs[0] * math.inf,))
    with sl.Probe(model, every=1) as probe:
        optimizer.zero_grad()
        model(torch.randn(8, 3)).sum().backward()
        optimizer.step()
    first = Reader(probe._repr_html_()).rows()[1][0]
    assert first.startswith("1\n")
    assert "channels with NaN or infinity: 3" in first


def test_what_it_could_not_see_is_shown():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with sl.Probe(model, every=1) as probe:
        model(torch.randn(8, 3)).sum().backward()
        with torch.no_grad():  # no optimizer of torch's
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model(torch.randn(8, 3))
    assert probe.unseen
    text = Reader(probe._repr_html_()).text
    assert all(remark in text for remark in probe.unseen)
