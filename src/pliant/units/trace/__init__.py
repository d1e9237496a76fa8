"""Finds the units of any model, by running it once and following every number to the weights it came from.

tracing    one forward, watched; the model is left as it was
rules      what each operation does to labels: the one table; the rules are in layout, elementwise, norms, contractions
labels     sets of units; shadows keeps them beside the numbers, one store per storage
sources    numbers computed from parameters: which entries they are functions of
record     what one forward wrote down; taps: where activity can be read
table      labels to units; verdicts: which must be left alone; lanes: their entries as slices
grouping   the plan, with what was left alone (leftovers)
"""

from pliant.units.trace.tracing import trace

__all__ = ["trace"]
