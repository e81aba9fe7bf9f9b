from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from image_files import write_image, write_noise, write_png_header

from spiritlevel.data import archive as room
from spiritlevel.data import load
from spiritlevel.errors import DataError

LAYOUT = "one folder of images for each class, or train/ and test/ with such folders in each"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(f"folder:{path}")
    return str(caught.value)


def packed(folder: Path, path: Path, *, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, inside + str(file.relative_to(folder)))
    return path


def added(path: Path, name: str, content: bytes = b"", **fields: object) -> Path:
    """The archive with one more entry, of exactly this name."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    for field, value in fields.items():
        setattr(info, field, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, content)
    return path


def patched(path: Path, name: str, at: int, form: str, value: int) -> Path:
    """A field of the central directory's record of `name`, `at` bytes from its start, forged."""
    content = bytearray(path.read_bytes())
    start = content.rindex(name.encode()) - 46
    assert content[start : start + 4] == b"PK\x01\x02"
    struct.pack_into(form, content, start + at, value)
    path.write_bytes(content)
    return path


@pytest.fixture
def zipped(pets, tmp_path) -> Path:
    return packed(pets, tmp_path / "pets.zip")


@pytest.mark.parametrize("inside", ["", "pets/", "a/b/"])
def test_an_archive_gives_the_images_of_its_folder(pets, tmp_path, inside):
    ours = load(f"folder:{packed(pets, tmp_path / 'pets.zip', inside=inside)}")
    theirs = load(f"folder:{pets}")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.classes == theirs.classes
    assert ours.name == "folder:pets.zip"
    assert ours.origin == "your own images, from the archive pets.zip"


def test_train_and_test_folders_are_kept(tmp_path):
    root = tmp_path / "set"
    for part, value in (("train", 10), ("test", 20)):
        for name in ("cats", "dogs"):
            write_image(root / part / name / "0.png", value)
    images = load(f"folder:{packed(root, tmp_path / 'set.zip', inside='set/')}")
    assert (images.train_x == 10).all()
    assert (images.test_x == 20).all()
    assert len(images.test_y) == 2


def test_an_archive_by_any_other_name(zipped, tmp_path):
    path = zipped.rename(tmp_path / "pets.cbz")
    assert load(f"folder:{path}").name == "folder:pets.cbz"


def test_what_is_no_image_is_passed_over(zipped):
    before = load(f"folder:{zipped}").fingerprint
    names = ["cats/notes.txt", "cats/.hidden.png", "__MACOSX/cats/0.png", "loose.png", ".git/a.png"]
    for name in [*names, "cats/inner.zip"]:
        added(zipped, name, b"no image")
    assert load(f"folder:{zipped}").fingerprint == before


# --- refused, and nothing is written -----------------------------------------------------------


@pytest.fixture
def untouched(zipped, tmp_path, cache):
    """Nothing but the archive's own bytes may have changed in the end."""
    before = set(tmp_path.rglob("*"))
    yield zipped
    assert set(tmp_path.rglob("*")) == before
    assert not cache.exists()
    assert not Path("/tmp/evil.png").exists()


LINK = {"external_attr": 0o120777 << 16}


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("../evil.png", {}, "leads out of its folder"),
        ("cats/../../evil.png", {}, "leads out of its folder"),
        ("cats/..", {}, "leads out of its folder"),
        ("/tmp/evil.png", {}, "has an absolute path"),
        ("C:/evil.png", {}, "has an absolute path"),
        ("C:evil.png", {}, "has an absolute path"),
        ("..\\evil.png", {}, "has a name that not all systems read alike"),
        ("cats//evil.png", {}, "has a name that not all systems read alike"),
        ("cats/a\0.png", {}, "has a name that not all systems read alike"),
        ("cats/" + "d/" * 32 + "a.png", {}, "lies more than 32 folders deep"),
        ("cats/" + "d/" * 32_000 + "a.png", {}, "lies more than 32 folders deep"),
        ("cats/link.png", LINK, "is a link"),
        ("link", LINK, "is a link"),
        ("cats/pipe.png", {"external_attr": 0o010644 << 16}, "is no ordinary file"),
        ("cats/0.png/more.png", {}, "is both a file and a folder"),
    ],
)
def test_an_entry_that_is_not_a_plain_file_inside(untouched, name, fields, reason):
    added(untouched, name, b"x", **fields)
    shown = f"{untouched}/{'cats/0.png' if 'more' in name else name}"
    shown = shown if len(shown) <= 300 else f"{shown[:300]}..."
    assert refusal(untouched) == (
        f"got {shown!r}, which {reason}; wanted plain image files; pack the archive anew without it"
    )


