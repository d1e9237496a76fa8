"""Images are reduced once and kept: whole, checked at every opening, by one process at a time."""

import json
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from pliant.data import DataError, fingerprint, load
from tests.data.makers import class_folders, image, zipped
from tests.patience import PATIENCE

pytestmark = pytest.mark.faults


@pytest.fixture
def mine(tmp_path):
    """A folder of data sets that holds `mine`: 3 classes of 2 images."""
    class_folders(tmp_path / "data" / "mine")
    return tmp_path / "data"


def kept(cache):
    """The one folder of prepared images."""
    (folder,) = (path for path in (cache / "prepared").iterdir() if path.is_dir())
    return folder


def test_images_are_found_by_the_name_of_their_folder(mine):
    images = load("mine", mine)
    assert images.train.pixels.shape == (6, 32, 32, 3)
    assert images.train.pixels[:, 0, 0].tolist() == [[c, i, 200] for c in range(3) for i in range(2)]
    assert images.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.train.classes == ("class0", "class1", "class2")
    assert images.test is None


def test_a_zip_of_them_is_the_same_data_set(mine):
    before = load("mine", mine).sha256
    zipped(mine / "mine", mine / "packed.zip")
    assert load("packed", mine).sha256 == before


def test_a_set_with_a_test_set_keeps_both(tmp_path):
    class_folders(tmp_path / "both" / "train")
    class_folders(tmp_path / "both" / "val", each=1)
    for _ in range(2):  # prepared, then opened
        images = load("both", tmp_path)
        assert (len(images.train), len(images.test)) == (6, 3)
        assert images.test.pixels[:, 0, 0].tolist() == [[0, 0, 200], [1, 0, 200], [2, 0, 200]]


def is_mapped(array):
    return isinstance(array, (np.memmap, mmap.mmap)) or (isinstance(array, np.ndarray) and is_mapped(array.base))


def test_opening_again_decodes_nothing_and_maps_the_same_bytes(mine, monkeypatch):
    first = load("mine", mine)
    monkeypatch.setattr("pliant.data.prepared.decoded", None)
    again = load("mine", mine)
    assert again.sha256 == first.sha256 == fingerprint(again.train, None)
    assert is_mapped(again.train.pixels)


def test_writing_to_the_pixels_never_reaches_the_disk(mine, cache):
    images = load("mine", mine)
    before = (kept(cache) / "pixels.npy").read_bytes()
    images.train.pixels[:] = 0
    assert images.train.pixels.max() == 0
    assert (kept(cache) / "pixels.npy").read_bytes() == before


def test_a_changed_folder_is_prepared_anew(mine):
    before = load("mine", mine)
    image(mine / "mine" / "class1" / "000.png", (9, 9, 9))
    os.utime(mine / "mine" / "class1" / "000.png", (1e9, 1e9))
    after = load("mine", mine)
    assert after.sha256 != before.sha256
    assert after.train.pixels[2, 0, 0].tolist() == [9, 9, 9]


def tamper_pixel(folder):
    with open(folder / "pixels.npy", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff")


def truncate_pixels(folder):
    os.truncate(folder / "pixels.npy", 5000)


def tamper_label(folder):
    labels = np.load(folder / "labels.npy")
    labels[0] = 2
    np.save(folder / "labels.npy", labels)


def drop_labels(folder):
    (folder / "labels.npy").unlink()


def drop_facts(folder):
    (folder / "set.json").unlink()


def garble_facts(folder):
    (folder / "set.json").write_text("{")


def tamper_counts(folder):
    facts = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps({**facts, "train": 5}))


def older_format(folder):
    facts = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps({**facts, "format": 0}))


