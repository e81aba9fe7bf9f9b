from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from image_files import write_image

from spiritlevel.data import load
from spiritlevel.errors import DataError

LAYOUT = "one folder of images for each class, or train/ and test/ with such folders in each"


def values(x: torch.Tensor) -> list[int]:
    """The grey value of each one-valued image."""
    return x[:, 0, 0, 0].tolist()


def refusal(folder: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        load(f"folder:{folder}")
    return str(caught.value)


def test_each_image_is_on_one_side_with_the_label_of_its_folder(pets):
    images = load(f"folder:{pets}")
    assert images.classes == ("cats", "dogs")
    assert torch.bincount(images.train_y).tolist() == [8, 8]
    assert torch.bincount(images.test_y).tolist() == [2, 2]
    seen = values(images.train_x) + values(images.test_x)
    assert sorted(seen) == [*range(10, 20), *range(110, 120)]
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert [value > 100 for value in values(x)] == y.bool().tolist()


def test_what_a_reader_is_told(pets):
    images = load(f"folder:{pets}")
    assert images.name == "folder:pets"
    assert images.origin == "your own images, from the folder pets"
    assert images.licence == "your own images, terms not known to spiritlevel"
    assert images.notes == ()


def test_images_are_found_at_any_depth_and_anything_else_is_passed_over(pets):
    shutil.move(pets / "cats" / "3.png", pets / "cats" / "moved.PNG")
    write_image(pets / "cats" / "2021" / "may" / "a.png", 77)
    for junk in ("notes.txt", ".hidden.png", ".cache/thumb.png", "2021/labels.csv", "noending"):
        path = pets / "cats" / junk
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    (pets / ".git").mkdir()
    (pets / "readme.png").write_text("outside any class")
    images = load(f"folder:{pets}")
    assert sorted(values(torch.cat([images.train_x, images.test_x]))) == [
        *range(10, 20),
        77,
        *range(110, 120),
    ]


def test_the_same_files_give_the_same_images_wherever_they_lie(pets, tmp_path):
    copy = tmp_path / "elsewhere"
    for path in sorted(pets.rglob("*.png"), reverse=True):  # written in another order
        target = copy / path.relative_to(pets)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    there = load(f"folder:{pets}").fingerprint
    assert load(f"folder:{copy}").fingerprint == there
    assert load(f"folder:{copy}", seed=1).fingerprint != there


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("train", "val"), ("Train", "TEST")]
)
def test_given_train_and_test_folders_are_kept(tmp_path, train, test):
    for i in range(6):
        write_image(tmp_path / train / "cats" / f"{i}.png", 10 + i)
        write_image(tmp_path / train / "dogs" / f"{i}.png", 20 + i)
    write_image(tmp_path / test / "cats" / "0.png", 30)
    write_image(tmp_path / test / "dogs" / "0.png", 40)
    images = load(f"folder:{tmp_path}")
    assert images.classes == ("cats", "dogs")
    assert sorted(values(images.train_x)) == [*range(10, 16), *range(20, 26)]
    assert dict(zip(values(images.test_x), images.test_y.tolist(), strict=True)) == {30: 0, 40: 1}
    assert images.train_y.tolist() != sorted(images.train_y.tolist())


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for i in range(2):
            write_image(tmp_path / name / f"{i}.png")
    assert load(f"folder:{tmp_path}").classes == ("bus", "train")


def test_class_names_are_any_text(tmp_path):
    names = ["猫", "<b>naïve & co", "🙂 smile", "a\nb", "{0} %s", "Žluťoučký"]
    for name in names:
        for i in range(2):
            write_image(tmp_path / name / f"{i}.png")
    images = load(f"folder:{tmp_path}")
    assert images.classes == tuple(sorted(names))


def test_a_class_name_that_is_not_utf8_becomes_printable(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        folder = os.fsencode(tmp_path) + b"/" + name
        try:
            os.mkdir(folder)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        for i in range(2):
            write_image(Path(os.fsdecode(folder)) / f"{i}.png")
    description = load(f"folder:{tmp_path}").describe()
    assert description["classes"] == ["caf�", "tea"]
    json.dumps(description, ensure_ascii=False).encode()


def test_the_path_may_be_relative_end_in_a_slash_or_start_at_home(pets, monkeypatch):
    there = load(f"folder:{pets}").fingerprint
    monkeypatch.chdir(pets.parent)
    monkeypatch.setenv("HOME", str(pets.parent))
    for path in ("pets", "pets/", "./pets/../pets", "~/pets"):
        images = load(f"folder:{path}")
        assert (images.name, images.fingerprint) == ("folder:pets", there)


@pytest.mark.parametrize(("deep", "taken"), [(31, True), (32, False), (300, False)])
def test_folders_may_lie_so_deep_and_no_deeper(pets, deep, taken):
    """A class folder is the first of 32; Python's own stack ends at a thousand."""
    inner = pets / "cats" / "/".join("d" * deep)
    inner.mkdir(parents=True)
    (pets / "cats/0.png").rename(inner / "0.png")
    if taken:
        assert len(load(f"folder:{pets}").train_y) == 16
    else:
        with pytest.raises(DataError, match="lies more than 32 folders deep"):
            load(f"folder:{pets}")


def test_a_link_to_an_image_inside_is_followed(pets):
    (pets / "cats" / "again.png").symlink_to("../dogs/0.png")
    images = load(f"folder:{pets}")
    assert (images.train_x == 110).flatten(1).all(1).sum() + (images.test_x == 110).flatten(1).all(
        1
    ).sum() == 2


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "no/such/folder", "nul\0byte", "x" * 5000])
def test_a_path_that_is_not_there(path):
    assert (
        refusal(path)
        == f"got folder {path!r}, which does not exist; wanted {LAYOUT}; check the path"
    )


