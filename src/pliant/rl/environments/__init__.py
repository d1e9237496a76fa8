"""Environments for reinforcement learning, many copies in one process."""

from pliant.rl.environments.base import Continuous, Discrete, Environments, Transition
from pliant.rl.environments.bodies import BODIES, Body
from pliant.rl.environments.cart_pole import RewiredCartPole
from pliant.rl.environments.friction import FrictionSchedule
from pliant.rl.environments.gymnasium_batch import GymnasiumBatch
from pliant.rl.environments.mujoco_batch import MujocoBatch
from pliant.rl.environments.physics import GraphicsUnavailable
from pliant.rl.environments.registration import register
from pliant.rl.environments.rendering import Camera

register()

__all__ = [
    "BODIES",
    "Body",
    "Camera",
    "Continuous",
    "Discrete",
    "Environments",
    "FrictionSchedule",
    "GraphicsUnavailable",
    "GymnasiumBatch",
    "MujocoBatch",
    "RewiredCartPole",
    "Transition",
]
