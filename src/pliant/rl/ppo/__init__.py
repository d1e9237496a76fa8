"""PPO with the settings of Dohare et al. (2024) and with today's: several agents at once, their units replaced by public methods.

settings       every number, and the presets
agents         `PPO`: collect, update, iterate; restart, save, load
acting         collects a rollout, with networks, policies, activations, rollout
learning       the update, with advantages, loss, products, adam, normalization
unit_method    the method that replaces units, and the interface of a method of your own
in_place       parameters that stay at one place in memory; saved: which states are refused
measures       dormant units, ranks, weights, entropy
"""

from pliant.rl.ppo.acting import Episodes
from pliant.rl.ppo.agents import PPO, Update
from pliant.rl.ppo.measures import MEASURES
from pliant.rl.ppo.settings import PRESETS, Settings, preset
from pliant.rl.ppo.unit_method import UnitMethod

__all__ = ["MEASURES", "PPO", "PRESETS", "Episodes", "Settings", "UnitMethod", "Update", "preset"]
