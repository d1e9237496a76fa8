"""Which images there are, of which class, and which are for the test."""

import hashlib
import os
import zipfile

import pytest

from pliant.data import DataError
from pliant.data.listing import listing
from tests.data.makers import class_folders, image, tiny_imagenet, zipped


def test_class_folders_are_ordered_by_class_then_file_name(tmp_path):
    for name in ["b/2.png", "b/10.png", "a/9.png", "c/1.PNG"]:
        image(tmp_path / name)
    found = listing(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert found.train == (("a/9.png", 0), ("b/10.png", 1), ("b/2.png", 1), ("c/1.PNG", 2))
    assert found.test == ()


def test_a_zip_lists_what_its_folder_lists(tmp_path):
    folder = class_folders(tmp_path / "set")
    packed = listing(zipped(folder, tmp_path / "set.zip"))
    assert (packed.classes, packed.train) == (listing(folder).classes, listing(folder).train)


def test_folders_around_the_classes_do_not_matter(tmp_path):
    folder = class_folders(tmp_path / "set")
    packed = listing(zipped(folder, tmp_path / "set.zip", root="mine/pictures/"))
    assert packed.classes == ("class0", "class1", "class2")
    assert packed.train[0] == ("mine/pictures/class0/000.png", 0)


def test_a_single_class_is_a_class(tmp_path):
    class_folders(tmp_path, classes=1)
    assert listing(tmp_path).classes == ("class0",)


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_as_published_takes_val_as_its_test_set(tmp_path, packed):
    root = tiny_imagenet(tmp_path)
    source = zipped(root, tmp_path / "tiny.zip", root="tiny-imagenet-200/") if packed else root
    found = listing(source)
    prefix = "tiny-imagenet-200/" if packed else ""
    assert found.classes == ("n01", "n02")
    assert [label for _, label in found.train] == [0, 0, 1, 1]
    names = [(name.removeprefix(prefix), label) for name, label in found.test]
    assert names == [("val/images/val_1.JPEG", 0), ("val/images/val_0.JPEG", 1), ("val/images/val_2.JPEG", 1)]


@pytest.mark.parametrize("tested", ["val", "test", "valid", "validation", "Valid", "TEST"])
@pytest.mark.parametrize("packed", [True, False])
def test_train_and_val_or_test_with_class_folders_in_each(tmp_path, tested, packed):
    class_folders(tmp_path / "set" / "train")
    class_folders(tmp_path / "set" / tested, classes=2, each=1)
    found = listing(zipped(tmp_path / "set", tmp_path / "set.zip", root="mine/") if packed else tmp_path / "set")
    root = "mine/" if packed else ""
    assert len(found.train) == 6
    assert found.test == ((f"{root}{tested}/class0/000.png", 0), (f"{root}{tested}/class1/000.png", 1))


@pytest.mark.parametrize("tested", ["val", "valid", "validation"])
def test_validation_is_the_test_set_where_a_test_lies_beside_it_and_this_is_said(tmp_path, tested, caplog):
    for folder in ("train", "test", tested):
        class_folders(tmp_path / folder)
    with caplog.at_level("INFO", "pliant.data"):
        assert {name.partition("/")[0] for name, _ in listing(tmp_path).test} == {tested}
    assert f"6 images are neither in train/ nor in {tested}/, and are left out" in caplog.messages
    assert (f"{tested}/ is taken for the test set" in caplog.messages) == (tested != "val")


@pytest.mark.parametrize("pair", [("val", "valid"), ("valid", "validation"), ("Val", "val"), ("Test", "test")])
def test_two_test_sets_are_refused(tmp_path, pair):
    for folder in ("train", *pair):
        class_folders(tmp_path / folder)
    with pytest.raises(DataError, match=r"/ and .*/ lie beside train/: keep one test set"):
        listing(tmp_path)


@pytest.mark.parametrize("other", ["testing", "dev", "eval", "evaluation", "holdout", "val_images", "Training"])
def test_a_folder_beside_train_that_may_be_the_test_set_must_be_told(tmp_path, other):
    for folder in ("train", other):
        class_folders(tmp_path / folder)
    with pytest.raises(DataError, match=f"{other}/ beside train/: if that is the test set"):
        listing(tmp_path)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation"), ("train_images", "val_images")])
def test_parts_of_other_names_are_refused_not_mixed(tmp_path, names):
    for folder in names:
        class_folders(tmp_path / folder)
    with pytest.raises(DataError, match=r"the class of .* or train/ and val/ with class folders in each"):
        listing(tmp_path)


@pytest.mark.parametrize(("tested", "again"), [("valid", True), ("val", False)])
def test_a_set_that_was_prepared_without_its_test_set_is_prepared_again(tmp_path, tested, again):
    names = [f"{folder}/{label}/1.jpg" for folder in ("train", tested) for label in ("a", "b")]
    for name in names:
        image(tmp_path / name)
    stats = [(name, (tmp_path / name).stat()) for name in sorted(names)]
    before = "\n".join(f"{name}\t{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    assert (listing(tmp_path).key != hashlib.sha256(before.encode()).hexdigest()) == again


def test_train_alone_has_no_test_set(tmp_path):
    class_folders(tmp_path / "train")
    assert (len(listing(tmp_path).train), listing(tmp_path).test) == (6, ())


def test_hidden_files_and_other_files_are_not_looked_at(tmp_path):
    class_folders(tmp_path)
    before = listing(tmp_path)
    image(tmp_path / "__MACOSX" / "class0" / "000.png")
    (tmp_path / "class0" / "._000.png").write_bytes(b"?")
    (tmp_path / "class0" / "notes.txt").write_text("notes")
    assert listing(tmp_path) == before


def test_the_key_changes_with_a_name_a_size_a_time_and_a_checksum(tmp_path):
    folder = class_folders(tmp_path / "set")
    file = folder / "class0" / "000.png"
    keys = [listing(folder).key]
    assert listing(folder).key == keys[0]
    os.utime(file, (1e9, 1e9))
    keys.append(listing(folder).key)
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, (1e9, 1e9))
    keys.append(listing(folder).key)
    keys.append(listing(zipped(folder, tmp_path / "one.zip")).key)
    file.write_bytes(file.read_bytes()[:-1] + b"\1")  # as long as before
    keys.append(listing(zipped(folder, tmp_path / "two.zip")).key)
    file.rename(folder / "class0" / "0000.png")
    keys.append(listing(folder).key)
    assert len(set(keys)) == len(keys)


def test_an_image_whose_class_cannot_be_told_is_named(tmp_path):
    class_folders(tmp_path)
    image(tmp_path / "class0" / "more" / "1.png")
    with pytest.raises(DataError, match=r"the class of 'class0/more/1\.png' is unknown: give class folders"):
        listing(tmp_path)


def test_images_without_folders_are_refused(tmp_path):
    image(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"the class of '1\.png'"):
        listing(tmp_path)


def test_a_test_class_that_nobody_learns_is_named(tmp_path):
    class_folders(tmp_path / "train", classes=2)
    class_folders(tmp_path / "val", classes=3)
    with pytest.raises(DataError, match="class 'class2' of the test set is none of the 2 training classes"):
        listing(tmp_path)


def test_an_image_that_the_annotations_leave_out_is_named(tmp_path):
    root = tiny_imagenet(tmp_path)
    image(root / "val" / "images" / "val_9.JPEG")
    with pytest.raises(DataError, match=r"does not tell the class of 'val/images/val_9\.JPEG'"):
        listing(root)


def test_annotations_that_are_no_text_are_named(tmp_path):
    root = tiny_imagenet(tmp_path)
    (root / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"val/val_annotations\.txt is not UTF-8"):
        listing(root)


def test_an_image_that_unpacks_without_bound_is_named_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes((1 << 26) + 1))
    with pytest.raises(DataError, match=r"'cat/1\.png' has 67,108,865 bytes"):
        listing(tmp_path / "bomb.zip")


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_a_truncated_zip_is_named(tmp_path, keep):
    path = zipped(class_folders(tmp_path / "set"), tmp_path / "set.zip")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"set\.zip is truncated, damaged or no zip"):
        listing(path)


def test_nothing_and_no_images_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*nowhere: give a zip or folder"):
        listing(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        listing(tmp_path / "empty")


def test_a_loop_of_links_ends(tmp_path):
    class_folders(tmp_path / "set")
    (tmp_path / "set" / "class0" / "loop").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="the class of"):
        listing(tmp_path / "set")
