"""Neural networks that never stop learning.

The names below are the library; they load on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pliant.base.deprecation import install, renamed

if TYPE_CHECKING:
    from pliant.diagnostics import Monitor as Monitor
    from pliant.diagnostics import diagnose as diagnose
    from pliant.diagnostics import probe_plasticity as probe_plasticity
    from pliant.doctor import examine as examine
    from pliant.engine.unit_reset import UnitReset as UnitReset
    from pliant.methods import DASH as DASH
    from pliant.methods import FIRE as FIRE
    from pliant.methods import L2 as L2
    from pliant.methods import L2ER as L2ER
    from pliant.methods import ContinualBackprop as ContinualBackprop
    from pliant.methods import GraMa as GraMa
    from pliant.methods import HareAndTortoise as HareAndTortoise
    from pliant.methods import NormalizeAndProject as NormalizeAndProject
    from pliant.methods import Parseval as Parseval
    from pliant.methods import PartialResets as PartialResets
    from pliant.methods import RandomReplacement as RandomReplacement
    from pliant.methods import ReDo as ReDo
    from pliant.methods import SelectiveReinitialization as SelectiveReinitialization
    from pliant.methods import SelfNormalizedResets as SelfNormalizedResets
    from pliant.methods import ShrinkAndPerturb as ShrinkAndPerturb
    from pliant.methods import SoftResets as SoftResets
    from pliant.methods import Spectral as Spectral
    from pliant.methods import Wasserstein as Wasserstein
    from pliant.methods import WeightClipping as WeightClipping
    from pliant.methods import inject_plasticity as inject_plasticity
    from pliant.methods import reset_head as reset_head
    from pliant.methods import reset_network as reset_network
    from pliant.methods import reset_optimizer as reset_optimizer
    from pliant.optimizers import TRAC as TRAC
    from pliant.optimizers import UPGD as UPGD
    from pliant.optimizers import ObGD as ObGD
    from pliant.units import BN as BN
    from pliant.units import AffineEntry as AffineEntry
    from pliant.units import Slice as Slice
    from pliant.units import Tap as Tap
    from pliant.units import UnitGroup as UnitGroup
    from pliant.units import UnitMap as UnitMap
    from pliant.units import chain_groups as chain_groups
    from pliant.units import trace as trace
    from pliant.units.hooks import recording_paused as recording_paused

install()

__version__ = "0.2.0"

_HOMES = {
    "ContinualBackprop": "pliant.methods",
    "L2": "pliant.methods",
    "L2ER": "pliant.methods",
    "NormalizeAndProject": "pliant.methods",
    "FIRE": "pliant.methods",
    "DASH": "pliant.methods",
    "SelectiveReinitialization": "pliant.methods",
    "HareAndTortoise": "pliant.methods",
    "WeightClipping": "pliant.methods",
    "Wasserstein": "pliant.methods",
    "Parseval": "pliant.methods",
    "Spectral": "pliant.methods",
    "SoftResets": "pliant.methods",
    "SelfNormalizedResets": "pliant.methods",
    "PartialResets": "pliant.methods",
    "GraMa": "pliant.methods",
    "RandomReplacement": "pliant.methods",
    "ReDo": "pliant.methods",
    "ShrinkAndPerturb": "pliant.methods",
    "inject_plasticity": "pliant.methods",
    "reset_head": "pliant.methods",
    "reset_network": "pliant.methods",
    "reset_optimizer": "pliant.methods",
    "TRAC": "pliant.optimizers",
    "UPGD": "pliant.optimizers",
    "ObGD": "pliant.optimizers",
    "Monitor": "pliant.diagnostics",
    "diagnose": "pliant.diagnostics",
    "probe_plasticity": "pliant.diagnostics",
    "examine": "pliant.doctor",
    "UnitReset": "pliant.engine.unit_reset",
    "UnitGroup": "pliant.units",
    "UnitMap": "pliant.units",
    "Slice": "pliant.units",
    "Tap": "pliant.units",
    "BN": "pliant.units",
    "AffineEntry": "pliant.units",
    "chain_groups": "pliant.units",
    "trace": "pliant.units",
    "recording_paused": "pliant.units.hooks",
}

__all__ = [
    "BN",
    "DASH",
    "FIRE",
    "L2",
    "L2ER",
    "TRAC",
    "UPGD",
    "AffineEntry",
    "ContinualBackprop",
    "GraMa",
    "HareAndTortoise",
    "Monitor",
    "NormalizeAndProject",
    "ObGD",
    "Parseval",
    "PartialResets",
    "RandomReplacement",
    "ReDo",
    "SelectiveReinitialization",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "Slice",
    "SoftResets",
    "Spectral",
    "Tap",
    "UnitGroup",
    "UnitMap",
    "UnitReset",
    "Wasserstein",
    "WeightClipping",
    "chain_groups",
    "diagnose",
    "examine",
    "inject_plasticity",
    "probe_plasticity",
    "recording_paused",
    "reset_head",
    "reset_network",
    "reset_optimizer",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        return renamed("pliant", {"Own": "pliant.units.AffineEntry"})(name)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
