"""Data files of any bytes: images, or one `DataError` that names the file, and never another exception."""

import dataclasses
import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pliant.data import DataError, add, cifar, idx
from tests.data.makers import batch, class_folders, digits, python2_pickle, sha256, zipped
from tests.data.makers import cifar as cifar_file
from tests.data.makers import idx as idx_file
from tests.fuzz.odd import FEW, MANY, a_sentence


@st.composite
def changed(draw, content):
    """The bytes with some of them changed, cut out or added."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["bit", "byte", "cut", "end", "insert", "copy"]))
        if how == "bit" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + draw(st.integers(1, 64))]
        elif how == "end":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=16))
        elif how == "copy":
            content[at:at] = content[draw(st.integers(0, max(0, len(content) - 1))) :][:64]
    return bytes(content)


DIGITS = idx_file(np.arange(24).reshape(2, 3, 4))


@MANY
@given(content=st.one_of(changed(DIGITS), st.binary(max_size=40)), dimensions=st.sampled_from([1, 3]))
def test_idx(content, dimensions):
    try:
        array = idx.parse(bytearray(content), "a-file", dimensions)
    except DataError as error:
        a_sentence(str(error))
        assert "a-file" in str(error)  # noqa: PT017
    else:
        assert (array.ndim, array.dtype) == (dimensions, np.uint8)


@MANY
@given(data=st.data())
def test_packed_idx(data):
    with tempfile.TemporaryDirectory() as name:
        entry = digits(Path(name))
        files = [Path(name) / file.name for file in entry.files]
        number = data.draw(st.integers(0, 3))
        files[number].write_bytes(data.draw(changed(files[number].read_bytes())))
        if data.draw(st.booleans()):  # as if its hash were not known
            entry = dataclasses.replace(
                entry, files=tuple(dataclasses.replace(file, unpacked=None) for file in entry.files)
            )
        try:
            images = idx.read(files, entry)
        except DataError as error:
            a_sentence(str(error))
            assert str(files[number]) in str(error)  # noqa: PT017
        else:
            assert [len(each) for each in images] == [6, 2]


PICKLES = [
    python2_pickle(batch(3, 0, "labels")), *(pickle.dumps(batch(3, 0, "labels"), protocol) for protocol in range(6)),
    python2_pickle({"label_names": ["a", "b"]}), pickle.dumps({"data": np.zeros((2, 3072), np.uint8, "F"), "labels": [0, 1]}, 4),
]  # fmt: skip


MEMBERS = st.sampled_from(["data_batch_2", "batches.meta"])


@MANY
@given(content=st.one_of(st.sampled_from(PICKLES).flatmap(changed), st.binary(max_size=60)), member=MEMBERS)
def test_cifar(content, member):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cifar.tar.gz"
        entry = cifar_file(path, 10, **{member: content})
        try:
            images = cifar.read(path, entry)
        except DataError as error:
            a_sentence(str(error))
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert [len(each) for each in images] == [10, 2]


@MANY
@given(data=st.data())
def test_packed_cifar(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cifar.tar.gz"
        entry = cifar_file(path, 100)
        path.write_bytes(data.draw(changed(path.read_bytes())))
        file = dataclasses.replace(entry.files[0], hash=sha256(path.read_bytes()))
        try:
            images = cifar.read(path, dataclasses.replace(entry, files=(file,)))
        except DataError as error:
            a_sentence(str(error))
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert [len(each) for each in images] == [10, 2]


def encoded(form, mode="RGB", **options):
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, form, **options)
    return out.getvalue()


def encoded16():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (9, 8), np.uint16)).save(out, "PNG")
    return out.getvalue()


IMAGES = {
    **{
        f"{form}-{mode}": encoded(form, mode)
        for form in ("PNG", "TIFF", "TGA", "BMP")
        for mode in ("RGB", "L", "P", "1")
    },
    **{form: encoded(form) for form in ("JPEG", "WEBP", "PPM", "GIF", "JPEG2000")},
    "PNG-16": encoded16(),
    "TIFF-lzw": encoded("TIFF", compression="tiff_lzw"),
    "TIFF-F": encoded("TIFF", "F"),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))


@MANY
@given(
    content=st.sampled_from(sorted(IMAGES)).flatmap(lambda kind: changed(IMAGES[kind])),
    ending=st.sampled_from(["png", "jpg", "tif", "tga"]),
)
def test_an_image_in_a_folder(content, ending, cache):
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "set" / "cat" / f"1.{ending}"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        try:
            images = add("mine", Path(name) / "set")
        except DataError as error:
            a_sentence(str(error))
            assert f"cat/1.{ending}" in str(error) or str(Path(name) / "set") in str(error)  # noqa: PT017
        else:
            assert images.train.pixels.shape == (1, 32, 32, 3)


@FEW
@given(data=st.data())
def test_a_zip(data, cache):
    with tempfile.TemporaryDirectory() as name:
        path = zipped(class_folders(Path(name) / "set", classes=2), Path(name) / "set.zip")
        if data.draw(st.booleans()):
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(
                    data.draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)) + "/1.png", b""
                )
        path.write_bytes(data.draw(changed(path.read_bytes())))
        try:
            images = add("mine", path)
        except DataError as error:
            a_sentence(str(error))
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert len(images.train)
