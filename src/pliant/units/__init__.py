"""Which weights enter and leave each unit of an `nn.Module`."""

from pliant.units.chain import chain_groups
from pliant.units.map import BN, Own, Skipped, Slice, Tap, UnitGroup, UnitMap
from pliant.units.trace import trace

__all__ = ["BN", "Own", "Skipped", "Slice", "Tap", "UnitGroup", "UnitMap", "chain_groups", "trace"]
