from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from image_files import write_image

from spiritlevel.data import Images, load, prepare
from spiritlevel.errors import DataError
from spiritlevel.files import cache_folder

LARGE = 512
"""Pixels a side at which the twenty images of `pets` are worth a place on the disk: 5 MB."""


def entries(cache: Path) -> list[Path]:
    """All that is in the cache, drafts, too."""
    return sorted((cache / "images").iterdir()) if (cache / "images").exists() else []


def mapped(folder: Path) -> bool:
    """Whether this process has a file of the folder in its memory."""
    return str(folder) in Path("/proc/self/maps").read_text()


def keep_but_spoil(folder: Path) -> None:
    """No image can be decoded any more, and by size and time no file has changed."""
    for path in folder.rglob("*.png"):
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_decoded_once_is_mapped(pets, cache):
    first = load(f"folder:{pets}", image_size=LARGE)
    keep_but_spoil(pets)
    second = load(f"folder:{pets}", image_size=LARGE)
    assert len(entries(cache)) == 1
    assert mapped(entries(cache)[0])
    assert first.describe() == second.describe()
    assert (first.train_x.shape, first.train_x.dtype) == ((16, 1, LARGE, LARGE), torch.uint8)
    assert first.train_y.dtype == torch.int64


def test_the_images_are_those_that_stay_in_memory(pets, monkeypatch):
    kept = load(f"folder:{pets}", image_size=LARGE, seed=5)
    monkeypatch.setattr("spiritlevel.data.cache._SMALL", 2**40)
    monkeypatch.setenv("SPIRITLEVEL_CACHE", str(pets.parent / "another"))
    in_memory = load(f"folder:{pets}", image_size=LARGE, seed=5)
    assert not (pets.parent / "another").exists()
    assert in_memory.describe() == kept.describe()


def test_few_images_are_not_kept(pets, cache):
    load(f"folder:{pets}")
    assert not cache.exists()


def test_mapped_images_are_used_like_any_others(pets, cache, tmp_path):
    images = load(f"folder:{pets}", image_size=LARGE)
    assert prepare(images, size=32).train_x[:3].shape == (3, 1, 32, 32)
    torch.save(vars(images), tmp_path / "images.pt")
    back = Images(**torch.load(tmp_path / "images.pt", weights_only=True, mmap=True))
    assert back.fingerprint == images.fingerprint


def test_a_write_to_the_tensor_does_not_reach_the_file(pets, cache):
    images = load(f"folder:{pets}", image_size=LARGE)
    file = entries(cache)[0] / "train_x.npy"
    before = file.read_bytes()
    images.train_x.zero_()
    assert file.read_bytes() == before


def test_seed_size_and_every_change_of_a_file_have_an_entry_of_their_own(pets, cache):
    def kept(**options) -> int:
        load(f"folder:{pets}", **{"image_size": LARGE} | options)
        return len(entries(cache))

    assert kept() == 1
    assert kept(seed=1) == 2
    assert kept(image_size=LARGE + 1) == 3
    path = pets / "cats" / "0.png"
    write_image(path, 200)
    assert kept() == 4
    assert load(f"folder:{pets}", image_size=LARGE).train_x.max() == 200
    os.utime(path, (1, 1))
    assert kept() == 5
    write_image(pets / "cats" / "more.png", 200)
    assert kept() == 6
    assert kept() == 6


def spoil_about(entry: Path, **changes: object) -> None:
    about = json.loads((entry / "about.json").read_text())
    (entry / "about.json").write_text(json.dumps(about | changes))


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "about.json").unlink(),
        lambda entry: (entry / "about.json").write_text(""),
        lambda entry: (entry / "about.json").write_text("[]"),
        lambda entry: (entry / "about.json").write_bytes(b"\xff\xfe"),
        lambda entry: spoil_about(entry, notes=None),
        lambda entry: spoil_about(entry, sha256={}),
        lambda entry: (entry / "train_y.npy").unlink(),
        lambda entry: (entry / "train_x.npy").write_bytes(b""),
        lambda entry: (entry / "train_x.npy").write_bytes(b"x" * 5000),
        lambda entry: cut(entry / "train_x.npy", 1),
        lambda entry: cut(entry / "test_x.npy", 200_000),
        lambda entry: flip(entry / "train_x.npy"),
        lambda entry: [path.unlink() for path in entry.iterdir()],
    ],
)
def test_a_damaged_entry_is_made_anew(pets, cache, damage):
    before = load(f"folder:{pets}", image_size=LARGE).describe()
    damage(entries(cache)[0])
    assert load(f"folder:{pets}", image_size=LARGE).describe() == before
    keep_but_spoil(pets)  # so that only the entry can give it
    assert load(f"folder:{pets}", image_size=LARGE).describe() == before
    assert len(entries(cache)) == 1


LOAD = (
    "import sys; from spiritlevel.data import load; "
    "print(load(sys.argv[1], image_size=int(sys.argv[2])).fingerprint)"
)


