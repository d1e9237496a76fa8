"""First, least and last bin of every curve in an exported study, and paired tests over seeds.

    python results/summarize.py results/slowly-changing-regression-quick.parquet
    python results/summarize.py results/slowly-changing-regression-paper.parquet --where variant=redraw-all activation=relu

A curve is all runs that differ in nothing but the seed. `last - least` compares each seed's last bin with its value in
the bin where the mean over seeds is least; the number behind it is that difference in standard errors. With `--against
METHOD STEP_SIZE` the last bin is compared, seed by seed, with that method's curve of the same cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas

from pliant.lab.statistics import estimate, paired_difference

CELL = ["variant", "optimizer", "activation", "steps"]
CURVE = ["method", "step_size", "weight_decay", "noise_std", "replacement_rate"]


def seeds_by_bins(rows: pandas.DataFrame) -> pandas.DataFrame:
    return rows.pivot(index="seed", columns="step", values="squared_error")


def line(table: pandas.DataFrame, reference: pandas.DataFrame | None) -> str:
    values = table.to_numpy()
    lost = int(np.isnan(values[:, -1]).sum())
    values = values[~np.isnan(values[:, -1])]
    if not len(values):
        return f"all {lost} runs diverged"
    mean = estimate(values)
    least = int(mean.mean.argmin())
    rise = paired_difference(values[:, -1], values[:, least])
    text = (
        f"first {mean.mean[0]:.3f}  least {mean.mean[least]:.3f} at {table.columns[least]:>9,}  "
        f"last {mean.mean[-1]:.3f} ± {mean.standard_error[-1]:.3f}  "
        f"last - least {rise.mean:+.3f} ({in_errors(rise)})  n {mean.count}"
    )
    if reference is not None and reference is not table and not lost:
        gap = paired_difference(table.iloc[:, -1], reference.loc[table.index].iloc[:, -1])
        text += f"  last against reference {gap.mean:+.3f} ({in_errors(gap)})"
    return text + (f"  ({lost} diverged)" if lost else "")


def in_errors(difference) -> str:
    return f"{difference.mean / difference.standard_error:+.1f} s.e." if difference.standard_error > 0 else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--where", nargs="*", default=[], metavar="COLUMN=VALUE")
    parser.add_argument("--against", nargs=2, default=["bp", "0.01"], metavar=("METHOD", "STEP_SIZE"))
    arguments = parser.parse_args()
    rows = pandas.read_parquet(arguments.file)
    for column, value in (condition.split("=") for condition in arguments.where):
        rows = rows[rows[column].astype(str) == value]
    for cell, inside in rows.groupby(CELL, sort=False):
        print("\n" + ", ".join(map(str, cell)))
        curves = {curve: seeds_by_bins(own) for curve, own in inside.groupby(CURVE, sort=False)}
        wanted = arguments.against[0], float(arguments.against[1])
        reference = next((table for curve, table in curves.items() if curve[:2] == wanted), None)
        for curve, table in curves.items():
            name = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in curve)
            print(f"  {name:<32}{line(table, reference)}")


if __name__ == "__main__":
    main()
