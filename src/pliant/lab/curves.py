"""What a curve of a study is, and what it is called.

A curve is all runs that differ in the seed alone. Its name is a word for its method, and the values of those fields of the
config in which the curves of that method differ: "cbp, rate 1e-5" and "cbp, rate 1e-6" beside "backprop".

The fields are found in the rows, nowhere listed. So a setting that nobody foresaw makes a curve of its own and is never
averaged into another. An experiment only says how fields are called, and which of them set apart the panels of its figure.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas is typed in part)

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.lab.errors import LabError, unknown
from pliant.lab.study.labels import in_words

if TYPE_CHECKING:
    import pandas

_NO_SETTING = ("run", "method", "seed", "status", "diverged_at", "commit", "curve")


def settings(rows: pandas.DataFrame, measured: Iterable[str], panel: Sequence[str] = ()) -> pandas.DataFrame:
    """A row for each curve, in the order of the study: its method, and the fields in which curves differ.

    `measured` are the columns of the experiment; all others are the config's, but for what the laboratory adds. Fields
    of `panel` set no curve apart.
    """
    check_columns(rows, ["method"])
    table: Any = rows
    apart = {*_NO_SETTING, *measured, *panel}
    distinct = table[["method", *(name for name in table.columns if name not in apart)]].drop_duplicates()
    return distinct[["method", *varying(distinct)]].reset_index(drop=True)


def check_columns(rows: pandas.DataFrame, names: Iterable[str | None], numbers: Iterable[str | None] = ()) -> None:
    """Raise `LabError` where the rows lack one of the columns, or where one of those of `numbers` holds something else."""
    table: Any = rows
    known, measures = [str(name) for name in table.columns], [name for name in numbers if name is not None]
    for name in (*(name for name in names if name is not None), *measures):
        if name not in known:
            raise unknown("column", name, known)
    for name in measures:
        try:
            table[name].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise LabError(f"column {name} holds something else than numbers: {shortened(error)}") from None


def varying(table: pandas.DataFrame) -> list[str]:
    """The columns, but for `method`, that have several values."""
    columns: Any = table
    return [name for name in columns if name != "method" and columns[name].nunique(dropna=False) > 1]


def fields_that_differ(found: pandas.DataFrame) -> dict[str, list[str]]:
    """For each method of `settings`, the fields in which its own curves differ."""
    return {str(method): varying(own) for method, own in found.groupby("method", sort=False)}


def config_fields(rows: pandas.DataFrame) -> list[str]:
    """The config's among the columns of a study's table, which has them between `run` and `status`; none in another table."""
    names = [str(name) for name in rows.columns]
    return names[names.index("run") + 1 : names.index("status")] if {"run", "status"} <= {*names} else []


def check_not_pooled(
    rows: pandas.DataFrame,
    name: str,
    x: str,
    over: str,
    pooled: Sequence[str] = (),
    measured: Sequence[str | None] = (),
) -> None:
    """Raise `LabError` where a curve is of several settings: their mean over seeds, and its interval, would be of neither.

    `rows` are the curve's, `name` its name, `x` and `over` columns. Fields of the config may differ that are in `pooled`. A table
    that is not a study's does not tell its config: there, a column that is not `measured` is a setting where it parts rows of one
    place into several runs.
    """
    table: Any = rows
    apart = {x, over, "seed", *pooled, *measured}
    fields = [field for field in config_fields(rows) if field not in apart]
    differ = [field for field in fields if table[field].nunique(dropna=False) > 1]
    if not config_fields(rows):
        differ = [str(field) for field in table if field not in apart and _parts_runs(table, str(field), x, over)]
    if differ:
        values = "; ".join(f"{field}: {', '.join(map(in_words, table[field].unique()))}" for field in differ)
        raise LabError(
            f"the curve '{name}' would be a mean of runs that differ in more than the seed ({values}): draw a curve for each, "
            f"by='curve' of pliant.lab.curves.with_curves, or allow it with pooled={differ}"
        )
    if fields and over == "seed":
        check_one_run(rows, name, [*pooled, *({x} & {*config_fields(rows)})])


def _parts_runs(table: Any, field: str, x: str, over: str) -> bool:
    """Whether several rows of one place become one each where a field parts them, into runs of more than one row."""
    if not table.duplicated([over, x]).any() or table.duplicated([over, x, field]).any():
        return False
    return bool((table.groupby([over, field], dropna=False).size() > 1).all()) or table[x].nunique() == 1


def check_one_run(rows: pandas.DataFrame, name: str, pooled: Sequence[str] = ()) -> None:
    """Raise `LabError` where a seed of a curve has several runs, as in a table of two studies."""
    table: Any = rows
    runs: Any = table.groupby(["seed", *pooled], dropna=False)["run"].unique()
    for own in runs:
        if len(own) > 1:
            seed = table["seed"][table["run"] == own[0]].iloc[0]
            raise LabError(
                f"runs {own[0]} and {own[1]} are both seed {seed} of the curve '{name}': rows of two studies in one table?"
            )


def mean_by(rows: pandas.DataFrame, by: Sequence[str], value: str, weight: str | None = None) -> pandas.Series:
    """Mean of column `value` of the rows that are alike in the columns `by`; NaN where one of the values is.

    `weight` counts what a value is itself a mean of, as the episodes behind a return: it counts as often, and not at all if 0.
    """
    check_columns(rows, by, [value, weight])
    table: Any = rows
    values = table[value].to_numpy(dtype=np.float64)
    counts = np.ones(len(table)) if weight is None else table[weight].to_numpy(dtype=np.float64)
    groups = table[[*by]].assign(total_=np.where(counts > 0, values * counts, 0.0), counts_=counts).groupby([*by])
    sums: Any = groups.sum()
    return (sums["total_"] / sums["counts_"]).where(groups["total_"].count() == groups.size())


def set_fields(setting: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The values of `fields` that a name says: what is 0 or false is not said."""
    return {name: setting[name] for name in fields if setting[name] != 0}