def test_a_file_where_a_folder_is_wanted(pets):
    file = pets / "cats" / "0.png"
    assert refusal(file) == (
        f"got {str(file)!r}, which is a file; wanted a folder or a zip archive of one: {LAYOUT}; "
        "put the images there"
    )


def test_a_pipe_where_a_folder_is_wanted_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(pipe) == (
        f"got {str(pipe)!r}, which is neither a folder nor a file; wanted {LAYOUT}; check the path"
    )


def test_a_folder_without_class_folders(tmp_path):
    expected = (
        f"got no class folder in {str(tmp_path)!r}; wanted two or more: {LAYOUT}; add folders"
    )
    assert refusal(tmp_path) == expected
    write_image(tmp_path / "loose.png")
    assert refusal(tmp_path) == expected


def test_a_single_class(pets):
    shutil.rmtree(pets / "dogs")
    assert refusal(pets) == (
        f"got one class, 'cats', in {str(pets)!r}; wanted two or more: {LAYOUT}; add folders"
    )


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_too_small_to_be_split(pets, count):
    (pets / "birds").mkdir()
    for i in range(count):
        write_image(pets / "birds" / f"{i}.png")
    assert refusal(pets) == (
        f"got class 'birds' of {str(pets)!r} with {count} image(s), wanted 2 or more; "
        "add images or remove the folder "
        "(read are .bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)"
    )


def split(root: Path, *, train: list[str], test: list[str]) -> Path:
    for part, classes in (("train", train), ("test", test)):
        for name in classes:
            write_image(root / part / name / "0.png")
    return root


def test_an_empty_class_in_a_given_split(tmp_path):
    root = split(tmp_path, train=["a", "b"], test=["a"])
    (root / "test" / "b").mkdir()
    expected = f"got class 'b' of {str(root / 'test')!r} with 0 image(s), wanted 1 or more"
    assert refusal(root).startswith(expected)


@pytest.mark.parametrize(("train", "test"), [("abc", "ab"), ("ab", "abc")])
def test_a_class_on_one_side_of_a_given_split_only(tmp_path, train, test):
    root = split(tmp_path, train=list(train), test=list(test))
    assert refusal(root) == (
        f"got class 'c' in only one of train/ and test/ of {str(root)!r}; "
        "wanted the same classes in both; add or remove that folder"
    )


@pytest.mark.parametrize("third", ["val", "extra"])
def test_a_third_folder_beside_a_given_split(tmp_path, third):
    root = split(tmp_path, train=["a", "b"], test=["a", "b"])
    write_image(root / third / "a" / "0.png")
    assert refusal(root) == (
        f"got 3 folders in {str(root)!r}, train/ and test/ among them; "
        "wanted train/ and one of test/ and val/, and no other; move the rest elsewhere"
    )


def test_a_link_out_of_the_folder(pets, tmp_path):
    link = pets / "cats" / "link.png"
    link.symlink_to(write_image(tmp_path / "secret" / "s.png"))
    assert refusal(pets) == (
        f"got {str(link)!r}, a link that leads out of {str(pets)!r}; "
        "wanted images inside it; copy the image there or remove the link"
    )


def test_a_link_to_a_sibling_whose_name_begins_alike_leads_out_too(pets, tmp_path):
    link = pets / "cats" / "link.png"
    link.symlink_to(write_image(tmp_path / "pets2" / "s.png"))
    assert "a link that leads out" in refusal(pets)


@pytest.mark.parametrize("target", ["../dogs", "..", "/"])
def test_a_linked_folder(pets, target):
    link = pets / "cats" / "more"
    link.symlink_to(target)
    assert (
        refusal(pets) == f"got {str(link)!r}, a link to a folder; wanted folders; copy or remove it"
    )


def test_a_broken_link_a_circular_link_and_a_pipe(pets):
    path = pets / "cats" / "odd.png"
    expected = f"got {str(path)!r}, which is not a readable file; wanted images; remove it"
    path.symlink_to("gone.png")
    assert refusal(pets) == expected
    path.unlink()
    path.symlink_to("odd.png")
    assert refusal(pets) == expected
    path.unlink()
    os.mkfifo(path)
    assert refusal(pets) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_may_not_be_listed(pets):
    (pets / "cats").chmod(0)
    try:
        assert re.match(
            r"got folder '.*cats', which cannot be listed \(Permission denied\); wanted one",
            refusal(pets),
        )
    finally:
        (pets / "cats").chmod(0o755)
