"""Does an implementation of continual backpropagation, or of another reset of units, do what it should? Checks to run on any.

adapter     what an author writes: how an implementation is attached, stepped and read
selection, rate, weights, optimizers, networks, training
            the checks, a function each, whose docstring is what it demands
trial       one implementation on one small network, step by step
checking    the table of checks, and `check`, which runs it
report      what was found
ours        adapters of this library's methods

Sources: Dohare et al., Nature 632 (2024), for continual backpropagation; what peers' implementations got wrong, for the choice
of the checks.
"""

from pliant.conformance.adapter import Settings, UnitResetAdapter
from pliant.conformance.checking import check
from pliant.conformance.report import Report, Result

__all__ = ["Report", "Result", "Settings", "UnitResetAdapter", "check"]
