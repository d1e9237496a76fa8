"""Which weights enter and leave each unit of an `nn.Module`."""

from pliant.base.deprecation import renamed
from pliant.units.chain import chain_groups
from pliant.units.groups import BN, AffineEntry, RunningStatistic, Skipped, Slice, Tap, UnitGroup
from pliant.units.map import UnitMap
from pliant.units.trace import trace

__getattr__ = renamed("pliant.units", {"Own": "AffineEntry"})

__all__ = [
    "BN",
    "AffineEntry",
    "RunningStatistic",
    "Skipped",
    "Slice",
    "Tap",
    "UnitGroup",
    "UnitMap",
    "chain_groups",
    "trace",
]
