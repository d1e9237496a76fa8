"""Any image becomes 32 x 32 x 3 bytes by the box filter."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pliant.data import DataError
from pliant.data.decode import decoded, reduced
from pliant.data.listing import listing
from tests.data.makers import class_folders, image, zipped
from tests.patience import PATIENCE


def encoded(array, form="PNG", mode=None, **options):
    out = io.BytesIO()
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def pixels(content):
    return np.frombuffer(reduced(content), np.uint8).reshape(32, 32, 3)


def test_an_image_of_the_right_size_is_untouched():
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert (pixels(encoded(array)) == array).all()


def test_each_pixel_is_the_mean_of_the_area_it_covers():
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    means = array.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels(encoded(array)) - means).max() <= 1.0  # Pillow rounds after each direction


def test_an_image_that_is_not_square_is_squeezed_whole():
    column = np.repeat(np.arange(32, dtype=np.uint8) * 8, 4)  # 128 columns
    array = np.broadcast_to(column[None, :, None], (64, 128, 3))
    assert (pixels(encoded(array)) == (np.arange(32) * 8)[None, :, None]).all()


def test_a_small_image_is_enlarged_by_repeating():
    array = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    assert (pixels(encoded(array)) == array.repeat(2, axis=0).repeat(4, axis=1)).all()


GRAY = np.full((40, 50), 77, np.uint8)
RED = np.broadcast_to(np.array([200, 30, 40], np.uint8), (40, 50, 3))
HALF_RED = np.dstack([RED, np.full((40, 50), 128, np.uint8)])
KINDS = {
    "gray": (encoded(GRAY), (77, 77, 77), 0),
    "gray and alpha": (encoded(HALF_RED, mode="LA"), (82, 82, 82), 0),
    "16 bits of gray": (encoded((GRAY.astype(np.uint16) << 8) + 99), (77, 77, 77), 0),
    "alpha": (encoded(HALF_RED), (200, 30, 40), 0),
    "palette": (encoded(RED, mode="P"), (200, 30, 40), 60),
    "palette, transparent": (encoded(RED, "GIF", transparency=0), (200, 30, 40), 60),
    "black and white": (encoded(np.full((40, 50), 255, np.uint8), mode="1"), (255, 255, 255), 0),
    "jpeg": (encoded(RED, "JPEG", quality=95), (200, 30, 40), 3),
    "cmyk": (encoded(RED, "JPEG", mode="CMYK", quality=95), (200, 30, 40), 6),
    "webp": (encoded(RED, "WEBP", quality=90), (200, 30, 40), 6),
    "bmp": (encoded(RED, "BMP"), (200, 30, 40), 0),
    "tiff": (encoded(RED, "TIFF"), (200, 30, 40), 0),
}


@pytest.mark.parametrize(("content", "color", "tolerance"), KINDS.values(), ids=KINDS)
def test_every_kind_of_image_becomes_rgb(content, color, tolerance):
    found = pixels(content).astype(int)
    assert np.abs(found - np.array(color)).max() <= tolerance


def test_a_file_that_is_another_thing_than_its_name_says_starts_no_other_program():
    """Pillow hands PostScript to Ghostscript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnidentifiedImageError):
        reduced(postscript)


def test_an_image_too_large_to_be_one_is_refused():
    huge = encoded(np.zeros((11_000, 11_000), np.uint8), mode="1")
    with pytest.raises(Warning, match="could be decompression bomb"):
        reduced(huge)


def test_fractions_and_32_bits_are_refused():
    with pytest.raises(ValueError, match="fractions: convert it to 8 bits"):
        reduced(encoded(GRAY.astype(np.float32), "TIFF"))
    with pytest.raises(ValueError, match="32 bits: convert it to 8 or 16"):
        reduced(encoded(GRAY.astype(np.int32) << 16, "TIFF"))
    with pytest.raises(ValueError, match="32 bits, of which 8 are used: convert it to 8"):
        reduced(encoded(GRAY.astype(np.int32), "TIFF"))


def png16(array):
    """Colors of 16 bits, (height, width, 3), which Pillow cannot write."""
    height, width, _ = array.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)  # a filter of 0 before each row
    rows[:, 1:] = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes())),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [*chunks, (b"IEND", b"")]
    )


def tiff16(array, white_is_zero=False, order="<"):
    """Gray of 16 bits, with a sign or not, which Pillow writes in one way only."""
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    long = {256: array.shape[1], 257: array.shape[0], 273: 8, 278: array.shape[0], 279: len(data)}
    short = {258: 16, 259: 1, 262: 0 if white_is_zero else 1, 277: 1, 339: 2 if array.dtype.kind == "i" else 1}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", long[tag])
        if tag in long
        else struct.pack(f"{order}HHIHH", tag, 3, 1, short[tag], 0)
        for tag in sorted({**long, **short})
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", 10) + entries + bytes(4)


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint16)
COLORS = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint16)


@pytest.mark.parametrize("used", [8, 10, 12, 14])
@pytest.mark.parametrize("write", [encoded, lambda a: encoded(a, "TIFF"), tiff16, lambda a: tiff16(a, order=">")])
def test_16_bits_of_which_fewer_are_used_are_refused(write, used):
    with pytest.raises(ValueError, match=f"its pixels have 16 bits, of which {used} are used: convert it to 8"):
        reduced(write(NOISE << (used - 8)))


