"""What optimizers remember about a weight, and how to forget it: of units, of whole parameters, under a mask."""

from pliant.engine.optimizer_state.rules import RULES, Rule
from pliant.engine.optimizer_state.units import OptimizerState, Policy
from pliant.engine.optimizer_state.whole import WholeState, forget_entries

__all__ = ["RULES", "OptimizerState", "Policy", "Rule", "WholeState", "forget_entries"]
