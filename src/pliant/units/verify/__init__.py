"""Proof, in float64 and on a copy, that resets of a plan's units change nothing else."""

from pliant.units.verify.verification import Verification, verify
from pliant.units.verify.whole_plan import Tried, tried

__all__ = ["Tried", "Verification", "tried", "verify"]
