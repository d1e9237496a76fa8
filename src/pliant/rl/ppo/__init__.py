"""PPO with the article's settings and today's, several agents at once, through the public methods that replace units.

settings       every number, and the presets
agents         `PPO`: collect, update, iterate; restart, save, load
acting         the rollout that agents act out; networks, policies, activations: what they act by
learning       the update; advantages, loss, adam, normalisation: its parts
in_place       parameters that stay where they lie; saved: which state is refused
measures       dormant units, ranks, weights, entropy
"""

from pliant.rl.ppo.acting import Episodes
from pliant.rl.ppo.agents import PPO, Update
from pliant.rl.ppo.measures import MEASURES
from pliant.rl.ppo.settings import PRESETS, Settings, preset

__all__ = ["MEASURES", "PPO", "PRESETS", "Episodes", "Settings", "Update", "preset"]
