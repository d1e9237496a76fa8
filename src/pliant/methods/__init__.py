"""Every method, one file each: presets of the parts in `pliant.unit_reset`."""

from pliant.methods.continual_backprop import ContinualBackprop
from pliant.methods.redo import ReDo

__all__ = ["ContinualBackprop", "ReDo"]