def label(word: str, details: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """The name of a curve in a figure; a number whose field's word is "" follows the method's.

    >>> label("cbp", {"replacement_rate": 1e-5, "step_size": 0.01, "eligible": "all"}, {"step_size": ""})
    'cbp 0.01, replacement rate 1e-5, eligible all'
    """
    parts: list[str] = []
    for name, value in details.items():
        of_field, text = words.get(name, name.replace("_", " ")), in_words(value)
        if isinstance(value, bool | np.bool_):
            parts.append(of_field)
        elif of_field or isinstance(value, str):
            parts.append(f"{of_field} {text}".strip())
        else:
            word = f"{word} {text}"
    return ", ".join([word, *parts])


def with_curves(
    rows: pandas.DataFrame,
    measured: Iterable[str],
    methods: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    panel: Sequence[str] = (),
    always: Sequence[str] = (),
) -> pandas.DataFrame:
    """The rows, and in a new column `curve` the name of each one's curve: rows of one panel or one figure.

    `methods` and `words` are what methods and fields are called, `always` the fields that every name says. Raises
    `LabError` where two curves would have one name: their words are to blame.

    >>> import pandas
    >>> rows = pandas.DataFrame({"method": ["bp", "cbp", "cbp"], "replacement_rate": [0.0, 1e-5, 1e-6], "accuracy": 0.9})
    >>> with_curves(rows, ["accuracy"], {"bp": "backprop"}, {"replacement_rate": "rate"})["curve"].tolist()
    ['backprop', 'cbp, rate 1e-5', 'cbp, rate 1e-6']
    """
    table: Any = rows
    found: Any = settings(rows, measured, panel)
    own = fields_that_differ(found)
    keys = [*found.columns, *(name for name in always if name not in found)]
    found = table[keys].drop_duplicates()
    names: list[str] = []
    for setting in found.to_dict("records"):
        method = str(setting["method"])
        said = [name for name in keys if name in own[method] or name in always]
        names.append(label((methods or {}).get(method, method), set_fields(setting, said), words or {}))
    for name, count in Counter(names).items():
        if count > 1:
            raise LabError(f"two curves would be called '{name}': give their methods or fields different words")
    of_row = table[keys].merge(found.assign(curve=names), how="left", on=keys)["curve"]
    return table.assign(curve=of_row.to_numpy())


def less_reference(
    rows: pandas.DataFrame, reference: pandas.DataFrame, y: str, at: Sequence[str], measured: Iterable[str]
) -> NDArray[np.float64]:
    """For each row, `y` less that of the reference's run of the same seed, where both agree in the columns `at`.

    `reference` are some of the rows. Where they are of several settings, a row is compared with the one that agrees with it
    in what those differ in; it is NaN where there is none.
    """
    table: Any = rows
    others: Any = reference
    keys = [*settings(reference, measured).columns[1:], "seed", *at]
    base = others[[*keys, y]].drop_duplicates(keys).rename(columns={y: "base"})
    paired = table[keys].merge(base, how="left", on=keys)["base"]
    return table[y].to_numpy(dtype=np.float64) - paired.to_numpy(dtype=np.float64)
