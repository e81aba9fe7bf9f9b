import json
import math

import numpy as np
import pandas as pd
import pytest

from spiritlevel.errors import UsageError
from spiritlevel.probe import table
from spiritlevel.probe.table import Layer, Readings

LAYERS = [Layer("stem.1", "norm", "BatchNorm2d"), Layer("<b>", "activation", "ReLU")]


def readings(steps=2):
    found = Readings(LAYERS, ("z", "gamma"))
    for step in range(steps):
        found.add(10 * step, np.array([[step, 0.5], [math.nan, math.inf]], dtype=float))
    return found


def test_a_row_for_each_step_and_layer():
    found = readings()
    assert len(found) == 4
    assert found.columns == ("step", "layer", "kind", "type", "z", "gamma")
    rows = list(found)
    assert rows[2] == {
        "step": 10,
        "layer": "stem.1",
        "kind": "norm",
        "type": "BatchNorm2d",
        "z": 1.0,
        "gamma": 0.5,
    }
    assert found.of("stem.1", "z") == [0.0, 1.0]
    assert found.matrix("gamma") == [[0.5, 0.5], [math.inf, math.inf]]
    for unknown in (("stem", "z"), ("stem.1", "y")):
        with pytest.raises(KeyError):
            found.of(*unknown)


def test_memory_is_bounded_and_what_stays_is_evenly_spaced(monkeypatch):
    monkeypatch.setattr(table, "MOST_STEPS", 8)
    found = Readings(LAYERS, ("z",))
    assert found.decimated == ""
    step = 0
    while step < 1000:  # as the probe samples
        found.add(step, np.full((2, 1), float(step)))
        assert len(found.steps) < 8
        step += found.stride * 5
        step -= step % (found.stride * 5)
    gaps = set(np.diff(found.steps))
    assert gaps == {found.stride * 5}
    assert found.steps[0] == 0
    assert found.of("stem.1", "z") == [float(s) for s in found.steps]
    assert (
        found.decimated == f"of the steps to sample, one in {found.stride} is kept, evenly spaced"
    )


def test_pandas_parquet_and_json(tmp_path):
    found = readings()
    frame = found.to_pandas()
    assert list(frame.columns) == list(found.columns)
    assert frame["z"].tolist()[::2] == [0.0, 1.0]
    found.to_parquet(tmp_path / "r.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "r.parquet"), frame)
    text = found.to_json(tmp_path / "r.json")
    assert json.loads(text) == json.loads((tmp_path / "r.json").read_text())
    assert json.loads(text)[1] == {
        "step": 0,
        "layer": "<b>",
        "kind": "activation",
        "type": "ReLU",
        "z": None,
        "gamma": None,
    }
    with pytest.raises(UsageError, match="got Is a directory while writing"):
        found.to_parquet(tmp_path)


def test_nothing_read_yet():
    found = Readings(LAYERS, ("z",))
    assert (len(found), list(found), found.matrix("z"), found.to_json()) == (0, [], [[], []], "[]")
    assert found.to_pandas().shape == (0, 5)
