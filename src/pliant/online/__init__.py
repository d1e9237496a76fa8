"""Learners that see one example at a time, compiled with Numba."""

from pliant.online.ensemble import OnlineEnsemble, Progress
from pliant.online.fresh import fresh_weights
from pliant.online.mlp import OnlineMLP

__all__ = ["OnlineEnsemble", "OnlineMLP", "Progress", "fresh_weights"]
