"""Which weights enter and leave each unit of an `nn.Module`."""

from pliant.units.chain import chain_groups
from pliant.units.map import BN, Slice, Tap, UnitGroup, UnitMap

__all__ = ["BN", "Slice", "Tap", "UnitGroup", "UnitMap", "chain_groups"]