def test_two_processes_fill_it_at_once(pets, cache):
    command = [sys.executable, "-c", LOAD, f"folder:{pets}", str(LARGE)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert found == {load(f"folder:{pets}", image_size=LARGE).fingerprint}
    assert len(entries(cache)) == 1


def test_who_comes_second_takes_the_first_ones(pets, cache, monkeypatch):
    """Another process fills the cache while this one decodes."""
    command = [sys.executable, "-c", LOAD, f"folder:{pets}", str(LARGE)]

    def delayed(files, image_size):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = entries(cache)
        times.append((path / "about.json").stat().st_mtime_ns)
        return files_class(files, image_size)

    from spiritlevel.data import layout

    times: list[int] = []
    files_class = layout.Files
    monkeypatch.setattr(layout, "Files", delayed)
    load(f"folder:{pets}", image_size=LARGE)
    (entry,) = entries(cache)
    assert times == [(entry / "about.json").stat().st_mtime_ns]


def test_the_second_does_not_remove_what_the_first_has_just_finished(pets, cache, monkeypatch):
    """It looks again when the first is done, rather than act on what it saw before."""
    removing, removed = threading.Event(), []
    rmtree = shutil.rmtree

    def slow(path, **how):
        if not Path(path).name.startswith(".draft-"):
            removed.append(path)
            removing.set()
            time.sleep(1)
        rmtree(path, **how)

    monkeypatch.setattr("spiritlevel.data.cache.shutil.rmtree", slow)
    found = []
    first = threading.Thread(
        target=lambda: found.append(load(f"folder:{pets}", image_size=LARGE)), daemon=True
    )
    first.start()
    assert removing.wait(60)
    found.append(load(f"folder:{pets}", image_size=LARGE))
    first.join(60)
    assert len({images.fingerprint for images in found}) == 1
    assert len(removed) == len(entries(cache)) == 1


def test_a_draft_of_a_killed_process_is_removed_after_a_day(pets, cache):
    for name, age in ((".draft-old", 25), (".draft-young", 1)):
        (cache / "images" / name).mkdir(parents=True)
        then = time.time() - age * 3600
        os.utime(cache / "images" / name, (then, then))
    load(f"folder:{pets}", image_size=LARGE)
    drafts = [path.name for path in entries(cache) if path.name.startswith(".draft")]
    assert drafts == [".draft-young"]


def test_an_image_that_cannot_be_decoded_leaves_nothing(pets, cache):
    broken = pets / "dogs" / "9.png"
    write_image(broken, 5, size=(300, 300))
    broken.write_bytes(broken.read_bytes()[:-40])  # its header is whole: it fails while writing
    with pytest.raises(DataError, match=r"9\.png'"):
        load(f"folder:{pets}", image_size=LARGE)
    assert entries(cache) == []


def test_the_folder_is_spiritlevel_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIRITLEVEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "spiritlevel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "spiritlevel"
    monkeypatch.setenv("SPIRITLEVEL_CACHE", "~/another")
    assert cache_folder() == tmp_path / "me" / "another"


# --- where it cannot be written to -------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(f"folder:{folder}", image_size=LARGE)
    return str(caught.value)


def full(reason: str, cache: Path) -> str:
    return (
        f"got {reason!r} while keeping images in {cache / 'images'}; wanted room for them; "
        "make room, or name a folder on another disk in SPIRITLEVEL_CACHE"
    )


def test_a_file_that_may_not_grow(pets, cache):
    """The bound on file sizes of the process, by which a quota can be felt without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        assert refusal(pets) == full("File too large", cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(cache) == []


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A file system of 2 MiB and 16 files and folders."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=16", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    monkeypatch.setenv("SPIRITLEVEL_CACHE", str(place / "cache"))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(pets, small_disk):
    assert refusal(pets) == full("No space left on device", small_disk / "cache")
    assert entries(small_disk / "cache") == []
    used = shutil.disk_usage(small_disk).used
    assert used < 100_000


def test_a_disk_without_room_for_one_more_file(pets, small_disk):
    for i in range(os.statvfs(small_disk).f_ffree):
        (small_disk / str(i)).touch()
    assert refusal(pets) == full("No space left on device", small_disk / "cache")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that refuses folders")
def test_a_folder_that_cannot_be_written_to_is_told_once_and_done_without(pets, monkeypatch):
    monkeypatch.setenv("SPIRITLEVEL_CACHE", "/sys/kernel/spiritlevel")
    told = (
        r"the cache folder /sys/kernel/spiritlevel cannot be written to \([A-Z][a-z -]+\): images "
        "are decoded into memory, again in each run. Name another folder in SPIRITLEVEL_CACHE$"
    )
    with pytest.warns(UserWarning, match=told) as caught:
        images = load(f"folder:{pets}", image_size=LARGE)
    assert len(caught) == 1
    assert images.train_x.shape == (16, 1, LARGE, LARGE)
