"""How files come to their place: whole, the last one last, and nothing that is no file replaced."""

from __future__ import annotations

import errno
import os

import pytest

from spiritlevel.errors import UsageError
from spiritlevel.export.place import drafted
from spiritlevel.export.quiet import quiet
from spiritlevel.files import refuse_unwritable, write_whole


def written(path, text="new"):
    with drafted(path) as draft:
        for name in ("z.bin", path.name, "a.bin"):
            draft.with_name(name).write_text(text)


def test_all_is_on_the_disk_before_it_moves_and_the_named_file_is_the_last(tmp_path, monkeypatch):
    told, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (told.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append(a.name), replace(a, b)))
    written(tmp_path / "m.xml")
    assert told[::2] == ["sync"] * 3
    assert sorted(told[1:5:2]) == ["a.bin", "z.bin"]
    assert told[5] == "m.xml"


def test_what_a_killed_process_left_is_removed_and_what_another_holds_is_not(tmp_path):
    path = tmp_path / "m.xml"
    for name in (f".m.xml.{os.getpid()}.tmp", ".m.xml.0badcafe.tmp", ".other.xml.1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with drafted(path) as held:
        written(path)
        assert held.parent.is_dir()
        held.write_text("newer")
    assert path.read_text() == "newer"
    assert sorted(each.name for each in tmp_path.glob(".*")) == [".other.xml.1.tmp"]


@pytest.mark.parametrize("write", [written, write_whole])
def test_a_link_stays_one(write, tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "m.xml"
    link.symlink_to("far/m1.xml")
    write(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "far" / "m1.xml").read_text() == "new"
    assert [each.name for each in (tmp_path / "far").iterdir()] == ["m1.xml"]


def test_what_is_no_file_to_write_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "kept").touch(mode=0o444)
    for name, told in (("pipe", "a device or a pipe"), ("kept", "read-only"), ("", "a folder")):
        with pytest.raises(UsageError, match=told):
            refuse_unwritable(tmp_path / name)


def raising(kind, path):
    with drafted(path), quiet(None, "m.xml"):
        raise kind


def test_a_full_disk_is_told_of_the_file_and_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(UsageError, match="has room"):
        raising(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "m.xml")
    with pytest.raises(FileNotFoundError), drafted(tmp_path / "m.xml"):
        raise FileNotFoundError("img_0007.png")
    assert list(tmp_path.iterdir()) == []
