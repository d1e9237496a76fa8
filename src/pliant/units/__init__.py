"""Which weights enter and leave each unit of an `nn.Module`."""

from pliant.units.chain import chain_groups
from pliant.units.groups import BN, Own, Skipped, Slice, Tap, UnitGroup
from pliant.units.map import UnitMap
from pliant.units.trace import trace

__all__ = ["BN", "Own", "Skipped", "Slice", "Tap", "UnitGroup", "UnitMap", "chain_groups", "trace"]