def test_two_entries_of_one_name(untouched):
    with pytest.warns(UserWarning, match="Duplicate name"):
        added(untouched, "cats/0.png", b"x")
    assert "cats/0.png', which stands there twice; wanted plain" in refusal(untouched)


def test_a_file_of_a_folders_name(untouched):
    added(untouched, "cats", b"x")
    assert "cats', which stands there twice; wanted plain" in refusal(untouched)


def test_an_encrypted_entry(untouched):
    patched(untouched, "cats/3.png", 8, "<H", 1)
    assert "cats/3.png', which is encrypted; wanted plain" in refusal(untouched)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_without_bound(untouched, method):
    added(untouched, "cats/odd.png", b"x", compress_type=method)
    assert "cats/odd.png', which is packed by another method than deflate" in refusal(untouched)


def test_an_entry_that_says_it_is_too_large(untouched):
    patched(untouched, "cats/3.png", 24, "<I", 64 * 2**20 + 1)
    assert "unpacks to 67,108,865 bytes, more than 67,108,864; wanted plain" in refusal(untouched)


def test_entries_that_together_are_too_large(untouched, monkeypatch):
    monkeypatch.setattr(room, "MAX_TOTAL", 1000)
    assert refusal(untouched).endswith(
        "bytes, wanted 1,000 or fewer; make the images smaller or take fewer"
    )


def test_more_entries_than_the_bound(untouched, monkeypatch):
    monkeypatch.setattr(room, "MAX_ENTRIES", 21)
    assert refusal(untouched) == (
        f"got {str(untouched)!r} with 22 entries, wanted 21 or fewer; take fewer images"
    )


def test_an_entry_that_unpacks_to_more_than_it_says(untouched):
    """256 MiB of zeros that say they are one byte: no more is ever unpacked than was said."""
    added(untouched, "cats/bomb.png", bytes(2**28), compress_type=zipfile.ZIP_DEFLATED)
    patched(untouched, "cats/bomb.png", 24, "<I", 1)
    message = refusal(untouched)
    assert message.startswith(f"got '{untouched}/cats/bomb.png', which cannot be unpacked (Bad CRC")
    assert message.endswith("wanted a whole archive; pack it again")


def test_an_image_that_is_cut_short_is_named(untouched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    write_noise(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    added(untouched, "dogs/half.png", content[: len(content) // 2])
    message = refusal(untouched)
    assert message.startswith(
        f"got '{untouched}/dogs/half.png', which cannot be read as an image ("
    )


def test_an_image_of_too_many_pixels_is_named(untouched, tmp_path_factory):
    path = tmp_path_factory.mktemp("bomb") / "a.png"
    write_png_header(path, 20_000, 20_000)
    added(untouched, "dogs/bomb.png", path.read_bytes())
    assert "dogs/bomb.png' with more than 89,478,485 pixels" in refusal(untouched)


def test_bytes_that_were_damaged(untouched):
    content = bytearray(untouched.read_bytes())
    with zipfile.ZipFile(untouched) as archive:
        start = archive.getinfo("cats/3.png").header_offset + 30 + len("cats/3.png") + 20
    content[start] ^= 255
    untouched.write_bytes(content)
    assert f"got '{untouched}/cats/3.png', which cannot be unpacked (" in refusal(untouched)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 40])
def test_a_file_that_is_no_archive(untouched, content):
    untouched.write_bytes(content)
    assert refusal(untouched).startswith(
        f"got {str(untouched)!r}, which cannot be read as a zip archive ("
    )


def test_an_archive_cut_short(untouched):
    untouched.write_bytes(untouched.read_bytes()[:-30])
    assert "which cannot be read as a zip archive (" in refusal(untouched)


def test_an_archive_without_class_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    path = tmp_path / "empty.zip"
    expected = f"got no class folder in {str(path)!r}; wanted two or more: {LAYOUT}; add folders"
    assert refusal(path) == expected
    added(path, "loose.png", b"x")
    assert refusal(path) == expected


def test_one_class_only(tmp_path, pets):
    path = packed(pets / "cats", tmp_path / "a.zip", inside="cats/")
    assert refusal(path).startswith(f"got one class, 'cats', in {str(path)!r}; wanted two or more")
