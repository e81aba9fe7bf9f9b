"""A real measurement of small layers holds together: what it saves is what it says."""

from __future__ import annotations

import json
import math
from statistics import median

import pytest
import torch

from spiritlevel.bench import Mismatch, allocator, first_step, norms
from spiritlevel.bench.norms import MODES, parse_shape
from spiritlevel.errors import UsageError
from spiritlevel.nn.batch import BatchNormAct2d

SHAPES = ["4x8x6x6", "64x8"]


@pytest.fixture(scope="module")
def found():
    told = []
    threads = torch.get_num_threads()
    result = norms(
        shapes=SHAPES, rounds=4, threads=1, compiled=False, progress=lambda *a: told.append(a)
    )
    assert torch.get_num_threads() == threads
    return result, told


def test_it_is_json_and_tells_where_it_was_measured(found):
    result = json.loads(json.dumps(found[0]))
    assert result["settings"]["rounds"] == 4
    assert result["settings"]["threads"] == 1
    assert isinstance(result["settings"]["allocator_tuned"], bool)
    environment = result["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["system"]["capability"]
    assert environment["copy_gb_per_second"]["4x8x6x6"] > 0
    assert result["notes"] == []


def test_every_shape_layer_and_mode_is_there(found):
    rows = found[0]["cases"]
    assert [(row["shape"], row["add"]) for row in rows] == [
        (shape, add) for add in (False, True) for shape in SHAPES
    ]
    for row in rows:
        assert list(row["modes"]) == list(MODES)
        names = {"eager", "ours", "copy"}
        if row["shape"] == "4x8x6x6":
            names |= {"eager channels-last", "ours channels-last"}
        for mode in row["modes"].values():
            assert mode["seconds"].keys() == names
            assert all(one["n"] == 4 for one in mode["seconds"].values())
        assert row["kernels_of_ours"] == ["aten"], "too small for ours, and it says so"
        assert row["peak_tensors"]["ours"] >= 2


def test_ratios_follow_from_the_medians(found):
    for row in found[0]["cases"]:
        for mode in row["modes"].values():
            seconds = {name: one["median"] for name, one in mode["seconds"].items()}
            assert mode["floor"]["seconds"] == pytest.approx(
                seconds["copy"] * mode["floor"]["passes"] / 2
            )
            ratios = {name: one["value"] for name, one in mode["ratios"].items()}
            assert ratios["eager"] == pytest.approx(seconds["eager"] / seconds["ours"])
            best = min(s for name, s in seconds.items() if name.startswith("ours"))
            assert ratios["floor"] == pytest.approx(best / mode["floor"]["seconds"])
            assert ("eager channels-last" in ratios) == (row["shape"] == "4x8x6x6")
            assert "compile" not in ratios


def test_figures_are_geometric_means_over_shapes(found):
    result = found[0]
    assert len(result["figures"]) == 2 * len(MODES)
    for figure in result["figures"]:
        rows = [row for row in result["cases"] if row["add"] == figure["add"]]
        for name, mean in figure["ratios"].items():
            ratios = [row["modes"][figure["mode"]]["ratios"] for row in rows]
            values = [one[name]["value"] for one in ratios if name in one]
            logs = [math.log(value) for value in values]
            assert mean["n"] == len(values)
            assert mean["value"] == pytest.approx(math.exp(math.fsum(logs) / len(logs)))


def test_progress_goes_from_nothing_to_all(found):
    shares = [share for share, _ in found[1]]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


def test_a_wrong_layer_is_never_timed(monkeypatch):
    """By a thousandth: a biased variance of a small batch is further off."""
    right = BatchNormAct2d.forward

    def wrong(self, input, residual=None):
        return right(self, input, residual) * 1.001

    monkeypatch.setattr(BatchNormAct2d, "forward", wrong)
    with pytest.raises(Mismatch, match="from ours at 4x8x6x6, bn"):
        norms(shapes=["4x8x6x6"], rounds=3, compiled=False)


@pytest.mark.parametrize(
    "shape",
    ["", "32", "32x", "0x3x4x4", "axb", "32x64x-1", "1x2x3x4x5x6", "32,64", "1x64", "1x64x1x1"],
)
def test_a_shape_that_cannot_be(shape):
    with pytest.raises(UsageError, match="got shape"):
        parse_shape(shape)


def test_a_shape_beyond_memory():
    with pytest.raises(UsageError, match="GiB of memory"):
        parse_shape("999999x999999")


def test_shapes_are_read():
    assert parse_shape("8x32x16x56x56") == (8, 32, 16, 56, 56)
    assert parse_shape("4096X256") == (4096, 256)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"act": "tanh"}, "got activation 'tanh'"),
        ({"rounds": 2}, "got 2 rounds"),
        ({"threads": 0}, "got 0 threads"),
        ({"threads": 4096}, "got 4096 threads"),
        ({"device": "mps"}, "got device 'mps'; wanted cpu, cuda or cuda:N"),
        ({"device": "nowhere"}, "got device 'nowhere'; wanted cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"got device 'cuda:99', but torch sees \d+ GPU\(s\) here"),
        ({"dtype": "float16"}, "got dtype 'float16'; wanted float32, bfloat16 or, on a GPU"),
        ({"dtype": "int8"}, "got dtype 'int8'; wanted float32"),
        ({"shapes": []}, "got no shape"),
    ],
)
def test_what_cannot_be_measured(given, told):
    with pytest.raises(UsageError, match=told):
        norms(**{"shapes": ["4x8x6x6"], "compiled": False, **given})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # as torch imports its own compiler
def test_torch_compile_takes_part():
    result = norms(shapes=["4x8x6x6"], adds=[True], act="hardswish", rounds=3, threads=1)
    if result["notes"]:
        pytest.skip(result["notes"][0])
    (row,) = result["cases"]
    assert {"compile", "compile channels-last"} <= row["largest_difference"].keys()
    assert all("compile" in mode["ratios"] for mode in row["modes"].values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch):
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        result = norms(shapes=["4x8x6x6", "4x4x6x6"], adds=[False], rounds=3, threads=1)
    (note,) = result["notes"]
    assert "torch.compile is left out" in note
    assert all("compile" not in row["peak_tensors"] for row in result["cases"])


@pytest.mark.slow
def test_first_steps_cold_and_warm():
    pytest.importorskip("numba", reason="kernels need the extra cpu")
    result = first_step(model="small_resnet", batch=4, size=32, times=2, threads=1)
    for rows in result["seconds"].values():
        assert rows["torch"]["kernels_on_disk"] == 0
        assert rows["cold"]["kernels_on_disk"] == rows["warm"]["kernels_on_disk"] > 0
        assert [len(rows[name]["added_each"]) for name in ("torch", "cold", "warm")] == [2, 1, 2]
        for row in rows.values():
            assert row["added"] == pytest.approx(median(row["added_each"]))
        cold = rows["cold"]
        assert cold["added"] == pytest.approx(cold["first"] - cold["later"])


@pytest.mark.slow
def test_the_allocator_in_processes_of_its_own():
    result = allocator(shape="4x8x6x6", rounds=3, threads=1)
    assert json.loads(json.dumps(result))["settings"]["shape"] == "4x8x6x6"
    for name, one in result["ratios"].items():
        seconds = result["seconds"][name]
        ratio = seconds["default"]["median"] / seconds["tuned"]["median"]
        assert one["value"] == pytest.approx(ratio)
