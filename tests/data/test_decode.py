from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_image, write_noise, write_png_header
from PIL import Image

from spiritlevel.data.decode import ENDINGS, Files, Member, decoded
from spiritlevel.errors import DataError


def decode(files, image_size=None):
    """All pixels in the order of the files, and the notes."""
    pixels = Files(files, image_size)
    return torch.cat(list(pixels.parts(torch.arange(len(files))))), pixels.notes


def refusal(*files: Path) -> str:
    with pytest.raises(DataError) as caught:
        decode(files)
    return str(caught.value)


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_every_ending_is_read(tmp_path, ending):
    mode = "L" if ending == ".pgm" else "RGB"
    x, notes = decode([write_image(tmp_path / f"a{ending}", 77, size=(40, 40), mode=mode)])
    assert x.shape == (1, 1 if mode == "L" else 3, 40, 40)
    assert (x.float() - 77).abs().max() <= 2  # JPEG and WebP lose a little
    assert notes == (
        ("1 of 1 images read from JPEG: lossy",) if ending in (".jpg", ".jpeg") else ()
    )


def test_pixels_arrive_unchanged(tmp_path):
    pixels = write_noise(tmp_path / "a.png", size=(40, 40))
    x, _ = decode([tmp_path / "a.png"])
    assert x.dtype == torch.uint8
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3)]
)
def test_grey_files_give_one_channel_and_others_three(tmp_path, mode, channels):
    x, notes = decode([write_image(tmp_path / "a.png", 255, mode=mode)])
    assert x.shape[1] == channels
    assert (x == 255).all()
    assert notes == ()


