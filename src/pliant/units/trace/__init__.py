"""Finds the units of any model, by running it once and following every number to the weights it came from.

tracing    one forward under a dispatch mode; the model is left as it was
rules      how each operation computes labels: the one table; the rules are in layout, elementwise, norms, contractions
labels     sets of units; shadows stores them, one set of arrays per storage
sources    numbers computed from parameters: the entries that they depend on
record     the record of one forward; taps: where activity can be recorded
table      units from labels; verdicts: which must be left alone; lanes: their entries as slices
grouping   the plan, with what was left alone (leftovers)
functions  where activation functions and norms meet units, which `pliant.nn.convert` exchanges
"""

from pliant.units.trace.tracing import trace

__all__ = ["trace"]
