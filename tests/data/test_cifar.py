"""CIFAR's archives: read where they lie, and unpickled without trust."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from pliant.data import DataError, load
from pliant.data.catalog import CATALOG
from pliant.data.cifar import PlainUnpickler
from tests.data.makers import batch, cifar, python2_pickle


@pytest.mark.parametrize("classes", [10, 100])
def test_an_archive_is_read_in_its_own_order_channels_last(tmp_path, monkeypatch, classes):
    name = f"cifar-{classes}"
    monkeypatch.setitem(CATALOG, name, cifar(tmp_path / f"{name}-python.tar.gz", classes))
    images = load(name, tmp_path, download=False)
    assert images.train.pixels.shape == (10, 32, 32, 3)
    assert images.train.pixels[:, 0, 0, 0].tolist() == list(range(2, 12))  # red numbers the images
    assert images.train.pixels[3, 5, 7].tolist() == [5, 7, 5]  # green is the column, blue the row
    assert images.train.labels.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert images.test.labels.tolist() == [0, 1]
    assert images.train.classes[3] == "kind 3"
    assert len(images.train.classes) == classes


def test_the_archives_are_pickled_as_python_2_did():
    content = python2_pickle(batch(2, 0, "labels"))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content


def test_another_hash_is_refused_before_anything_is_unpickled(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    monkeypatch.setitem(CATALOG, "cifar-10", cifar(path, 10))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is not the published file"):
        load("cifar-10", tmp_path, download=False)


@pytest.mark.parametrize("call", [os.system, eval, subprocess.check_output, np.load])
def test_a_malicious_pickle_runs_nothing_even_under_the_right_hash(tmp_path, monkeypatch, call):
    class Attack:
        def __reduce__(self):
            return call, (f"touch {tmp_path / 'owned'}",)

    attack = pickle.dumps({"data": Attack()}, protocol=2)
    monkeypatch.setitem(CATALOG, "cifar-100", cifar(tmp_path / "cifar-100-python.tar.gz", 100, train=attack))
    with pytest.raises(DataError, match="it may be an attack"):
        load("cifar-100", tmp_path, download=False)
    assert not (tmp_path / "owned").exists()


def test_only_arrays_are_looked_up():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert PlainUnpickler(io.BytesIO(python2_pickle(array)), encoding="latin1").load().tolist() == array.tolist()
    for module, name in [
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("os", "system"),
    ]:
        with pytest.raises(DataError, match=f"it asks for {module}.{name}"):
            PlainUnpickler(io.BytesIO()).find_class(module, name)


BROKEN = {
    "no image": (python2_pickle([1, 2]), "'cifar-100-python/train' is not a table"),
    "no labels": (python2_pickle({"data": np.zeros((10, 3072), np.uint8)}), "KeyError"),
    "another shape": (python2_pickle({**batch(10, 0, "fine_labels"), "data": np.zeros((10, 99), np.uint8)}), "reshape"),
    "another type": (python2_pickle({**batch(10, 0, "fine_labels"), "data": np.zeros((10, 3072))}), "float64"),
    "a label of no class": (
        python2_pickle({**batch(10, 0, "fine_labels"), "fine_labels": [100] * 10}),
        "labels go from",
    ),
    "too few labels": (python2_pickle({**batch(10, 0, "fine_labels"), "fine_labels": [0]}), "labels are"),
    "too few images": (python2_pickle(batch(9, 0, "fine_labels")), "holds 9 examples where there are 10"),
    "garbage": (b"garbage", "UnpicklingError"),
    "nothing": (b"", "EOFError"),
}


@pytest.mark.parametrize(("train", "message"), BROKEN.values(), ids=BROKEN)
def test_an_archive_that_holds_something_else_is_named(tmp_path, monkeypatch, train, message):
    monkeypatch.setitem(CATALOG, "cifar-100", cifar(tmp_path / "cifar-100-python.tar.gz", 100, train=train))
    with pytest.raises(DataError, match=rf"cifar-100-python\.tar\.gz.*{message}"):
        load("cifar-100", tmp_path, download=False)
