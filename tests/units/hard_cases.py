"""Networks whose units were worked out by hand: what `pliant.units.trace` must find, element by element, and must leave alone.

`cases/table.py` says how a `Case` is written; the other files there hold them, by kind of network.
"""

from tests.units.cases import branches, chains, left_alone, sequences
from tests.units.cases.table import Along, Case, Elements, Net, Units

__all__ = ["BY_NAME", "CASES", "Along", "Case", "Elements", "Net", "Units"]

CASES = [*chains.CASES, *branches.CASES, *sequences.CASES, *left_alone.CASES]
BY_NAME = {case.name: case for case in CASES}