@pytest.mark.parametrize("used", [8, 10, 12, 14])
def test_32_bits_of_which_fewer_than_16_are_used_are_refused(used):
    with pytest.raises(ValueError, match=f"of which {used} are used: convert it to 8"):
        reduced(encoded(NOISE.astype(np.int32) << (used - 8), "TIFF"))


@pytest.mark.parametrize("used", [8, 10, 12, 14])
def test_16_bits_of_color_of_which_fewer_are_used_are_refused(used):
    with pytest.raises(ValueError, match=f"its pixels have 16 bits, of which {used} are used"):
        reduced(png16(COLORS << (used - 8)))


@pytest.mark.parametrize("white", [0xFFFF, 0x7FFF])
def test_16_bits_that_are_used_are_cut_to_the_upper_8(white):
    gray, colors = (each.astype(np.uint32) * white // 255 for each in (NOISE, COLORS))
    for content in (encoded(gray.astype(np.uint16)), tiff16(gray.astype(np.uint16), order=">")):
        assert (pixels(content) == (gray >> 8)[:, :, None]).all()
    assert (pixels(png16(colors)) == colors >> 8).all()


def test_numbers_with_a_sign_and_an_inverted_scale_are_refused():
    """Pillow would take the first for half as bright, and the second for its negative."""
    with pytest.raises(ValueError, match="numbers with a sign: convert it to 8 bits"):
        reduced(tiff16((NOISE * 128).astype(np.int16)))
    with pytest.raises(ValueError, match="16 bits, of which 0 is white: convert it to 8"):
        reduced(tiff16(NOISE * 257, white_is_zero=True))


@pytest.mark.parametrize("each", [2, 700])  # decoded here, and by processes
def test_a_dark_image_and_a_black_one_are_dark_among_others_that_are_not(tmp_path, each):
    (tmp_path / "a").mkdir()
    contents = [encoded(NOISE * 8), encoded(NOISE * 0), *[encoded(NOISE * 257)] * (2 * each - 2)]
    for number, content in enumerate(contents):
        (tmp_path / "a" / f"{number:04}.png").write_bytes(content)
    found = np.frombuffer(b"".join(decoded(tmp_path, listing(tmp_path).names, processes=2)), np.uint8)
    found = found.reshape(-1, 32, 32, 3)[..., 0]
    assert (found[:3] == np.stack([NOISE * 8 >> 8, NOISE * 0, NOISE])).all()


@pytest.mark.parametrize("each", [2, 700])
def test_a_data_set_that_does_not_use_its_16_bits_is_refused_by_its_brightest_image(tmp_path, each):
    (tmp_path / "a").mkdir()
    for number in range(2 * each):
        (tmp_path / "a" / f"{number:04}.png").write_bytes(encoded(NOISE * (16 if number == each else 5)))
    with pytest.raises(
        DataError, match=rf"use 12 of them at most \(the brightest is 'a/{each:04}\.png'\).*convert them to 8"
    ):
        list(decoded(tmp_path, listing(tmp_path).names, processes=2))


@pytest.mark.parametrize("packed", [True, False])
def test_processes_give_what_this_one_gives_in_the_same_order(tmp_path, packed):
    source = class_folders(tmp_path / "set", classes=50, each=25)  # enough to be worth processes
    names = listing(source).names
    here = b"".join(reduced((source / name).read_bytes()) for name in names)
    if packed:
        source = zipped(source, tmp_path / "set.zip")
    assert b"".join(decoded(source, names, processes=2)) == here


def test_an_image_that_a_process_cannot_read_is_named(tmp_path):
    source = class_folders(tmp_path, classes=50, each=25)
    (source / "class3" / "017.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"'class3/017\.png' cannot be read as an image \(UnidentifiedImageError"):
        list(decoded(source, listing(source).names, processes=2))


def test_a_process_that_dies_is_an_error_that_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr("pliant.data.decode._COMMAND", "import os; os._exit(1)")
    source = class_folders(tmp_path, classes=50, each=25)
    with pytest.raises(DataError, match=r"a decoder died somewhere from 'class0/000\.png' to "):
        list(decoded(source, listing(source).names, processes=2))


def test_a_truncated_image_is_named(tmp_path):
    image(tmp_path / "a" / "1.jpg", size=(200, 200))
    file = tmp_path / "a" / "1.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"'a/1\.jpg' cannot be read as an image \(OSError: .*truncated"):
        list(decoded(tmp_path, ["a/1.jpg"]))


def test_an_image_whose_checksum_in_the_zip_is_wrong_is_named(tmp_path):
    path = zipped(class_folders(tmp_path / "set"), tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 6  # stored uncompressed, so this is within the first image
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip: 'class0/000\.png' cannot be read .*Bad CRC-32"):
        list(decoded(path, listing(path).names))


def test_a_script_without_a_main_guard_may_prepare(tmp_path):
    class_folders(tmp_path / "data" / "mine", classes=50, each=25)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom pliant.data import load\nprint(len(load('mine', Path('data')).train))"
    )
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.stdout, ended.stderr) == ("1250\n", "")
