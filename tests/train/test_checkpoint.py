import errno
import os
import re

import pytest
import torch

from spiritlevel.errors import RecordsError, UsageError
from spiritlevel.train.checkpoint import Checkpoints


def state(number):
    return {"format": 1, "number": number, "weights": torch.full((3,), float(number))}


def saved(tmp_path, *steps):
    kept = Checkpoints(tmp_path)
    return kept, [kept.save(state(step), step=step) for step in steps]


def newest(kept, refuse=()):
    taken, told = [], []

    def use(found):
        if found["number"] in refuse:
            raise UsageError("got the checkpoint of another run")
        taken.append(found)

    path = kept.newest(use, told.append)
    renamed = [line for line in told if line.endswith(".refused")]
    assert len(renamed) == (len(told) / 2 if path else 0)
    return path, taken, [line for line in told if line not in renamed]


def test_the_newest_two_are_kept(tmp_path):
    kept, paths = saved(tmp_path, 5, 9, 12)
    assert sorted(kept.folder.iterdir()) == paths[1:]
    path, taken, told = newest(kept)
    assert (path, told) == (paths[2], [])
    assert torch.equal(taken[0]["weights"], torch.full((3,), 12.0))


def test_of_one_step_the_later_counts(tmp_path):
    kept, _ = saved(tmp_path, 5)
    later = kept.save({**state(5), "validated": True}, step=5)
    os.utime(later, ns=(2**62, 2**62))
    assert newest(kept)[0] == later


def test_none_is_none(tmp_path):
    assert newest(Checkpoints(tmp_path)) == (None, [], [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ],
    ids=["a byte short", "half", "empty", "a bit"],
)
def test_a_torn_one_is_told_by_name_and_the_one_before_it_taken(tmp_path, spoil):
    kept, paths = saved(tmp_path, 5, 9)
    paths[1].write_bytes(spoil(paths[1].read_bytes()))
    path, taken, told = newest(kept)
    assert (path, taken[0]["number"]) == (paths[0], 5)
    assert len(told) == 1
    assert told[0].startswith(f"{paths[1]}: got ")
    assert "torn or altered" in told[0]


def test_a_foreign_one_is_told_and_the_one_before_it_taken(tmp_path):
    kept, paths = saved(tmp_path, 5, 9)
    path, _, told = newest(kept, refuse={9})
    assert path == paths[0]
    assert told == [f"{paths[1]}: got the checkpoint of another run"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/spiritlevel-was-run",)


@pytest.mark.parametrize("content", [Hostile(), {"format": 2}, [1], {"format": 1, "x": Hostile()}])
def test_what_is_no_checkpoint_never_runs(tmp_path, content):
    kept, paths = saved(tmp_path, 5)
    kept.save(content, step=9)
    path, _, told = newest(kept)
    assert path == paths[0]
    assert len(told) == 1
    assert not os.path.exists("/tmp/spiritlevel-was-run")


def test_where_none_is_left_all_are_named(tmp_path):
    kept, paths = saved(tmp_path, 5, 9)
    for path in paths:
        path.write_bytes(b"torn")
    names = f"{paths[1].name}, {paths[0].name}"
    with pytest.raises(RecordsError, match=f"got {re.escape(str(kept.folder))} with {names}"):
        newest(kept)


def test_drafts_of_killed_processes_are_swept(tmp_path):
    kept, paths = saved(tmp_path, 5)
    draft = kept.folder / ".00000009-0123456789abcdef.pt.aabbccdd.tmp"
    draft.write_bytes(b"half")
    newest(kept)
    assert list(kept.folder.iterdir()) == paths


def test_a_full_disk_leaves_those_before(tmp_path, monkeypatch):
    kept, paths = saved(tmp_path, 5, 9)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordsError, match=r"no room for a checkpoint of .* MB \(No space left"):
        kept.save(state(12), step=12)
    assert sorted(kept.folder.iterdir()) == paths
    assert newest(kept)[0] == paths[1]
