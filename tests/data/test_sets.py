"""A data set by its name: where it is looked for, what is known, and real data where there is any."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from pliant.data import DataError, Images, add, available, image_set, known_sets, load, where
from pliant.data.catalog import CATALOG, File
from pliant.data.decode import reduced
from pliant.data.listing import listing, open_zip
from tests.data.makers import class_folders, sha256, tiny_imagenet, zipped

REAL = Path(os.environ.get("PLIANT_DATA", "nowhere")).absolute()


def test_the_folder_asked_for_comes_before_the_variable_and_that_before_what_was_added(tmp_path, monkeypatch):
    for number, place in enumerate(["added", "variable/mine", "asked/mine"], start=1):
        class_folders(tmp_path / place, classes=number)
    add("mine", tmp_path / "added")
    assert len(load("mine").train.classes) == 1
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "variable"))
    assert len(load("mine").train.classes) == 2
    assert len(load("mine", tmp_path / "asked").train.classes) == 3
    assert len(load("mine", tmp_path).train.classes) == 2


def test_what_was_added_and_is_gone_is_named(tmp_path):
    add("mine", zipped(class_folders(tmp_path / "set"), tmp_path / "set.zip"))
    (tmp_path / "set.zip").unlink()
    with pytest.raises(DataError, match=r"there is no .*set\.zip"):
        load("mine")


def test_a_name_that_nobody_knows_is_an_error_that_says_what_is_near(tmp_path):
    class_folders(tmp_path / "flowers")
    with pytest.raises(DataError) as raised:
        load("flower", tmp_path)
    assert "data set 'flower' (did you mean 'flowers'?) is missing; looked for in " in str(raised.value)
    assert f"{tmp_path / 'flower.zip'}, {tmp_path / 'flower'}" in str(raised.value)
    assert str(raised.value).endswith("To get it: pliant data add flower FOLDER-OR-ZIP")


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".hidden", "a b"])
def test_a_name_is_not_a_path(name, tmp_path):
    with pytest.raises(DataError, match="cannot name a data set"):
        load(name)
    with pytest.raises(DataError, match="cannot name a data set"):
        add(name, class_folders(tmp_path))


def test_a_set_with_files_of_its_own_cannot_be_added(tmp_path):
    with pytest.raises(DataError, match="'cifar-10' is read from its published files"):
        add("cifar-10", class_folders(tmp_path))


def test_a_name_that_means_other_images_already_cannot_be_added(tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path))
    class_folders(tmp_path / "mine")
    class_folders(tmp_path / "elsewhere" / "others", classes=3)
    with pytest.raises(DataError, match=r"'mine' already means .*mine, which is looked for first: move that away"):
        add("mine", tmp_path / "elsewhere" / "others")
    add("mine", tmp_path / "mine")
    add("yours", tmp_path / "elsewhere" / "others")
    add("yours", tmp_path / "mine")
    assert len(load("yours").train.classes) == len(load("mine").train.classes)


def test_images_that_cannot_be_read_are_not_added(tmp_path):
    (class_folders(tmp_path / "set") / "class0" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as an image"):
        add("mine", tmp_path / "set")
    assert where("mine") is None


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "mine"))

    class_folders(tmp_path / "mine")
    monkeypatch.setattr("pliant.data.sets.listing", forbidden)
    with pytest.raises(DataError, match=r"cannot read .*mine: Permission denied"):
        load("mine", tmp_path)


def test_a_damaged_register_is_named(cache):
    cache.mkdir()
    (cache / "sets.json").write_text("[1")
    with pytest.raises(DataError, match=r"sets\.json is damaged: delete it"):
        load("mine")


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_is_read_packed_or_not(tmp_path, monkeypatch, packed):
    root = tiny_imagenet(tmp_path)
    file = CATALOG["tiny-imagenet"].files[0]
    if packed:
        path = zipped(root, tmp_path / "tiny-imagenet-200.zip", root="tiny-imagenet-200/")
        root.rename(tmp_path / "elsewhere")
        file = File(path.name, sha256(path.read_bytes()), 0.001)
    entry = dataclasses.replace(CATALOG["tiny-imagenet"], train=4, test=3, classes=2, files=(file,))
    monkeypatch.setitem(CATALOG, "tiny-imagenet", entry)
    images = load("tiny-imagenet", tmp_path, download=False)
    assert images.train.labels.tolist() == [0, 0, 1, 1]
    assert images.test.labels.tolist() == [0, 1, 1]
    assert abs(images.train.pixels[3, 9, 9].astype(int) - [100, 10, 10]).max() <= 3


def test_another_zip_under_the_published_name_is_refused(tmp_path):
    zipped(tiny_imagenet(tmp_path / "made"), tmp_path / "tiny-imagenet-200.zip")
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip is not the published file"):
        load("tiny-imagenet", tmp_path, download=False)


def test_a_part_of_a_known_set_is_refused_under_its_name(tmp_path):
    with pytest.raises(
        DataError, match=r"holds 3 classes, 6 training images .*imagenet has 1,000, 1,281,167 and 50,000\. A part"
    ):
        add("imagenet", class_folders(tmp_path))


def test_what_cannot_be_downloaded_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"imagenet.* is missing; looked for in .*image-net\.org/download"):
        load("imagenet", tmp_path)


def test_known_sets_are_the_catalog_what_was_added_and_what_lies_in_the_folders(tmp_path):
    add("flowers", class_folders(tmp_path / "elsewhere"))
    class_folders(tmp_path / "data" / "birds")
    (tmp_path / "data" / "mnist").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    known = {each.name: each for each in known_sets(tmp_path / "data")}
    assert list(known) == [*CATALOG, "birds", "flowers"]
    assert (known["flowers"].where, known["flowers"].images) == (tmp_path / "elsewhere", 6)
    assert (known["birds"].where, known["birds"].images) == (tmp_path / "data" / "birds", None)
    assert (known["mnist"].where, known["mnist"].license) == (None, "CC BY-SA 3.0")


def test_the_hash_tells_pixels_labels_order_and_shape_apart():
    def sha(pixels, labels, test=None):
        part = Images(np.array(pixels, np.uint8), np.array(labels), ("a", "b"))
        return image_set("x", part, test).sha256

    two = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    whole = Images(np.array(two, np.uint8), np.array([0, 1]), ("a", "b"))
    hashes = [
        sha(two, [0, 1]),
        sha(two, [1, 0]),
        sha(two[::-1], [0, 1]),
        sha([[[1, 2], [3, 4]], [[5, 6], [7, 9]]], [0, 1]),
        sha([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], [0, 1]),
        sha(two, [0, 1], test=whole),
    ]
    assert len(set(hashes)) == len(hashes)
    assert sha(two, [0, 1]) == hashes[0]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), np.array([0, 1]), "pixels are float64"),
        (np.zeros((2, 4, 4, 4), np.uint8), np.array([0, 1]), r"pixels are uint8\[2, 4, 4, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0]), r"labels are int64\[1\]"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 1], np.uint8), "labels are uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 2]), "labels go from 0 to 2, and there are 2 classes"),
        (np.zeros((2, 4, 4), np.uint8), np.array([-1, 0]), "labels go from -1"),
    ],
)
def test_images_and_labels_that_do_not_fit_together_are_refused(pixels, labels, message):
    with pytest.raises(DataError, match=message):
        Images(pixels, labels, ("a", "b"))


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_every_known_set_has_hashes_mirrors_terms_and_a_citation(entry):
    lengths = {"sha256": 64, "md5": 32}
    for file in entry.files:
        for published in (file.hash, file.unpacked):
            assert published is None or len(published.partition(":")[2]) == lengths[published.partition(":")[0]]
    assert bool(entry.files) == bool(entry.mirrors) != bool(entry.how)
    assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in entry.mirrors)
    assert entry.license
    assert entry.citation


@pytest.mark.skipif(not available("mnist", REAL), reason="MNIST is not in $PLIANT_DATA")
def test_the_real_mnist_has_the_published_hashes():
    images = load("mnist", REAL, download=False)
    assert images.train.pixels.shape == (60_000, 28, 28)
    assert images.test.pixels.shape == (10_000, 28, 28)
    assert images.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(images.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.skipif(not available("tiny-imagenet-32", REAL), reason="tiny-imagenet-32.zip is not in $PLIANT_DATA")
def test_the_real_tiny_imagenet_32_has_550_images_of_each_of_200_classes():
    source = where("tiny-imagenet-32", REAL)
    found = listing(source)
    assert np.bincount([label for _, label in found.train]).tolist() == [550] * 200
    assert found.train[550] == (f"{found.classes[1]}/000.webp", 1)
    with open_zip(source) as archive:
        assert np.frombuffer(reduced(archive.read(found.train[0][0])), np.uint8).std() > 10