def test_a_cmyk_photo_becomes_rgb(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    x, _ = decode([tmp_path / "a.jpg"])
    assert torch.allclose(x[0, :, 0, 0].float(), torch.tensor([255.0, 0.0, 0.0]), atol=3)


def test_grey_among_colour_becomes_rgb_and_is_noted(tmp_path):
    x, notes = decode(
        [
            write_image(tmp_path / "a.png", 7),
            write_image(tmp_path / "b.png", 8, mode="RGB"),
            write_image(tmp_path / "c.png", 9),
        ]
    )
    assert x[:, :, 0, 0].tolist() == [[7, 7, 7], [8, 8, 8], [9, 9, 9]]
    assert notes == ("2 grey among 3 images turned into RGB",)


def test_transparent_parts_are_white_whatever_colour_hides_there(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(tmp_path / "opaque.png")
    x, notes = decode([tmp_path / "a.png", tmp_path / "opaque.png"])
    assert (x[0, :, :16] == 0).all()
    assert (x[0, :, 16:] == 255).all()
    assert (x[1] == 0).all()
    assert notes == ("transparent parts of 1 images put on white",)


def test_a_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:4] = 200  # the stored first rows
    exif = Image.Exif()
    exif[0x0112] = 6  # they are to be shown on the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x, _ = decode([tmp_path / "a.png"])
    assert (x[0, 0, :, -4:] == 200).all()
    assert (x[0, 0, :, :-4] == 0).all()


def sized(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    return [write_image(folder / f"{i}.png", 50, size=size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "side", "notes"),
    [
        ([(40, 40), (40, 40)], 40, ()),
        ([(20, 20)], 32, ("20x20 pixels brought to 32x32 (bilinear)",)),
        ([(1, 1)], 32, ("1x1 pixels brought to 32x32 (bilinear)",)),
        ([(64, 48)], 48, ("64x48 pixels brought to 48x48 (bilinear)",)),
        ([(64, 16)], 32, ("64x16 pixels brought to 32x32 (bilinear)",)),
        (
            [(40, 40), (50, 50), (40, 40)],
            40,
            ("images of 2 sizes, 40x40 pixels the most common, brought to 40x40 (bilinear)",),
        ),
        (
            [(41, 60), (60, 41), (33, 33), (60, 41)],
            41,
            ("images of 3 sizes, 60x41 pixels the most common, brought to 41x41 (bilinear)",),
        ),
        (
            [(34, 34), (36, 36)],
            36,
            ("images of 2 sizes, 36x36 pixels the most common, brought to 36x36 (bilinear)",),
        ),
    ],
)
def test_sizes_become_one_and_are_noted(tmp_path, sizes, side, notes):
    x, noted = decode(sized(tmp_path, *sizes))
    assert x.shape == (len(sizes), 1, side, side)
    assert (x == 50).all()
    assert noted == notes


@pytest.mark.parametrize("side", [8, 40, 64])
def test_the_size_asked_for_takes_the_place_of_the_common_one(tmp_path, side):
    x, noted = decode(sized(tmp_path, (40, 40), (40, 40)), side)
    assert x.shape == (2, 1, side, side)
    assert noted == (() if side == 40 else (f"40x40 pixels brought to {side}x{side} (bilinear)",))


def test_rows_come_in_the_order_asked_for(tmp_path):
    pixels = Files([write_image(tmp_path / f"{i}.png", i) for i in range(4)])
    parts = pixels.parts(torch.tensor([2, 0, 3]))
    assert [int(part[0, 0, 0, 0]) for part in parts] == [2, 0, 3]


def test_a_file_inside_another_one_is_read_from_its_bytes_and_named(tmp_path):
    content = write_image(tmp_path / "a.png", 9).read_bytes()
    x, _ = decode([Member("inside/a.png", lambda: content)])
    assert (x == 9).all()
    with pytest.raises(DataError, match=r"got 'inside/b\.png', which cannot be read as an image"):
        decode([Member("inside/b.png", lambda: content[: len(content) // 2])])


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", sorted(ENDINGS - {".pgm"}))
def test_half_a_file(tmp_path, ending):
    path = tmp_path / f"half{ending}"
    write_noise(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(path)
    assert message.startswith(f"got {str(path)!r}, which cannot be read as an image (")
    assert message.endswith("wanted a whole image file; repair or remove it")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_a_file_that_is_no_image_or_of_a_format_not_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert refusal(path) == (
        f"got {str(path)!r}, which cannot be read as an image (of no known format); "
        "wanted a whole image file; repair or remove it"
    )


def test_one_bad_file_among_good_ones_is_the_one_named(tmp_path):
    good = sized(tmp_path, (32, 32), (32, 32))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    assert repr(str(bad)) in refusal(good[0], bad, good[1])


@pytest.mark.parametrize("side", [10_000, 20_000])  # where Pillow warns, and where it raises
def test_a_decompression_bomb(tmp_path, side):
    path = tmp_path / "bomb.png"
    write_png_header(path, side, side)
    assert refusal(path) == (
        f"got {str(path)!r} with more than 89,478,485 pixels, which could fill the memory; "
        "wanted fewer; make the image smaller or remove it"
    )


def test_more_images_than_fit_into_memory(tmp_path):
    path = tmp_path / "large.png"
    write_png_header(path, 9_000, 9_000)
    assert refusal(*[path] * 9) == (
        "got 9 images of 9000x9000 pixels, 2.0 GiB in memory; "
        "wanted 2 GiB or less; make the images smaller or take fewer"
    )


def test_more_than_8_bits_a_channel(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((32, 32), 30_000, np.uint16)).save(path)
    assert refusal(path) == (
        f"got {str(path)!r} with more than 8 bits a channel; wanted 8; "
        "convert it, which settles what is black and what is white"
    )


@pytest.mark.parametrize("side", [8, 20, 64])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_file_alone_is_what_it_is_among_others(tmp_path, mode, channels, side):
    noise = torch.randint(256, (17, 31, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).convert(mode).save(tmp_path / "a.png")
    (among,) = Files([tmp_path / "a.png"], side).parts(torch.tensor([0]))
    alone = decoded(tmp_path / "a.png", channels, side)
    assert alone.shape == (channels, side, side)
    assert torch.equal(alone, among[0])
