"""What prints as a table is also plain values, a data frame, HTML and a figure."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

import pliant
from pliant.base import tables
from tests.networks import mlp

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def plan():
    model = mlp()
    return pliant.trace(model, X).exclude("2")


TABLES = {"plan": plan}


@pytest.mark.parametrize("name", TABLES)
def test_plain_values_survive_json(name):
    found = TABLES[name]().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found


@pytest.mark.parametrize("name", TABLES)
def test_a_data_frame_has_the_records_as_rows(name):
    table = TABLES[name]()
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.records()[0])
    assert len(frame) == len(table.records()) > 0
    assert frame["group"].tolist() == [record["group"] for record in table.records()]


@pytest.mark.parametrize("name", TABLES)
def test_html_holds_every_cell_and_every_note(name):
    table = TABLES[name]()
    cells, notes = table.table()
    shown = table._repr_html_()
    for text in (*(cell for row in cells for cell in row), *notes):
        assert tables.escape(text) in shown
    assert shown.count("<tr>") == len(cells)
    assert all(line.split()[0] in str(table) for line in notes if line)


@pytest.mark.parametrize("name", TABLES)
def test_a_plot_is_a_figure_that_can_be_saved(name, tmp_path):
    figure = TABLES[name]().plot()
    figure.savefig(tmp_path / "figure.png")
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [record["group"] for record in TABLES[name]().records()]
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(("call", "package"), [("to_pandas", "pandas"), ("plot", "matplotlib")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(call, package, monkeypatch):
    def absent(name, *rest):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}", name=package)
        return importlib.import_module(name, *rest)

    monkeypatch.setattr(tables, "import_module", absent)
    with pytest.raises(ImportError, match=rf"^{call}\(\) needs {package}: pip install {package}$"):
        getattr(plan(), call)()


def test_tables_load_neither_pandas_nor_matplotlib():
    code = "import sys, pliant, pliant.base.tables; pliant.UnitMap; print({'pandas', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
