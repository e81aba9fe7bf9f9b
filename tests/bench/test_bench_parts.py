"""The floor counts passes, the profiler bytes, and a wrong output is refused."""

from __future__ import annotations

import pytest
import torch

from spiritlevel.bench.agree import TOLERANCE, Mismatch, agree
from spiritlevel.bench.child import in_a_child
from spiritlevel.bench.floor import last_level_cache, passes
from spiritlevel.bench.memory import peak_bytes
from spiritlevel.bench.norms import MODES
from spiritlevel.bench.peers import Case, layouts, peers
from spiritlevel.errors import SpiritlevelError

MEBI = 2**20


@pytest.mark.parametrize(
    ("act", "add", "wanted"),
    [
        ("relu", False, (3, 8, 2)),
        ("relu", True, (4, 11, 3)),
        ("identity", True, (4, 9, 3)),
        ("identity", False, (3, 8, 2)),
    ],
)
def test_passes_that_must_move(act, add, wanted):
    assert tuple(passes(mode, act, add) for mode in MODES) == wanted


def test_the_cache_of_the_highest_level(tmp_path):
    for index, level, size in (("0", "1", "32K"), ("2", "2", "512K"), ("3", "3", "32M")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 32 * MEBI
    assert last_level_cache(tmp_path / "nothing") is None


def test_peak_memory_is_the_highest_level_not_the_sum():
    def run():
        a = torch.empty(3 * MEBI, dtype=torch.uint8)
        del a
        b = torch.empty(MEBI, dtype=torch.uint8)
        c = torch.empty(MEBI, dtype=torch.uint8)
        del b
        return c

    assert peak_bytes(run) == 3 * MEBI


def test_peak_memory_counts_what_is_returned():
    assert peak_bytes(lambda: [torch.empty(MEBI, dtype=torch.uint8) for _ in range(5)]) == 5 * MEBI


def test_the_profiler_leaves_stderr_alone(capfd):
    peak_bytes(lambda: torch.empty(8))
    assert capfd.readouterr().err == ""


CASE = Case((4, 6, 5, 7), "relu", add=True)


def test_all_compute_the_same():
    there = peers(CASE, compiled=False)
    assert [p.name for p in there] == [
        *("eager", "ours"),
        *("eager channels-last", "ours channels-last"),
    ]
    wanted = there[0].outputs()
    assert len(wanted) == 1 + 4 + 2 + 1
    for peer in there[1:]:
        assert agree(peer.name, peer.outputs(), wanted, where="here") <= TOLERANCE


def test_the_gradient_is_0_at_kinks_and_nowhere_else():
    eager, *_ = peers(Case((16, 8, 20, 20), "identity"), compiled=False)
    z = eager.forward().detach()
    near = torch.stack([(z - kink).abs() < 1e-3 for kink in (0, 6, -3, 3)]).any(0)
    assert near.sum() > 9
    assert torch.equal(eager.grad == 0, near)


def test_tensors_are_in_the_layout_of_the_name():
    for peer in peers(CASE, compiled=False):
        last = "channels-last" in peer.name
        assert all(t.is_leaf and t.requires_grad for t in peer.inputs)
        for t in (*peer.inputs, peer.grad, peer.forward()):
            assert t.is_contiguous(memory_format=torch.channels_last) == last
    assert layouts((4, 6)) == layouts((4, 6, 5)) == [""]
    assert len(layouts((4, 6, 5, 7, 2))) == 2


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda bn: setattr(bn, "eps", 1e-2), "the output"),
        (lambda bn: setattr(bn, "momentum", 0.2), "the running mean"),
        (lambda bn: bn.bias.data.add_(1e-2), "the output"),
    ],
)
def test_a_subject_with_another_output_is_refused(spoil, what):
    eager, ours, *_ = peers(CASE, compiled=False)
    spoil(ours.bn)
    with pytest.raises(Mismatch, match=f"got {what} from ours at 4x6x5x7, bn \\+ add \\+ relu"):
        agree("ours", ours.outputs(), eager.outputs(), where=str(CASE))


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, torch.nan]), torch.zeros(3)])
def test_nan_and_another_shape_are_refused(wrong):
    with pytest.raises(Mismatch):
        agree("ours", {"y": wrong}, {"y": torch.ones(2)}, where="here")


def test_a_child_gets_arguments_and_variables():
    given = {"path": "SPIRITLEVEL_TEST_CHILD"}
    variables = {"SPIRITLEVEL_TEST_CHILD": "yes"}
    assert in_a_child("os.path", "expandvars", {"path": "$" + given["path"]}, variables) == "yes"
    with pytest.raises(SpiritlevelError, match=r"os\.path\.basename, and: TypeError"):
        in_a_child("os.path", "basename", {})
