"""The options of a batch of bodies, checked at construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from pliant.base.choices import nearest, shortened
from pliant.base.memory import refuse_too_large
from pliant.rl.environments.base import Floats
from pliant.rl.environments.bodies import BODIES, VERSIONS, Body, Version
from pliant.rl.environments.counts import check_counts
from pliant.rl.environments.friction import FrictionSchedule, check_friction
from pliant.rl.environments.physics import CONTACT_MARGINS, INTEGRATORS, ContactMargin, Integrator

Friction: TypeAlias = FrictionSchedule | float | Sequence[float] | None


@dataclass(frozen=True)
class Options:
    """The arguments of `MujocoBatch`. Raises ValueError, naming the option and what it may be."""

    body: Body
    seeds: tuple[int, ...]
    copies: int
    friction: FrictionSchedule | tuple[float, ...] | None  # numbers: one for each agent
    version: Version
    contact_forces: bool
    padding: int
    contact_margin: ContactMargin
    integrator: Integrator | None
    clip_actions: bool
    time_limit: int

    def __post_init__(self) -> None:
        _one_of("version", self.version, tuple(each for each in VERSIONS if each in self.body.files))
        _one_of("contact_margin", self.contact_margin, CONTACT_MARGINS)
        _one_of("integrator", self.integrator, (None, *INTEGRATORS))
        counts = {"copies": self.copies, "padding": self.padding, "time_limit": self.time_limit}
        check_counts(self.seeds, counts, least={"padding": 0})
        for name in ("contact_forces", "clip_actions"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name}={shortened(repr(getattr(self, name)))}: give True or False")
        bodies = len(self.seeds) * self.copies
        refuse_too_large(f"{bodies} bodies (seeds, copies) with padding={self.padding}", bodies * (4000 + self.padding))
        if self.contact_forces and not self.body.feels_contact:
            raise ValueError(f"'{self.body.name}' has no contact forces in its observation: only 'ant' has")
        if isinstance(self.friction, tuple):
            if len(self.friction) != len(self.seeds):
                raise ValueError(
                    f"{len(self.friction)} frictions for {len(self.seeds)} agents: give one for all, or one for each"
                )
            for friction in self.friction:
                check_friction(friction)

    def as_text(self) -> dict[str, str]:
        """The settings that a saved state belongs to: a body of this package by its name, another by all its fields."""
        said = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        return said | {"body": self.body.name} if BODIES.get(self.body.name) == self.body else said


def one_for_each(friction: Friction, agents: int) -> FrictionSchedule | tuple[float, ...] | None:
    """A single number stands for all agents. Raises ValueError where there is no number.

    >>> one_for_each(0.5, 3)
    (0.5, 0.5, 0.5)
    """
    if friction is None or isinstance(friction, FrictionSchedule):
        return friction
    try:
        given: Floats | None = np.asarray(friction, np.float64)
    except (TypeError, ValueError):
        given = None
    if given is None or given.ndim > 1 or np.asarray(friction).dtype.kind not in "iuf":
        raise ValueError(
            f"friction={shortened(repr(friction))}: give a number for all agents, one for each, a FrictionSchedule, "
            "or None for the XML's own"
        )
    return (float(given),) * agents if given.ndim == 0 else tuple(given.tolist())


def refuse_other_settings(saved: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise ValueError where a state has other settings than the environment that is to load it."""
    if not isinstance(saved, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError("'settings' of this state is no table: load what state_dict() gave")
    for name, value in here.items():
        if saved.get(name) != value:
            raise ValueError(f"the state belongs to {name} = {saved.get(name)}; here it is {value}")


def _one_of(option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not (value is None or isinstance(value, str)) or value not in allowed:
        names = [str(each) for each in allowed]
        raise ValueError(
            f"{option}={shortened(repr(value))} is none of {', '.join(names)}; the nearest is {nearest(value, names, 0.0)}"
        )
