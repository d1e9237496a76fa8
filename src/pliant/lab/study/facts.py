"""Where rows come from: machine, versions, and the commit of the experiment's source."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pliant.lab.study.target import Target

PACKAGES = ("pliant", "torch", "numpy", "numba")  # what the bits of a row depend on


def versions() -> dict[str, str]:
    """Versions of Python and of what is installed of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def changed_versions(before: dict[str, str]) -> list[tuple[str, str, str]]:
    """Package, version then, version now, of those that differ."""
    now = versions()
    names = sorted({*before, *now})
    return [(n, before.get(n, "absent"), now.get(n, "absent")) for n in names if before.get(n) != now.get(n)]


def session_facts(experiment: Target) -> dict[str, str]:
    """Facts about this process, noted beside the rows it produces."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit(source_file(experiment)),
        **versions(),
    }


def source_file(experiment: Target) -> Path | None:
    """The file of an experiment that has been imported."""
    module = sys.modules.get(experiment.address.rpartition(":")[0])
    file = experiment.file or (module and module.__file__)
    return Path(file) if file else None


def commit(file: Path | None) -> str:
    """The git commit of a file's checkout, "-dirty" where tracked files differ from it; "" for a file git does not track."""
    if file is None or _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return ""
    return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
