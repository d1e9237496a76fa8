"""MNIST and Fashion-MNIST: IDX files, every field of their headers checked."""

import dataclasses
import gzip

import numpy as np
import pytest

from pliant.data import DataError, available, load
from pliant.data.catalog import CATALOG
from pliant.data.idx import parse
from tests.data.makers import digits, idx, sha256


@pytest.mark.parametrize("packed", [True, False])
def test_digits_are_read_packed_or_not(tmp_path, monkeypatch, packed):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "mnist", packed))
    images = load("mnist", tmp_path, download=False)
    expected = np.random.default_rng(0).integers(0, 256, (6, 4, 4))
    assert images.train.pixels.tolist() == expected.tolist()
    assert images.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert images.test.labels.tolist() == [9, 8]
    assert images.train.classes == tuple("0123456789")


def test_a_copy_that_was_compressed_anew_is_the_same_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "mnist"))
    before = load("mnist", tmp_path, download=False).sha256
    for path in (tmp_path / "mnist").iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert load("mnist", tmp_path, download=False).sha256 == before


def test_torchvisions_folder_is_found_too(tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "MNIST" / "raw", packed=False))
    assert available("mnist", tmp_path)
    assert len(load("mnist", tmp_path, download=False).train) == 6


def test_a_changed_pixel_is_noticed_and_the_file_named(tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "mnist", packed=False))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is not the published file"):
        load("mnist", tmp_path, download=False)


def test_a_truncated_gz_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "mnist"))
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is truncated or damaged"):
        load("mnist", tmp_path, download=False)


def test_a_missing_file_is_named_with_the_places_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "mnist"))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as raised:
        load("mnist", tmp_path, download=False)
    assert "train-labels-idx1-ubyte.gz is missing" in str(raised.value)
    assert str(tmp_path / "mnist" / "train-labels-idx1-ubyte") in str(raised.value)
    assert "pliant data fetch mnist" in str(raised.value)
    assert not available("mnist", tmp_path)


def test_a_gz_that_unpacks_without_bound_is_left_alone(tmp_path, monkeypatch):
    digits(tmp_path / "mnist")
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    with gzip.open(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(bytes(70 << 20))
    with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
        load("mnist", tmp_path, download=False)


IMAGES = idx(np.arange(24).reshape(2, 3, 4))
BAD = {
    "magic": (b"\1" + IMAGES[1:], "does not begin with two zero bytes"),
    "type": (IMAGES[:2] + b"\x0d" + IMAGES[3:], "holds type 13 in 3 dimensions, not unsigned bytes"),
    "dimensions": (IMAGES[:3] + b"\1" + IMAGES[4:], "holds type 8 in 1 dimensions, not unsigned bytes .8. in 3"),
    "count": (IMAGES[:4] + (3).to_bytes(4, "big") + IMAGES[8:], "says 3x3x4 and holds 24 bytes of 36"),
    "rows": (IMAGES[:8] + (5).to_bytes(4, "big") + IMAGES[12:], "says 2x5x4 and holds 24 bytes of 40"),
    "columns": (IMAGES[:12] + (1).to_bytes(4, "big") + IMAGES[16:], "says 2x3x1 and holds 24 bytes of 6"),
    "truncated": (IMAGES[:-1], "holds 23 bytes of 24"),
    "excess": (IMAGES + b"\0", "holds 25 bytes of 24"),
    "empty": (b"", "is no IDX file"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_each_field_of_the_header_is_checked(content, message):
    with pytest.raises(DataError, match=message):
        parse(bytearray(content), "images", dimensions=3)


def test_a_sound_file_of_another_set_is_refused(tmp_path, monkeypatch):
    entry = digits(tmp_path / "mnist", packed=False)
    labels = idx(np.arange(5))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(labels)
    files = [entry.files[0], dataclasses.replace(entry.files[1], unpacked=sha256(labels)), *entry.files[2:]]
    monkeypatch.setitem(CATALOG, "mnist", dataclasses.replace(entry, files=tuple(files)))
    with pytest.raises(DataError, match="holds 5 examples and the data set has 6"):
        load("mnist", tmp_path, download=False)
