"""Examples in any form of memory are the same examples, and none makes a kernel compile again."""

import subprocess
import sys

import numpy as np
import pytest

from pliant.online import OnlineEnsemble
from pliant.online.gather import gather
from pliant.online.lanes import learn_lanes
from pliant.online.rows import learn_rows

KERNELS = pytest.mark.parametrize("kernel", ["lanes", "rows"])


def read_only(a, folder):
    a = a.copy()
    a.setflags(write=False)
    return a


def memory_mapped(a, folder):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, a)
    return np.load(path, mmap_mode="r")


def unaligned(a, folder):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(a.tobytes(), np.uint8)
    return raw.view(a.dtype).reshape(a.shape)


FORMS = {
    "read-only": read_only,
    "broadcast": lambda a, folder: np.broadcast_to(a, (1, *a.shape))[0],
    "memory-mapped": memory_mapped,
    "Fortran's order": lambda a, folder: np.asfortranarray(a),
    "every second number": lambda a, folder: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a, folder: a[:, ::-1].copy()[:, ::-1],
    "the other byte order": lambda a, folder: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "a record's field": lambda a, folder: np.rec.fromarrays([a, a], names="x, z").x,
    "a list": lambda a, folder: a if a.dtype.kind == "f" else a.tolist(),
}


def learned(kernel, loss, X, y, **selection):
    learners = OnlineEnsemble(
        inputs=6, hidden=[5], outputs=3, learners=2, seed=0, kernel=kernel, loss=loss, replacement_rate=0.02,
        maturity_threshold=5,
    )  # fmt: skip
    progress = learners.partial_fit(X, y, stream=[0, 1], **selection)
    return progress.loss, learners.weights(0), learners.predict(X, stream=[0, 1], **selection)


def examples(kind):
    draw = np.random.default_rng(3)
    X = draw.integers(0, 256, (2, 40, 6)).astype(kind) / kind(1 if kind is np.uint8 else 256)
    return X.astype(kind), draw.integers(0, 3, (2, 40))


@KERNELS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_the_form_in_memory_changes_nothing_and_compiles_nothing(kernel, form, kind, tmp_path):
    X, labels = examples(kind)
    targets = np.stack([np.sin(X.sum(axis=2) + k) for k in range(3)], axis=2).astype(np.float32)
    rows, columns = np.arange(40)[None, ::-1], np.arange(6)[None, ::-1]

    def all_of(changed):
        Xs, ys, ts, rs, cs = (changed(a) for a in (X, labels, targets, rows, columns))
        if isinstance(Xs, list):
            Xs = X  # a list of small integers is of int64, which is not bytes: an error of its own
        return [
            *learned(kernel, "cross_entropy", Xs, ys, scale=1 / 256),
            *learned(kernel, "squared_error", Xs, ts, scale=1 / 256),
            *learned(kernel, "cross_entropy", Xs, ys, rows=rs, columns=cs, scale=1 / 256),
        ]

    plain = all_of(lambda a: a)
    before = [len(each.overloads) for each in (learn_lanes, learn_rows, gather)]
    for mine, theirs in zip(all_of(lambda a: FORMS[form](a, tmp_path)), plain, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [len(each.overloads) for each in (learn_lanes, learn_rows, gather)] == before


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint16, np.uint64, ">i4"])
def test_labels_may_be_of_any_integer_type(kind):
    X, labels = examples(np.float32)
    before = len(learn_rows.overloads)
    for mine, theirs in zip(
        learned("rows", "cross_entropy", X, labels.astype(kind)),
        learned("rows", "cross_entropy", X, labels),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert len(learn_rows.overloads) <= max(before, 1) + 1  # float32, and float64 of other tests


def test_bytes_are_not_copied():
    X = np.zeros((1, 50_000, 784), np.uint8)
    X.setflags(write=False)
    learners = OnlineEnsemble(inputs=784, hidden=[2], outputs=2, learners=1, seed=0, loss="cross_entropy")
    inputs, _, _ = learners._read(X, None, rows=None, columns=None, scale=1 / 255)
    assert np.shares_memory(inputs, X)


def test_the_first_use_says_once_that_it_compiles(tmp_path):
    program = """
import numpy as np
from pliant.online import OnlineMLP
for optimizer in ("sgd", "adam"):
    OnlineMLP(inputs=2, hidden=[2], outputs=1, seed=0, optimizer=optimizer).partial_fit(np.ones((3, 2)), np.ones(3))
"""
    said = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={"PYTHONPATH": ":".join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"},
        )  # fmt: skip
        assert ended.stdout == ""
        said.append(ended.stderr.splitlines())
    [line], after = said
    assert "compiling the online learners" in line
    assert "once" in line
    assert after == []
