"""Reinforcement learning in environments that change: environments stepped side by side, and agents that learn in them.

Importing this registers the environments with gymnasium, where that is installed: `gymnasium.make("pliant/SlipperyAnt-v0")`.
"""

from pliant.rl import environments as environments
