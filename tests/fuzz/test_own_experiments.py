"""Any experiment of one's own: what it measured is what is stored, resumed from and exported, to the bit, or it is refused."""

import csv
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pliant.cli import main
from pliant.lab.errors import LabError
from pliant.lab.report.table import export, exported, rows_of
from pliant.lab.run.worker import run_job
from pliant.lab.study.facts import versions
from pliant.lab.study.settings import selected
from pliant.lab.study.study import begun, new_plan, open_study, with_reading, with_runs
from pliant.lab.study.target import target
from tests.fuzz.odd import MANY, a_sentence
from tests.fuzz.own import made, same
from tests.fuzz.test_states import states

KINDS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "<U5", ">f8", ">i4"]
names = st.one_of(
    st.sampled_from(["step", "loss", "x y", "é", "a,b", 'say "x"', "1", "mean_", "Run"]), st.text(max_size=8)
)
FIELDS = {
    "number": (float, st.floats(allow_nan=False, allow_infinity=False)),
    "whole": (int, st.integers(-(2**70), 2**70)),
    "text": (str, st.text(max_size=9)),
    "flag": (bool, st.booleans()),
    "row": (list[int], st.lists(st.integers(), max_size=3)),
    "pair": (tuple[int, float], st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False))),
    "set": (set[str], st.sets(st.text(max_size=3), max_size=3)),
    "table": (dict[str, int], st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)),
    "maybe": (float | None, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
    "word": (Literal["x", "y"], st.sampled_from(["x", "y"])),
}


@st.composite
def experiments(draw):
    columns = draw(st.dictionaries(names, st.sampled_from(KINDS), min_size=2, max_size=4))
    advances = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, 3))
        rows = {"run": np.array([draw(st.integers(0, 1)) for _ in range(count)], np.int64)}
        advances.append(rows | {name: draw(arrays_of.arrays(kind, count)) for name, kind in columns.items()})
    fields = {}
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), unique=True, max_size=3)):
        kind, values = FIELDS[name]
        fields[name] = (kind, draw(values))
    return fields, advances, [draw(states) for _ in advances]


def begin(folder, number, own):
    file = folder / f"own_{number}.py"
    file.write_text(f"from tests.fuzz.own import DRAWN\nOwn = DRAWN[{number}]\n")
    plan = new_plan("own", target(f"{file}:Own"), "quick", "cpu", versions())
    study = with_reading(with_runs(begun(folder / "study", plan), selected(own(), "quick")))
    study.make_folders()
    study.save()
    return study


@MANY
@given(drawn=experiments(), dies_at=st.integers(0, 3))
def test_rows_survive_being_stored_resumed_and_exported(drawn, dies_at):
    fields, advances, held = drawn
    number, own = made(fields, advances, held)
    own.dies_at, own.loaded = dies_at, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            study = begin(folder, number, own)
        except LabError as error:
            a_sentence(str(error))
            return
        (job,) = study.jobs
        if dies_at < len(advances):
            with pytest.raises(RuntimeError, match="asked to fail"):
                learned(study, job)
        if learned(study, job) is not None:
            return
        for at, state in own.loaded:
            assert same(state, held[at - 1])
        rows = {name: np.concatenate([each[name] for each in advances]) for name in advances[0]}
        study = open_study(folder / "study")
        if not len(rows["run"]):
            with pytest.raises(LabError, match="has no rows yet"):
                rows_of(study)
            return
        told = rows_of(study)
        for name in (each for each in rows if each != "run"):
            assert alike(told[name].to_numpy(), rows[name]), name
        exported_alike(study, folder, rows)
        for command in (["status"], ["report"], ["export"]):
            with pytest.raises(SystemExit) as ended:
                main([command[0], str(folder / "study"), *command[1:]])
            assert ended.value.code in (0, 2)


def learned(study, job):
    """Run the job; why it is refused."""
    try:
        run_job(study, job, lambda event: None)
    except (LabError, ValueError, TypeError) as error:
        a_sentence(str(error))
        return str(error)
    return None


def alike(found, expected):
    if expected.dtype.kind == "U":
        return [str(each) for each in found] == [str(each) for each in expected]
    return (
        found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        and found.astype(expected.dtype).tobytes() == expected.tobytes()
    )


def exported_alike(study, folder, rows):
    measured = [name for name in rows if name != "run"]
    export(study, "parquet", folder / "rows.parquet")
    table = pandas.read_parquet(folder / "rows.parquet")
    for name in measured:
        assert alike(table[name].to_numpy(), rows[name]), name
    if table.duplicated().any():
        with pytest.raises(LabError, match="the same row twice"):
            exported(folder / "rows.parquet")
    else:
        assert len(exported(folder / "rows.parquet")) == len(rows["run"])
    export(study, "csv", folder / "rows.csv")
    with open(folder / "rows.csv", newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    assert len(lines) == len(rows["run"])
    for name in measured:
        texts = [line[head.index(name)] for line in lines]
        assert all(map(reads_as, texts, rows[name])), (name, texts, rows[name])


def reads_as(text, value):
    if value.dtype.kind == "U":
        return text == str(value)
    if value.dtype.kind == "b":
        return text == str(bool(value))
    if value.dtype.kind in "iu":
        return int(text) == int(value)
    if np.isnan(value):
        return text in ("", "nan", "NaN")
    return value.dtype.type(text) == value and np.signbit(value.dtype.type(text)) == np.signbit(value)
