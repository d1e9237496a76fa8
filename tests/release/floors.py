"""Constraints for `make floors`: the lowest version that `pyproject.toml` allows of each package, and the torch of CI.

Not of River: 0.26.0 itself asks for a NumPy above the floor.
"""

from tests.release.project import ROOT, direct


def floors():
    """
    >>> floors()["numpy"], "river" in floors()
    ('1.26', False)
    """
    found = {}
    for package, requirements in direct().items():
        for _, requirement in requirements:
            (found[package],) = (each.version for each in requirement.specifier if each.operator == ">=")
    del found["river"]
    return found


if __name__ == "__main__":
    (torch,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    print(torch, *(f"{package}=={floor}" for package, floor in floors().items() if package != "torch"), sep="\n")
