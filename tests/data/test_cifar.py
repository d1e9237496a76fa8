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
    "garbage": (b"garbage", "cannot be unpickled"),
    "nothing": (b"", "EOFError"),
}


@pytest.mark.parametrize(("train", "message"), BROKEN.values(), ids=BROKEN)
def test_an_archive_that_holds_something_else_is_named(tmp_path, monkeypatch, train, message):
    monkeypatch.setitem(CATALOG, "cifar-100", cifar(tmp_path / "cifar-100-python.tar.gz", 100, train=train))
    with pytest.raises(DataError, match=rf"cifar-100-python\.tar\.gz.*{message}"):
        load("cifar-100", tmp_path, download=False)


DTYPE, ARRAY, MADE = b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"
EMPTY = MADE + b"(" + ARRAY + b"(I0\ntS'b'\ntR"  # an array without contents, as NumPy pickles begin
BYTES = DTYPE + b"(S'u1'\ntR"


def filled(shape, kind, content, order=b"I00\n"):
    return EMPTY + b"(I1\n" + shape + kind + order + content + b"tb."


ATTACKS = {
    "objects, by contents": filled(b"(I1\nt", DTYPE + b"(S'O'\ntR", b"S'AAAAAAAA'\n"),
    "objects, in a record": filled(b"(I1\nt", DTYPE + b"(S'V8'\ntR", b"S'AAAAAAAA'\n"),
    "objects, by a longer name": filled(b"(I1\nt", DTYPE + b"(S'object'\ntR", b"S'AAAAAAAA'\n"),
    "objects, in a list of fields": filled(b"(I1\nt", DTYPE + b"((lS'a'\naS'O'\natR", b"S'AAAAAAAA'\n"),
    "a type of another state": filled(b"(I1\nt", DTYPE + b"(S'u1'\ntR(I3\nS'O'\ntb", b"S'A'\n"),
    "texts": filled(b"(I1\nt", DTYPE + b"(S'S8'\ntR", b"S'AAAAAAAA'\n"),
    "called": ARRAY + b"((I1\nt" + DTYPE + b"(S'O'\ntRS'AAAAAAAA'\ntR.",
    "made new": ARRAY + b"((I1\ntt\x81.",
    "fewer bytes than its shape": filled(b"(I1000000000\nt", BYTES, b"S'A'\n"),
    "a shape beyond 64 bits": filled(b"(L4294967296L\nL4294967296L\nt", BYTES, b"S''\n"),
    "a negative shape": filled(b"(I-1\nI-1\nt", BYTES, b"S'A'\n"),
    "a shape of fractions": filled(b"(F1.0\nt", BYTES, b"S'A'\n"),
    "contents that are an array": filled(b"(I0\nt", BYTES, EMPTY),
    "no contents": EMPTY + b".",
    "no type": filled(b"(I1\nt", b"S'u1'\n", b"S'A'\n"),
    "a class given a state": ARRAY + b"(I1\n(I1\ntS'u1'\nI00\nS'A'\ntb.",
    "a function given attributes": MADE + b"(N}S'__defaults__'\n(I1\ntstb.",
    "a place of memory far out": b"K\x01r\xff\xff\xff\x7f.",
    "a text of 2^62 bytes": b"\x8e" + (1 << 62).to_bytes(8, "little") + b"x.",
    "a frame of 2^62 bytes": b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"x.",
    "an integer of 2^31 bytes": b"\x8b\xff\xff\xff\x7fx.",
    "an integer of 5,000 digits": b"I" + b"1" * 5000 + b"\n.",
    "a registered extension": b"\x82\x01.",
    "a persistent object": b"Pwho\n.",
    "nothing on the stack": b"0000.",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_crafted_pickle_is_refused_in_words(tmp_path, monkeypatch, attack):
    monkeypatch.setitem(CATALOG, "cifar-100", cifar(tmp_path / "cifar-100-python.tar.gz", 100, train=attack))
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz"):
        load("cifar-100", tmp_path, download=False)


def test_lists_within_lists_are_no_labels_and_no_names(tmp_path, monkeypatch):
    many = [1]
    for _ in range(60):
        many = [many, many]  # stands for 2^60 numbers
    for which, content in {
        "train": {**batch(10, 0, "fine_labels"), "fine_labels": many},
        "meta": {"fine_label_names": [many] * 100},
    }.items():
        entry = cifar(tmp_path / "cifar-100-python.tar.gz", 100, **{which: pickle.dumps(content, protocol=2)})
        monkeypatch.setitem(CATALOG, "cifar-100", entry)
        with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz"):
            load("cifar-100", tmp_path, download=False)
