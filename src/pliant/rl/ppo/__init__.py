"""PPO with the article's settings and today's, several agents at once, through the public methods that replace units.

settings       every number, and the presets
agents         `PPO`: collect, update, iterate; restart, save, load
acting         the rollout that agents act out; networks, policies, activations, rollout: what they act by and fill
learning       the update; advantages, loss, products, adam, normalization: its parts
unit_method    what replaces units, and what is asked of a method of one's own
in_place       parameters that stay where they lie; saved: which state is refused
measures       dormant units, ranks, weights, entropy
"""

from pliant.rl.ppo.acting import Episodes
from pliant.rl.ppo.agents import PPO, Update
from pliant.rl.ppo.measures import MEASURES
from pliant.rl.ppo.settings import PRESETS, Settings, preset
from pliant.rl.ppo.unit_method import UnitMethod

__all__ = ["MEASURES", "PPO", "PRESETS", "Episodes", "Settings", "UnitMethod", "Update", "preset"]
