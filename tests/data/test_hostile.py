"""Files that somebody else made, by accident or on purpose: one `DataError` that names the file, and nothing else happens."""

import errno
import fcntl
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

from pliant.data import DataError, add, load
from pliant.data.listing import listing
from pliant.data.sets import known_sets
from tests.data.makers import class_folders, image, zipped


@pytest.fixture
def folder(tmp_path):
    return class_folders(tmp_path / "set", classes=2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(path, name, content=b"x", **fields):
    """A zip with one file, whose entry in the table has these fields."""
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, content)
    return path


def changed(path, offset, value):
    """The zip with bytes of its table's first entry changed."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


def doubled(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/1.png", b"y")
    return path


def garbled(path):
    """A name that says it is UTF-8 and is not."""
    path = entry(path, "cat/ö.png")
    content = path.read_bytes().replace("ö".encode(), b"\xff\xfe")
    path.write_bytes(content)
    return path


def nested(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/inner.zip", b"PK\x05\x06" + bytes(18))
    return path


ZIPS = {
    "of a version to come": (lambda path: changed(entry(path, "cat/1.png"), 6, b"\x63"), "version 9.9"),
    "encrypted": (lambda path: changed(entry(path, "cat/1.png"), 8, b"\x01"), "is encrypted"),
    "with a link": (lambda path: entry(path, "cat/1.png", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16), "a link"),
    "with a name twice": (doubled, "is in it twice"),
    "with a name of broken UTF-8": (garbled, "damaged"),
    "that says it is large": (lambda path: changed(entry(path, "cat/1.png"), 24, b"\xf0\xff\xff\xff"), "an image may have"),
    "that leads out of its folder": (lambda path: entry(path, "../../cat/1.png"), "holds no images"),
    "with a zip": (nested, "holds no images"),
    "of an unknown compression": (lambda path: changed(entry(path, "cat/1.png"), 10, b"\x63"), "cannot be read as an"),
    "whose table points elsewhere": (lambda path: changed(entry(path, "cat/1.png"), 42, b"\xff\xff\xff\x7f"), "cannot be"),
    "that is empty": (lambda path: (path.write_bytes(b""), path)[1], "no zip"),
    "that is a picture": (lambda path: (path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9), path)[1], "no zip"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), ZIPS.values(), ids=ZIPS)
def test_a_zip(tmp_path, cache, make, message):
    with pytest.raises(DataError, match=rf"z\.zip.*({message})") as refused:
        add("mine", make(tmp_path / "z.zip"))
    assert "\n" not in str(refused.value)
    assert not list(cache.rglob("*.npy"))


def test_a_name_that_begins_at_the_root_stays_within_the_zip(tmp_path, cache):
    image(tmp_path / "1.png")
    path = entry(tmp_path / "z.zip", "/cat/1.png", (tmp_path / "1.png").read_bytes())
    assert add("mine", path).train.classes == ("cat",)


def test_files_that_are_cut_at_any_place(tmp_path, cache, folder):
    whole = zipped(folder, tmp_path / "whole.zip").read_bytes()
    for keep in range(0, len(whole), 97):
        path = tmp_path / "z.zip"
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=r"z\.zip"):
            add("mine", path)


def test_files_with_any_byte_changed(tmp_path, cache, folder):
    """Names, images or an error: never another exception."""
    whole = zipped(folder, tmp_path / "whole.zip").read_bytes()
    draw, refused = np.random.default_rng(0), 0
    for place in [*range(len(whole) - 200, len(whole)), *draw.integers(0, len(whole), 150)]:
        content = bytearray(whole)
        content[place] ^= 1 << draw.integers(8)
        (tmp_path / "z.zip").write_bytes(content)
        try:
            add("mine", tmp_path / "z.zip")
        except DataError as error:
            assert "z.zip" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def bomb(width, height):
    """A small PNG that says it is large."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