DAMAGES = [
    tamper_pixel,
    truncate_pixels,
    tamper_label,
    drop_labels,
    drop_facts,
    garble_facts,
    tamper_counts,
    older_format,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_in_the_cache_is_said_and_made_again(mine, cache, caplog, damage):
    before = load("mine", mine)
    damage(kept(cache))
    with caplog.at_level(logging.WARNING):
        after = load("mine", mine)
    assert "is damaged" in caplog.text
    assert after.sha256 == before.sha256 == fingerprint(after.train, None)
    assert after.train.pixels[5, 0, 0].tolist() == [2, 1, 200]


def test_an_image_that_cannot_be_read_leaves_nothing_behind(mine, cache):
    (mine / "mine" / "class2" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"mine: 'class2/001\.png' cannot be read as an image"):
        load("mine", mine)
    assert [path.name for path in (cache / "prepared").iterdir()] == ["mine.lock"]


def test_what_a_killed_process_left_is_cleared_away(mine, cache):
    load("mine", mine)
    folder = kept(cache)
    leftover = folder.rename(folder.with_name(f"{folder.name}.1.tmp"))
    (leftover / "set.json").unlink()
    assert len(load("mine", mine).train) == 6
    assert kept(cache) == folder


def test_a_cache_that_may_only_be_read_serves_what_it_holds(mine, monkeypatch):
    load("mine", mine)
    monkeypatch.setattr("pliant.data.prepared.locked", None)  # a lock is a file, and could not be made
    assert len(load("mine", mine).train) == 6


def test_without_a_place_to_write_the_error_names_the_variable(mine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write .*Let .PLIANT_CACHE name a folder that can be written"):
        load("mine", mine)


LOAD = """
import logging, sys
from pathlib import Path
logging.basicConfig(level="INFO", format="%(message)s")
from pliant.data import load
print(load("many", Path(sys.argv[1])).sha256)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,500 images: enough for processes to be started."""
    folder = tmp_path_factory.mktemp("many")
    class_folders(folder / "many", classes=60, each=25)
    return folder


HELD = """
import sys
from pliant.data import prepared
decoded = prepared.decoded
def held(*arguments):
    for number, chunk in enumerate(decoded(*arguments)):
        yield chunk
        if number == 0:
            print("at work", flush=True)
            sys.stdin.readline()
prepared.decoded = held
"""


def loading(folder, before=""):
    command = [sys.executable, "-c", before + LOAD, str(folder)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True, env=dict(os.environ))


@pytest.fixture
def at_work(many, cache):
    """A process that has written some of the images of `many`, and goes on when it is told to."""
    process = loading(many, HELD)
    assert process.stdout.readline() == "at work\n"
    assert list((cache / "prepared").glob("many-*.tmp/pixels.npy"))
    yield process
    process.kill()
    process.communicate()


def test_two_processes_that_prepare_one_set_at_once_prepare_it_once(at_work, many, cache):
    second = loading(many)
    assert second.stderr.readline() == "another process is at work on many: waiting for it\n"
    said = [process.communicate("go on\n", timeout=PATIENCE) for process in (at_work, second)]
    assert [at_work.returncode, second.returncode] == [0, 0], said
    assert said[0][0] == said[1][0] == f"{load('many', many).sha256}\n"
    log = said[0][1] + said[1][1]
    assert log.count("preparing 1,500 images") == 1
    assert sorted(path.name for path in kept(cache).iterdir()) == ["labels.npy", "pixels.npy", "set.json"]


def test_a_process_killed_while_it_prepares_leaves_neither_lock_nor_half_a_set(at_work, many, cache):
    at_work.send_signal(signal.SIGKILL)
    at_work.communicate()
    assert list((cache / "prepared").glob("many-*.tmp/pixels.npy"))
    assert not list((cache / "prepared").glob("many-*/set.json"))
    assert len(load("many", many).train) == 1500
    assert sorted(path.name for path in kept(cache).iterdir()) == ["labels.npy", "pixels.npy", "set.json"]


def test_removing_the_cache_costs_only_time(mine, cache):
    before = load("mine", mine).sha256
    shutil.rmtree(cache)
    assert load("mine", mine).sha256 == before
