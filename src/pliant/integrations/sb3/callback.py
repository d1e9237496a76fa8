"""Callbacks that attach a reset method when `learn()` starts, and detach it when `learn()` ends.

Stable-Baselines3 calls no callback per gradient step, so the method's own hooks on optimizers and networks do the work: its
clock is the optimizer step, and it records the forwards of the losses, in training mode with gradients. Rollouts, evaluation
and target values run without gradients and are not recorded. Two forwards with gradients are dropped:

    the critic within the actor's loss (SAC, TD3, DDPG), see `networks`
    the minibatch at which PPO stops for `target_kl`, which no step follows

Ages, utilities and optimizer state of young units stay with the callback between two calls of `learn()`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.base.arguments import called_with, patterns, shown, whole
from pliant.base.process import random_state
from pliant.base.saving import StrPath, load_state, save_state
from pliant.diagnostics import diagnose
from pliant.engine.attached import after_step
from pliant.engine.redraw import state_follows
from pliant.engine.unit_reset import UnitReset
from pliant.integrations.sb3.networks import Networks, example_inputs, networks_of, recent_inputs
from pliant.units.map import UnitMap

FORMAT = 1
EXAMPLES = 512  # observations that a diagnosis runs on
SHARES = {
    "dead": "dead",
    "dormant": "dormant_by_activity",
    "saturated": "saturated",
}  # as logged -> field of a diagnosis
_OURS = ("groups", "example_inputs", "attach")


class _Attached(NamedTuple):
    """The learn() and the callback that attached a method, held so that neither model nor callback is kept alive by it."""

    learn: object
    callback: ref[UnitResetCallback]
    handles: list[RemovableHandle]


_log = logging.getLogger("pliant")
_attached: WeakKeyDictionary[UnitReset, _Attached] = WeakKeyDictionary()


def _take_off_left_over(optimizers: Sequence[Optimizer], learn: object) -> None:
    """Detach methods that another learn() attached to these optimizers and, as it raised, left. Its callback keeps the state."""
    for method, found in list(_attached.items()):
        if found.learn is not learn and not {*optimizers}.isdisjoint(method.optimizers):
            _log.warning(
                "%s of an earlier learn(), which did not end, is detached from its model", type(method).__name__
            )
            owner = found.callback()
            if owner is None:
                _take_off(method, found.handles)
            else:
                owner.detach()


def _take_off(method: UnitReset, handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    method.detach()
    _attached.pop(method, None)


class UnitResetCallback(BaseCallback):
    """Any method that resets units, such as `UnitResetCallback(pliant.ReDo, tau=0.1, period=1000)`.

    Logs `pliant/replaced` (units so far) and `pliant/optimizer_steps` (with several optimizers, of the one that made most) at
    every rollout. Every `diagnose_every` optimizer steps it runs the networks on the last 512 observations, and logs the share of
    units that is dead, dormant (ReDo's measure) or saturated, where the measure applies to the activation function:
    `pliant/dead_share`, `pliant/dormant_share`, `pliant/saturated_share`.

    Args:
        method: `method(networks, optimizers, example_inputs=..., **settings)` builds it.
        networks: function of a model that returns its `Networks`; by default those of PPO, A2C, DQN, SAC, TD3, DDPG.
        diagnose_every: optimizer steps; None never diagnoses.
        settings: of the method. Names in `include` and `exclude` are those in `callback.plan`.

    Raises at construction what the method raises for these settings; when `learn()` starts, `TypeError` for an algorithm
    whose networks are not known, `ValueError` where no unit is found or a loaded state is of other units, `RuntimeError`
    for a second model.
    """

    def __init__(
        self,
        method: Callable[..., UnitReset],
        *,
        networks: Callable[[Any], Networks] | None = None,
        diagnose_every: int | None = 10_000,
        verbose: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(verbose)
        if diagnose_every is not None:
            diagnose_every = whole("diagnose_every", diagnose_every, 1, of="optimizer steps", otherwise=", or None")
        if networks is not None:
            called_with("networks", networks, "model")
        if not callable(method):
            raise TypeError(f"method must be one that resets units, such as pliant.ReDo, got {shown(method)}")
        _try(method, settings)
        self._method, self._settings, self._networks_of = method, settings, networks or networks_of
        self.diagnose_every = diagnose_every
        self.unit_reset: UnitReset | None = None  # the method; after training, as it was when it was detached
        self._networks: Networks | None = None  # not None while attached
        self._handles: list[RemovableHandle] = []
        self._state: dict[str, Any] | None = None  # loaded or saved state, from which the next learn() goes on
        self._trained: BaseAlgorithm | None = None  # the model that `_state` is of; None if it was loaded
        self._diagnosed_at = 0

    # -- what happened -------------------------------------------------------------------------------------------

    @property
    def plan(self) -> UnitMap | None:
        """Every unit, and the parameters that were left alone, with the reason; None before the first `learn()`."""
        return self.unit_reset.plan if self.unit_reset else None

    def stats(self) -> dict[str, dict[str, Any]]:
        """Of each group of units: optimizer steps seen, units replaced, the last step that replaced any."""
        return self.unit_reset.stats() if self.unit_reset else {}

    # -- what Stable-Baselines3 calls ----------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        self.detach()  # a learn() that raised left it attached, as it may have left others
        learn = self.locals.setdefault("pliant", object())  # one for all callbacks of a learn()
        if self._trained is not None and self._trained is not self.model:
            raise RuntimeError(
                f"this {type(self).__name__} has trained another model. Give every model its own; to go on with a model that was "
                f"saved and loaded: new_callback.load_state_dict(callback.state_dict())"
            )
        networks = self._networks_of(self.model)
        _take_off_left_over(networks.optimizers, learn)
        with state_follows() if self._state is not None else nullcontext():
            method = self._method(
                networks, networks.optimizers, example_inputs=example_inputs(self.model), **self._settings
            )
        if self._state is not None:
            try:
                method.load_state_dict(self._state["units"])
            except Exception:
                method.detach()
                raise
        for borrower, lender in networks.borrows:
            self._handles.append(after_step(borrower, partial(_drop_borrowed, method, lender)))
        self.unit_reset, self._networks, self._trained = method, networks, self.model
        _attached[method] = _Attached(learn, ref(self), self._handles)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.unit_reset is None or self._networks is None:
            return
        self.unit_reset.drop_recorded()
        stats = self.unit_reset.stats().values()
        steps = max(group["steps"] for group in stats)
        self.logger.record("pliant/replaced", sum(sum(group["replaced"]) for group in stats))
        self.logger.record("pliant/optimizer_steps", steps)
        if self.diagnose_every is not None and steps - self._diagnosed_at >= self.diagnose_every:
            self._diagnosed_at = steps
            self._diagnose(self._networks, self.unit_reset.plan)

    def _on_training_end(self) -> None:
        self.detach()

    def _diagnose(self, networks: Networks, plan: UnitMap) -> None:
        inputs = recent_inputs(self.model, EXAMPLES)
        if inputs is None:
            return
        rows = diagnose(networks, inputs, groups=plan, reference=None).rows
        for name, field in SHARES.items():
            known = [row for row in rows if getattr(row, field) is not None]
            if known:
                found = sum(getattr(row, field) for row in known)
                self.logger.record(f"pliant/{name}_share", found / sum(row.units for row in known))

    def detach(self) -> None:
        """Remove every hook and keep the state. `learn()` does so when it ends, or, if it raised, the next with a callback."""
        if self.unit_reset is None or self._networks is None:
            return
        self._state = self.state_dict()
        _take_off(self.unit_reset, self._handles)
        self._handles, self._networks = [], None

    # -- saving --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries.

        Save it whenever the model is saved. Raises `RuntimeError` before the first `learn()`.
        """
        if self.unit_reset is not None and self._networks is not None:
            units = self.unit_reset.state_dict()
            return {"format": FORMAT, "units": units, "diagnosed_at": self._diagnosed_at}
        if self._state is None:
            raise RuntimeError(f"this {type(self).__name__} has no state yet: learn() has not run with it")
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` at the next `learn()`, which raises `ValueError` if the model has other units."""
        if state.get("format") != FORMAT:
            raise ValueError(f"this state has format {state.get('format')}, this version reads {FORMAT}")
        if self._networks is not None:
            raise RuntimeError("learn() is running with this callback: load its state before or after")
        self._state, self._trained, self._diagnosed_at = state, None, int(state["diagnosed_at"])

    def save(self, path: StrPath) -> None:
        """Write `state_dict()` to a file, beside the model's own. A half-written file never takes its place."""
        save_state(self.state_dict(), path)

    def load(self, path: StrPath) -> None:
        """Go on from a file written by `save`. Only tensors, numbers and strings are read; nothing in it is run."""
        self.load_state_dict(load_state(path))

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has the settings and the state, but not the model, which is saved separately."""
        state = self.state_dict() if self._networks is not None else self._state
        left: dict[str, Any] = {"unit_reset": None, "_networks": None, "_handles": [], "_trained": None, "parent": None}
        kept: dict[str, Any] = {**vars(self), **left, "locals": {}, "globals": {}, "_state": state}
        kept.pop("model", None)
        return kept


def _try(method: Callable[..., UnitReset], settings: dict[str, Any]) -> None:
    """Raise what `method` raises for these settings, before a model is there: build it on a small network."""
    ours = [name for name in _OURS if name in settings]
    if ours:
        raise TypeError(f"{', '.join(ours)}: the callback sets these itself; choose other networks with networks=")
    with random_state():
        network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    there = [name for name in ("include", "exclude") if name in settings]  # names in the model's networks
    for name in there:
        patterns(name, settings[name])
    anywhere = {name: value for name, value in settings.items() if name not in there}
    method(network, SGD(network.parameters(), lr=0.1), example_inputs=torch.zeros(2, 2), **anywhere).detach()


def _drop_borrowed(method: UnitReset, lender: Optimizer, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """After the borrower's step: drop the activity of the lender's networks since their own step, which another loss caused."""
    method.drop_recorded(lender)
