"""The method that replaces units of actors and critics: continual backprop or ReDo on the engine's run axis, or a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import nn
from torch.optim import Optimizer

from pliant.methods import ContinualBackprop, ReDo
from pliant.methods.continual_backprop import parameters_of
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.settings import Settings
from pliant.units import UnitGroup


class UnitMethod(Protocol):
    """The interface that PPO needs of a method."""

    def step(self) -> None:
        """Called after each step of Adam."""
        ...

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """For each group of units, by any name: "replaced", the units replaced so far, one number per agent."""
        ...

    def restart(self) -> None:
        """Called when all agents have new networks and Adam has no state."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors, arrays, numbers, strings, and mappings and lists of these."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from that state. Raises `ValueError` for a state that does not fit."""
        ...


MethodMaker: TypeAlias = Callable[[nn.Module, Optimizer, list[UnitGroup], list[int]], UnitMethod]


def unit_method(
    networks: ActorCritic,
    optimizer: Optimizer,
    settings: Settings,
    seeds: Sequence[int],
    own: MethodMaker | None = None,
) -> UnitMethod | None:
    """The method that replaces units of actors and critics; its `step()` is called after each gradient step."""
    if own is not None:
        return _own(own, networks, optimizer, settings, seeds)
    if settings.method == "cbp":
        return ContinualBackprop(
            networks,
            optimizer,
            groups=networks.groups(),
            seed=seeds,
            attach=False,
            **parameters_of(settings),
        )
    if settings.method == "redo":
        return ReDo(
            networks,
            optimizer,
            groups=networks.groups(),
            tau=settings.tau,
            period=settings.period,
            optimizer_state=settings.optimizer_state,
            init=settings.init,
            seed=seeds,
            attach=False,
        )
    return None


def _own(
    make: MethodMaker, networks: ActorCritic, optimizer: Optimizer, settings: Settings, seeds: Sequence[int]
) -> UnitMethod:
    if not callable(make):
        raise TypeError(
            f"PPO: method={make!r} is not called with the networks: see docs/ppo.md, or preset('ppo-cbp'), ('ppo-redo')"
        )
    if settings.method != "none":
        raise ValueError(f"PPO: method= stands beside settings of method {settings.method}; give one of them alone")
    made = make(networks, optimizer, networks.groups(), list(seeds))
    missing = lacking(made, UnitMethod)
    if missing:
        raise TypeError(
            f"PPO: what method= gives, a {type(made).__name__}, lacks {', '.join(missing)}: see docs/ppo.md"
        )
    return made


def lacking(given: object, protocol: type) -> list[str]:
    """The names of `protocol` that `given` lacks."""
    return [name for name in vars(protocol) if not name.startswith("_") and not hasattr(given, name)]
