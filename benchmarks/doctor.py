"""How often is an examination right? Networks with one known trouble each, trained anew under every seed.

    python benchmarks/doctor.py --seeds 1-2 --out results/doctor.parquet     trains, examines, prints the table
    python benchmarks/doctor.py --read results/doctor.parquet                prints the table of rows that are there

The networks are those of tests/diagnostics/patients.py, on MNIST (in $PLIANT_DATA). Seed 0 served to set margin and thresholds.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas
import torch

import pliant
from tests.diagnostics.patients import PATIENTS


def examined(name, seed):
    torch.set_num_threads(1)
    patient = PATIENTS[name](seed)
    began = time.process_time()
    found = pliant.examine(
        patient.model, *patient.data, optimizer=patient.optimizer, fresh=patient.fresh, progress=False
    )
    row = {"network": name, "seed": seed, "verdict": found.verdict, "right": found.verdict in patient.verdicts}
    row |= {"advice": found.advice[0].title, "advised": not patient.advice or found.advice[0].title in patient.advice}
    for kind, task in found.probe.tasks.items():
        row |= {f"{kind}_ratio": task.answer.ratio, f"{kind}_low": task.answer.low, f"{kind}_high": task.answer.high}
    row["findings"] = "; ".join(f"{each.group}: {each.says}" for each in found.findings)
    return row | {"seconds": time.process_time() - began}


def table(rows):
    lines = [("network", "verdicts", "ratio, next task", "ratio, random", "advice first")]
    for name in PATIENTS:
        mine = rows[rows["network"] == name].sort_values("seed")
        verdicts = ", ".join(f"{each.verdict}{'' if each.right else ' (wrong)'}" for each in mine.itertuples())
        ratios = [", ".join(f"{value:.2f}" for value in mine[f"{kind}_ratio"]) for kind in ("own", "random")]
        advice = ", ".join(
            dict.fromkeys(f"{each.advice}{'' if each.advised else ' (wrong)'}" for each in mine.itertuples())
        )
        lines.append((name, verdicts, *ratios, advice))
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    right, advised = int(rows["right"].sum()), int(rows["advised"].sum())
    print(f"\n{right} of {len(rows)} verdicts right, {advised} of {len(rows)} first advices")
    print(f"processor time of an examination: median {rows['seconds'].median():.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1-2")
    parser.add_argument("--networks", default=",".join(PATIENTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path)
    given = parser.parse_args()
    if given.read:
        return table(pandas.read_parquet(given.read))
    first, _, last = given.seeds.partition("-")
    rows = []
    for seed in range(int(first), int(last or first) + 1):
        for name in given.networks.split(","):
            rows.append(examined(name, seed))
            print(rows[-1], flush=True)
            if given.out:
                pandas.DataFrame(rows).to_parquet(given.out)
    return table(pandas.DataFrame(rows))


if __name__ == "__main__":
    main()
