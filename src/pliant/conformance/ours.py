"""Adapters of this library's own resets."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isabstract, isclass
from typing import Any, ClassVar

from torch import Tensor

from pliant.base.choices import shown
from pliant.conformance.adapter import Settings, UnitResetAdapter
from pliant.engine.unit_reset import UnitReset
from pliant.methods import ContinualBackprop, GraMa, RandomReplacement, ReDo, SelfNormalizedResets


class OfUnitReset(UnitResetAdapter):
    """A preset of `UnitReset`, which resets by itself after each step of the optimizer."""

    kind: ClassVar[type[UnitReset]]
    method: UnitReset

    def settings_of(self, settings: Settings) -> dict[str, Any]:
        """What this method is built with."""
        return {
            "replacement_rate": settings.replacement_rate,
            "maturity_threshold": settings.maturity_threshold,
            "decay_rate": settings.decay_rate,
        }

    def attach(self, settings: Settings) -> None:
        build: Any = self.kind
        given = {**self.settings_of(settings), "example_inputs": settings.example_inputs, "seed": settings.seed}
        self.method = build(self.model, self.optimizer, **given)

    def utilities(self) -> Mapping[str, Tensor]:
        return {name: value[0] for name, value in self.method.utilities().items()}

    def ages(self) -> Mapping[str, Tensor]:
        return {name: value[0] for name, value in self.method.ages().items()}

    def state_dict(self) -> Any:
        return self.method.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.method.load_state_dict(state)


class OfContinualBackprop(OfUnitReset):
    kind = ContinualBackprop


class OfRandomReplacement(OfUnitReset):
    kind, selection = RandomReplacement, "random"


class OfThreshold(OfUnitReset):
    """ReDo and GraMa at their own `tau`."""

    selection, hands_over = "threshold", False

    def settings_of(self, settings: Settings) -> dict[str, Any]:
        return {"period": settings.maturity_threshold + 1}


class OfReDo(OfThreshold):
    kind = ReDo


class OfGraMa(OfThreshold):
    kind = GraMa


class OfSelfNormalizedResets(OfThreshold):
    """A unit is reset after `maturity_threshold` silent steps at the latest."""

    kind = SelfNormalizedResets

    def settings_of(self, settings: Settings) -> dict[str, Any]:
        return {"shortest": 1, "longest": settings.maturity_threshold}


OURS: tuple[type[OfUnitReset], ...] = (
    OfContinualBackprop, OfRandomReplacement, OfReDo, OfGraMa, OfSelfNormalizedResets
)  # fmt: skip


def adapter_of(found: Any) -> type[UnitResetAdapter]:
    """`found`, if it is an adapter, or the adapter of one of our methods (or of a class derived from one).

    Raises `TypeError` for all else.
    """
    if isclass(found):
        if issubclass(found, UnitResetAdapter):
            if isabstract(found):
                raise TypeError(f"{shown(found)} does not say how to attach: write attach(self, settings)")
            return found
        for ours in OURS:
            if issubclass(found, ours.kind):
                return type(found.__name__, (ours,), {"kind": found})
    names = ", ".join(each.kind.__name__ for each in OURS)
    raise TypeError(
        f"{shown(found)} is no adapter: write a class derived from pliant.conformance.UnitResetAdapter, about 20 lines "
        f"(docs/conformance.md), or give one of {names}"
    )
