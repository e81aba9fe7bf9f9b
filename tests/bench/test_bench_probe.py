"""What a probe costs, measured beside a logger of histograms."""

from __future__ import annotations

import importlib
import json

import pytest

from spiritlevel.bench import Mismatch, probe
from spiritlevel.cli import main
from spiritlevel.errors import UsageError

SMALL = ["bench", "probe", "--size", "32", "--batch", "2", "--rounds", "3", "--threads", "1"]


@pytest.mark.slow  # seven dozen steps of a GhostNet
def test_the_command_prints_costs_and_saves_all_of_it(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main([*SMALL, "--every", "10", "--out", str(out)]) == 0
    told, _ = capsys.readouterr()
    found = json.loads(out.read_text())
    (row,) = found["cases"]
    assert (row["size"], row["batch"], row["norms"]) == (32, 2, 80)
    medians = {name: one["median"] for name, one in row["seconds"].items()}
    assert list(medians) == [
        "alone",
        "probe, cheap",
        "probe, dear",
        "histograms, cheap",
        "histograms, dear",
    ]
    for name, cost in row["cost"].items():
        average = (9 * medians[f"{name}, cheap"] + medians[f"{name}, dear"]) / 10
        assert cost["value"] == pytest.approx(average / medians["alone"])
        assert cost["low"] <= cost["value"] <= cost["high"]
        assert f"{100 * (cost['value'] - 1):.1f} %" in told
        inside = row["inside"][name]
        average = (9 * inside["cheap"] + inside["dear"]) / 10
        assert inside["share"] == pytest.approx(average / medians["alone"])
        assert 0 < inside["cheap"] < inside["dear"] < medians[f"{name}, dear"]
        assert f"{100 * inside['share']:.2f} %" in told
    for text in ("2×3×32×32", "one step in 10", "add_histogram"):
        assert text in told
    assert "{" not in told


def test_what_changes_a_number_is_never_timed(monkeypatch):
    module = importlib.import_module("spiritlevel.bench.probe")  # its function has its name

    class Meddles(module.Probe):
        def __enter__(self):
            for parameter in self.model.parameters():
                parameter.data.mul_(1.001)
            return super().__enter__()

    monkeypatch.setattr(module, "Probe", Meddles)
    with pytest.raises(Mismatch, match="from probe, cheap at 32x32"):
        probe(sizes=(32,), batch=2, rounds=3, threads=1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sizes": (16,)}, r"got sizes \(16,\)"),
        ({"sizes": ()}, r"got sizes \(\)"),
        ({"batch": 1}, "batch=1"),
        ({"every": 1}, "every=1"),
        ({"rounds": 0}, "got 0 rounds"),
    ],
)
def test_what_cannot_be_measured(given, told):
    with pytest.raises(UsageError, match=told):
        probe(**{"sizes": (32,), "batch": 2, "rounds": 3, **given})
