"""Every method, one file each: presets of the parts in `pliant.engine.unit_reset`, and methods on whole parameters."""

from pliant.methods.continual_backprop import ContinualBackprop
from pliant.methods.dash import DASH
from pliant.methods.fire import FIRE
from pliant.methods.grama import GraMa
from pliant.methods.hare_and_tortoise import HareAndTortoise
from pliant.methods.l2 import L2
from pliant.methods.l2_er import L2ER
from pliant.methods.normalize_and_project import NormalizeAndProject
from pliant.methods.parseval import Parseval
from pliant.methods.partial_resets import PartialResets
from pliant.methods.plasticity_injection import inject_plasticity
from pliant.methods.random_replacement import RandomReplacement
from pliant.methods.redo import ReDo
from pliant.methods.resets import reset_head, reset_network, reset_optimizer
from pliant.methods.selective_reinitialization import SelectiveReinitialization
from pliant.methods.self_normalized_resets import SelfNormalizedResets
from pliant.methods.shrink_and_perturb import ShrinkAndPerturb
from pliant.methods.soft_resets import SoftResets
from pliant.methods.spectral import Spectral
from pliant.methods.wasserstein import Wasserstein
from pliant.methods.weight_clipping import WeightClipping

__all__ = [
    "DASH",
    "FIRE",
    "L2",
    "L2ER",
    "ContinualBackprop",
    "GraMa",
    "HareAndTortoise",
    "NormalizeAndProject",
    "Parseval",
    "PartialResets",
    "RandomReplacement",
    "ReDo",
    "SelectiveReinitialization",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "SoftResets",
    "Spectral",
    "Wasserstein",
    "WeightClipping",
    "inject_plasticity",
    "reset_head",
    "reset_network",
    "reset_optimizer",
]
