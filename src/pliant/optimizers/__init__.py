"""Methods that are the optimizer, one file each: `torch.optim.Optimizer`s, under which resets of units and all else go on."""

from pliant.optimizers.obgd import ObGD
from pliant.optimizers.trac import TRAC
from pliant.optimizers.upgd import UPGD

__all__ = ["TRAC", "UPGD", "ObGD"]
