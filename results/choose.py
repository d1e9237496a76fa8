"""The settings that were tried for each method, and the best of each, from an exported tuning study.

    python results/choose.py results/permuted-mnist-tuning.parquet --metric accuracy --x task
    python results/choose.py FILE --metric squared_error --x step --lowest

The score of a setting is the mean of the metric over the last quarter of x, seeds averaged. A setting of which a run
diverged, or whose metric is not finite there, is shown with how many, and is never the best. Config fields are the
columns between `run` and `status`; those in which a method's settings differ name them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas


@dataclass(frozen=True)
class Tried:
    """A setting of a method, and how it did."""

    method: str
    setting: str
    score: float  # NaN if any run was lost
    seeds: int
    lost: int


def last_quarter(rows: pandas.DataFrame, x: str) -> pandas.DataFrame:
    """The rows beyond three quarters of each run's method's range of x."""
    return rows[rows[x] > 0.75 * rows.groupby("method")[x].transform("max")]


def tried(rows: pandas.DataFrame, metric: str, x: str) -> Iterator[Tried]:
    columns = list(rows.columns)
    fields = [name for name in columns[: columns.index("status")] if name not in ("run", "method", "seed")]
    late = last_quarter(rows, x)
    for method, own in rows.groupby("method", sort=False):
        differing = [name for name in fields if own[name].nunique(dropna=False) > 1]
        keys = differing or ["method"]
        for values, cell in own.groupby(keys, sort=False, dropna=False):
            setting = ", ".join(f"{name}={_short(value)}" for name, value in zip(differing, values, strict=False))
            scores = late[late["run"].isin(cell["run"])].groupby("run")[metric].mean()
            scores = scores.reindex(cell["run"].unique())
            lost = int((~np.isfinite(scores) | cell.groupby("run")["status"].first().eq("diverged")).sum())
            yield Tried(str(method), setting, np.nan if lost else float(scores.mean()), len(scores), lost)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_of(settings: list[Tried], lowest: bool) -> Tried | None:
    """The best of one method's settings, None where every one lost a run."""
    kept = [one for one in settings if not one.lost]
    return (min if lowest else max)(kept, key=lambda one: one.score, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--metric", required=True, help="column to judge by")
    parser.add_argument("--x", required=True, help="column along which the last quarter is taken, such as task or step")
    parser.add_argument("--lowest", action="store_true", help="the lowest is best")
    arguments = parser.parse_args()
    rows = pandas.read_parquet(arguments.file)
    for name in (arguments.metric, arguments.x):
        if name not in rows:
            parser.error(f"{arguments.file} has no column '{name}': {', '.join(rows.columns)}")
    settings = list(tried(rows, arguments.metric, arguments.x))
    print(f"| method | setting | {arguments.metric}, last quarter | seeds | |\n|---|---|---|---|---|")
    for method in dict.fromkeys(one.method for one in settings):
        own = [one for one in settings if one.method == method]
        best = best_of(own, arguments.lowest)
        for one in own:
            score = f"{one.lost} of {one.seeds} diverged" if one.lost else f"{one.score:.4f}"
            print(f"| {one.method} | {one.setting} | {score} | {one.seeds} | {'best' if one is best else ''} |")


if __name__ == "__main__":
    main()
