"""Neural networks that never stop learning.

The names below are the library; they load on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pliant.methods import ContinualBackprop as ContinualBackprop
    from pliant.methods import ReDo as ReDo
    from pliant.unit_reset import UnitReset as UnitReset
    from pliant.units import BN as BN
    from pliant.units import Own as Own
    from pliant.units import Slice as Slice
    from pliant.units import Tap as Tap
    from pliant.units import UnitGroup as UnitGroup
    from pliant.units import UnitMap as UnitMap
    from pliant.units import chain_groups as chain_groups
    from pliant.units import trace as trace

__version__ = "0.1.0"

_HOMES = {
    "ContinualBackprop": "pliant.methods",
    "ReDo": "pliant.methods",
    "UnitReset": "pliant.unit_reset",
    "UnitGroup": "pliant.units",
    "UnitMap": "pliant.units",
    "Slice": "pliant.units",
    "Tap": "pliant.units",
    "BN": "pliant.units",
    "Own": "pliant.units",
    "chain_groups": "pliant.units",
    "trace": "pliant.units",
}

__all__ = [
    "BN",
    "ContinualBackprop",
    "Own",
    "ReDo",
    "Slice",
    "Tap",
    "UnitGroup",
    "UnitMap",
    "UnitReset",
    "chain_groups",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pliant' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
