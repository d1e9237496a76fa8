"""Whether two versions of the code measure the same rows: every quick profile, compared to the bit.

    python benchmarks/same_rows.py record DIR [--set NAME:field=value ...]   runs all quick profiles with this code
    python benchmarks/same_rows.py compare OLD NEW                           a line for each study; exit status 1 if any differs

Record on one machine, each version with its own code (`PYTHONPATH`). Values are compared, in the order in which they were
measured: a column may have another name. `--set` is of one experiment (`--set warm-starting:dataset=tiny-imagenet-32`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from time import monotonic

import numpy as np

from pliant.experiments import TABLE
from pliant.lab.study.study import Study, open_study


def record(out: Path, settings: list[str]) -> None:
    for name in TABLE:
        command = [
            sys.executable,
            "-P",
            "-m",
            "pliant.cli",
            "run",
            name,
            "--profile",
            "quick",
            "--out",
            str(out / name),
        ]
        own = [each.partition(":")[2] for each in settings if each.startswith(f"{name}:")]
        start = monotonic()
        done = subprocess.run([*command, *(word for each in own for word in ("--set", each))], capture_output=True)
        print(f"{name:30} exit {done.returncode}   {monotonic() - start:4.0f} s", flush=True)
        if done.returncode:
            print(done.stderr.decode())


def compare(old: Path, new: Path) -> bool:
    """Print what differs; whether nothing does."""
    same = True
    for folder in sorted(path.parent for path in old.glob("*/study.json")):
        if not (new / folder.name / "study.json").exists():
            verdict = "not recorded anew"
        else:
            verdict = difference(open_study(folder), open_study(new / folder.name))
        same = same and verdict.startswith("same")
        print(f"{folder.name:30} {verdict}", flush=True)
    return same


def difference(old: Study, new: Study) -> str:
    if len(old.jobs) != len(new.jobs):
        return f"DIFFERENT: {len(old.jobs)} jobs, and {len(new.jobs)}"
    values = 0
    for job, other in zip(old.jobs, new.jobs, strict=True):
        before, after = old.measured(job), new.measured(other)
        if before is None or after is None:
            return f"DIFFERENT: job {job.name} has not run in both"
        if before.statuses != after.statuses or len(before.rows) != len(after.rows):
            return f"DIFFERENT: job {job.name} ended otherwise, or has other columns"
        for (name, a), (now, b) in zip(before.rows.items(), after.rows.items(), strict=True):
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                where = np.flatnonzero(a != b)[:1].tolist() if a.shape == b.shape else "its length"
                return f"DIFFERENT: job {job.name}, column {name}{'' if name == now else f' (now {now})'}, at {where}"
            values += a.size
    return f"same to the bit: {len(old.jobs)} jobs, {old.run_count} runs, {values:,} values"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--set", dest="settings", action="append", default=[])
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    asked = parser.parse_args()
    if asked.command == "record":
        record(asked.out, asked.settings)
    else:
        sys.exit(0 if compare(asked.old, asked.new) else 1)
