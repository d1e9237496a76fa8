"""What optimizers remember about a weight, and how to forget it: of units, of whole parameters, by one table of rules."""

from pliant.engine.optimizer_state.units import RULES, OptimizerState, Policy, Rule

__all__ = ["RULES", "OptimizerState", "Policy", "Rule"]