IMAGES = {
    "that says it is huge": bomb(2**31 - 1, 2**31 - 1),
    "that says it is large": bomb(30_000, 30_000),
    "that has no width": bomb(0, 5),
    "that ends early": bomb(100, 100),
    "that runs a program elsewhere": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/owned) (w) file",
    "that is nothing": b"",
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_an_image(folder, cache, content):
    (folder / "class0" / "000.png").write_bytes(content)
    with pytest.raises(DataError, match=r"'class0/000\.png' cannot be read as an image"):
        add("mine", folder)


def test_a_file_of_a_folder_that_is_too_large_is_not_read(folder, cache):
    with open(folder / "class0" / "000.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"'class0/000\.png' has 1,099,511,627,776 bytes"):
        add("mine", folder)


def test_a_pipe_and_a_broken_link_are_no_images(folder, cache):
    before = listing(folder).train
    os.mkfifo(folder / "class0" / "pipe.png")
    os.symlink("nowhere", folder / "class0" / "link.png")
    assert listing(folder).train == before


REGISTERS = {
    "not UTF-8": b"\xff\xfe",
    "no JSON": b"{",
    "a list": b'["ab"]',
    "a list of pairs": b'[["a", "/tmp"]]',
    "a text": b'"ab"',
    "null": b"null",
    "a path that is a number": b'{"a": 5}',
    "a path that is null": b'{"a": null}',
    "deep": b"[" * 100_000,
    "a long number": b'{"a": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", REGISTERS.values(), ids=REGISTERS)
def test_a_register(folder, cache, content):
    cache.mkdir()
    (cache / "sets.json").write_bytes(content)
    for use in (known_sets, lambda: load("mine"), lambda: add("mine", folder)):
        with pytest.raises(DataError, match=r"sets\.json is damaged: delete it"):
            use()
    assert (cache / "sets.json").read_bytes() == content


def test_a_register_that_is_a_folder(cache):
    (cache / "sets.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"sets\.json"):
        known_sets()


def test_what_is_recorded_of_a_prepared_set_may_be_anything(folder, cache):
    add("mine", folder)
    [facts] = cache.rglob("set.json")
    right = json.loads(facts.read_text())
    wrong = [{**right, key: value} for key in right for value in (None, "x", -1, [1], 1e300, {})]
    contents = [*(json.dumps(each).encode() for each in wrong if each != right), b"[" * 100_000, b"\xff", b"[]", b"5"]
    for content in contents:
        facts.write_bytes(content)
        assert all(known.name for known in known_sets())
        assert len(load("mine").train) > 0  # made again
    assert json.loads(facts.read_text()) == right


def test_labels_that_say_they_are_many_are_made_again(folder, cache):
    images = add("mine", folder)
    [labels] = cache.rglob("labels.npy")
    with open(labels, "wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
        np.lib.format.write_array_header_1_0(file, header)
    assert load("mine").sha256 == images.sha256


def test_without_locks_the_folder_is_named_and_nothing_is_waited_for(folder, cache, monkeypatch):
    def flock(*given):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DataError, match=rf"the file system of {cache}/prepared gives no locks"):
        add("mine", folder)
    monkeypatch.setenv("PLIANT_NO_LOCKS", "1")
    assert len(add("mine", folder).train) > 0


@pytest.mark.parametrize("name", ["prepared/mine.lock", "sets.lock", "sets.json"])
def test_nothing_is_written_through_a_link(folder, cache, tmp_path, name):
    mine = tmp_path / "mine.txt"
    mine.write_text("{}")
    (cache / name).parent.mkdir(parents=True)
    (cache / name).symlink_to(mine)
    try:
        add("mine", folder)
    except DataError as error:
        assert "link" in str(error)  # noqa: PT017
    assert mine.read_text() == "{}"


def test_a_path_that_is_not_utf_8_is_printed(folder, cache, tmp_path):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/s\xff")
    os.rename(folder, strange)
    for command in (["data", "add", "mine", strange], ["data", "list"], ["data", "add", "1mine?", strange + "x"]):
        ended = subprocess.run(
            [sys.executable, "-m", "pliant.cli", *command], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == (2 if "1mine?" in command else 0)
