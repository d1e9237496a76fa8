"""Are there wheels of every version in `constraints.txt` for other versions of Python? `python -m tests.release.wheels`

By the metadata of the package index: nothing is downloaded and nothing runs. A package without a wheel is named by pip.
"""

import json
import subprocess
import sys

from tests.release.project import ROOT

CONSTRAINTS = ROOT / "constraints.txt"


def wheels(python):
    """What pip would install under this version of Python, or its complaint."""
    asked = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    only_wheels = ["--only-binary", ":all:", "--python-version", python, "--target", "nowhere"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--report", "-"]
    ended = subprocess.run([*command, *only_wheels, *asked], text=True, capture_output=True, check=False)
    if ended.returncode:
        return ended.stderr.strip()
    return f"wheels of all {len(json.loads(ended.stdout)['install'])} packages"


if __name__ == "__main__":
    for python in ("3.12", "3.13", "3.14"):
        print(python, wheels(python), flush=True)
