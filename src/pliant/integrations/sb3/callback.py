"""Callbacks that attach a reset method when `learn()` starts, and detach it when `learn()` ends.

Stable-Baselines3 calls no callback per gradient step, so the method's own hooks on optimizers and networks do the work: its
clock is the optimizer step, and it records the forwards of the losses, in training mode with gradients. Rollouts, evaluation
and target values run without gradients and are not recorded. Two forwards with gradients are dropped:

    the critic within the actor's loss (SAC, TD3, DDPG), see `networks`
    the minibatch at which PPO stops for `target_kl`, which no step follows

Ages, utilities and optimizer state of young units stay with the callback between two calls of `learn()`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from torch.optim import Optimizer

from pliant.base.arguments import called_with, whole
from pliant.base.saving import StrPath, count_in, load_state, save_state
from pliant.diagnostics import diagnose
from pliant.engine.attached import after_step
from pliant.engine.unit_reset import UnitReset
from pliant.integrations.attaching import Attachment, Method
from pliant.integrations.sb3.networks import Networks, example_inputs, networks_of, recent_inputs
from pliant.integrations.shares import shares
from pliant.units.map import UnitMap

FORMAT = 1
EXAMPLES = 512  # observations that a diagnosis runs on
_INSTEAD = "choose other networks with networks="
_OURS = {"groups": _INSTEAD, "example_inputs": _INSTEAD}


class UnitResetCallback(BaseCallback):
    """Any method while an algorithm learns, such as `UnitResetCallback(pliant.ReDo, tau=0.1, period=1000)`.

    One that resets units logs `pliant/replaced` (units so far) and `pliant/optimizer_steps` (with several optimizers, of the one
    that made most) at every rollout. Every `diagnose_every` optimizer steps it runs the networks on the last 512 observations,
    and logs the share of units that is dead, dormant (ReDo's measure) or saturated, where the measure applies to the activation
    function: `pliant/dead_share`, `pliant/dormant_share`, `pliant/saturated_share`.

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
        method: Method,
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
        self._attachment = Attachment(method, settings, owner=type(self).__name__, ours=_OURS)
        self._networks_of = networks or networks_of
        self.diagnose_every = diagnose_every
        self._networks: Networks | None = None  # not None while attached
        self._diagnosed_at = 0

    # -- what happened -------------------------------------------------------------------------------------------

    @property
    def method(self) -> Any:
        """The method; after training, as it was when it was detached; None before."""
        return self._attachment.method

    @property
    def unit_reset(self) -> UnitReset | None:
        """The method, if it resets units."""
        return self.method if isinstance(self.method, UnitReset) else None

    @property
    def name(self) -> str:
        """That of the method."""
        return self._attachment.name

    @property
    def is_attached(self) -> bool:
        """Whether a `learn()` is running with it."""
        return self._attachment.is_attached

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
        networks = self._networks_of(self.model)
        self._attachment.attach(
            networks,
            networks.optimizers,
            example_inputs=example_inputs(self.model),
            of=self.model,
            run=self.locals.setdefault("pliant", object()),  # one for all callbacks of a learn()
        )
        for borrower, lender in networks.borrows:
            self._attachment.until_detached(after_step(borrower, partial(_drop_borrowed, self._attachment, lender)))
        self._networks = networks

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._attachment.drop_recorded()
        if self.unit_reset is None or self._networks is None:
            return
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
        for name, share in shares(diagnose(networks, inputs, groups=plan, reference=None).rows).items():
            self.logger.record(f"pliant/{name}", share)

    def detach(self) -> None:
        """Remove every hook and keep the state. `learn()` does so when it ends, or, if it raised, the next with a callback."""
        self._attachment.detach()
        self._networks = None

    # -- saving --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries.

        Save it whenever the model is saved. Raises `RuntimeError` before the first `learn()`.
        """
        units = self._attachment.state_dict()
        if units is None:
            raise RuntimeError(f"this {type(self).__name__} has no state yet: learn() has not run with it")
        return {"format": FORMAT, "units": units, "diagnosed_at": self._diagnosed_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` at the next `learn()`, which raises `ValueError` if the model has other units."""
        if state.get("format") != FORMAT:
            raise ValueError(f"this state has format {state.get('format')}, this version reads {FORMAT}")
        diagnosed_at = count_in(state, "diagnosed_at")
        self._attachment.stash(state["units"])
        self._diagnosed_at = diagnosed_at

    def save(self, path: StrPath) -> None:
        """Write `state_dict()` to a file, beside the model's own. A half-written file never takes its place."""
        save_state(self.state_dict(), path)

    def load(self, path: StrPath) -> None:
        """Go on from a file written by `save`. Only tensors, numbers and strings are read; nothing in it is run."""
        self.load_state_dict(load_state(path))

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has the settings and the state, but not the model, which is saved separately."""
        left: dict[str, Any] = {"_networks": None, "parent": None, "locals": {}, "globals": {}}
        kept: dict[str, Any] = {**vars(self), **left}
        kept.pop("model", None)
        return kept


MethodCallback = UnitResetCallback  # as it is called for Lightning


def _drop_borrowed(method: Attachment, lender: Optimizer, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """After the borrower's step: drop the activity of the lender's networks since their own step, which another loss caused."""
    method.drop_recorded(lender)
