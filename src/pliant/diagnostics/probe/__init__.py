"""The definition itself: does the network learn the next task worse than a fresh copy of it?

tasks        random targets, the next task, smooth targets: what is to be learned
optimizers   the user's optimizer on other parameters, with or without its state
learning     one network learns one task: a curve
comparison   areas under curves, their ratio with its interval, the answer
result       everything measured, as a table
time_limit   how many seeds and steps are possible yet
probing      `probe_plasticity`: plans the runs within a budget, and runs them
"""

from pliant.diagnostics.probe.comparison import Comparison
from pliant.diagnostics.probe.probing import probe_plasticity
from pliant.diagnostics.probe.result import Probe, TaskProbe

__all__ = ["Comparison", "Probe", "TaskProbe", "probe_plasticity"]
