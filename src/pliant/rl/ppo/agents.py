"""PPO for several agents side by side, with units replaced as it learns.

    collect   every agent acts in its own copies of the environment until the rollout is full
    update    the agents learn from the rollout, `epochs` epochs in minibatches; after each gradient step units are replaced

The agents share their settings and differ in seed. An agent's numbers depend on its seed alone: to the bit while it acts, and to
rounding while it learns, because stacks of different size may add up in another order.

Source: Schulman et al., arXiv 1707.06347 (2017); with continual backpropagation, Dohare et al., Nature 632 (2024). Departures:
`pliant.rl.ppo.settings`, whose presets say which settings are Dohare et al.'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from operator import index
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.base.deprecation import renamed_attributes
from pliant.base.memory import refuse_too_large
from pliant.base.saving import StrPath, entry, load_state, save_state
from pliant.engine.unit_reset import UnitReset
from pliant.rl.environments.base import Environments, Floats
from pliant.rl.environments.counts import counts, is_count
from pliant.rl.environments.gymnasium_batch import GymnasiumBatch, is_of_gymnasium
from pliant.rl.ppo.acting import Episodes, RolloutCollector
from pliant.rl.ppo.adam import StackedAdam
from pliant.rl.ppo.learning import learn, prepared
from pliant.rl.ppo.measures import measures, weight_change
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.normalization import RunningMoments, discounted_sums, normalized_rewards
from pliant.rl.ppo.saved import refuse_other_state
from pliant.rl.ppo.settings import Settings, preset
from pliant.rl.ppo.unit_method import MethodMaker, lacking, unit_method
from pliant.streams import generator

FORMAT = 1


@dataclass(frozen=True)
class Update:
    """Losses and changes of an update, each (agents,)."""

    policy_loss: Floats  # mean over its minibatches
    value_loss: Floats
    weight_change: Floats  # Σ |new - old| over the actor's weight matrices
    replaced: NDArray[np.int64]  # units, so far


@renamed_attributes({"likeliest_actions": "greedy_actions"})
class PPO:
    """Several agents with the same settings, one per seed, in the given environments.

    Args:
        environments: of `pliant.rl.environments`, or with their interface, with as many agents as there are seeds; or what
            `GymnasiumBatch` takes: an id of gymnasium, an environment, a function that makes one, a `VectorEnv`. If they have a
            `padding`, that many numbers at the end of an observation are always 0, and are not multiplied.
        settings: see `pliant.rl.ppo.settings`; `preset("ppo-cbp")` and others, or the name of a preset.
        seeds: one per agent, of its weights, actions and minibatches, and of gymnasium's environments; by default those of the
            environments, where they have `seeds`, and [0] with gymnasium's.
        dtype: of the networks; float32 or float64.
        copies: of gymnasium's environment, for each agent; by default 1, and of a `VectorEnv` as many as it has.
        method: a function that makes a method of your own (`UnitMethod`) from the networks, their optimizer, the groups of
            units and the seeds, instead of that of the settings. It is stepped, counted, saved and restarted with the agents.

    Raises `ValueError` if environments, seeds and settings do not fit together, and `TypeError` if the environments or the
    method lack part of their interface.

    >>> from pliant.rl.environments import RewiredCartPole
    >>> from pliant.rl.ppo import PPO, preset
    >>> settings = preset("ppo-cbp", rollout_steps=32, minibatch_size=64, hidden=(16, 16))
    >>> agents = PPO(RewiredCartPole(seeds=[0, 1, 2], copies=4), settings)
    >>> episodes, update = agents.iterate()
    >>> agents.steps, update.value_loss.shape, agents.measures()["effective_rank"].shape
    (128, (3,), (3,))
    >>> episodes, update = PPO("CartPole-v1", settings, seeds=[0, 1], copies=4).iterate()
    """

    def __init__(
        self,
        environments: Environments | Any,
        settings: Settings | str,
        seeds: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        method: MethodMaker | None = None,
        copies: int | None = None,
    ) -> None:
        if isinstance(environments, str) and environments.endswith("Policy"):
            raise ValueError(
                f"PPO: {environments!r} comes first in Stable-Baselines3; here it is PPO(environment, settings), such as "
                f"PPO('CartPole-v1', 'modern'), and hidden=(64, 64) is one of the settings"
            )
        settings = preset(settings) if isinstance(settings, str) else settings
        environments = _environments(environments, seeds, copies)
        seeds = getattr(environments, "seeds", None) if seeds is None else seeds
        if seeds is None:
            raise ValueError(f"PPO: {type(environments).__name__} has no seeds; give seeds=[...], one for each agent")
        _check(environments, settings, seeds, dtype)
        agents = environments.agents
        self.settings, self.seeds = settings, [int(seed) for seed in seeds]
        size, self._padding = environments.observation_size, int(getattr(environments, "padding", 0))
        self.networks = ActorCritic(agents, size, environments.actions, settings, dtype, self._padding)
        for agent, seed in enumerate(self.seeds):
            self.networks.redraw(agent, seed, life=0)
        self.adam = StackedAdam(self.networks, agents, settings)
        self.method = unit_method(self.networks, self.adam.optimizer, settings, self.seeds, method)
        self.acting = RolloutCollector(
            environments, self.networks, settings, self.seeds, torch.empty(0, dtype=dtype).numpy().dtype
        )
        self._restarts = np.zeros(agents, np.int64)  # restarts of each agent
        self._rewards_so_far, self._discounted = RunningMoments(agents), np.zeros((agents, environments.copies))
        self._measurable = False

    @property
    def environments(self) -> Environments:
        return self.acting.environments

    @property
    def steps(self) -> int:
        """Environment steps of each agent so far, summed over its copies."""
        return self.acting.steps

    @property
    def updates(self) -> int:
        """Updates so far, one per rollout."""
        return self.acting.number

    @property
    def diverged_at(self) -> NDArray[np.int64]:
        """The environment step at which an agent diverged (one of its numbers was not finite), (agents,); -1 where none has."""
        return self.acting.diverged_at.copy()

    # -- acting and learning ------------------------------------------------------------------------------------------

    def iterate(self) -> tuple[Episodes, Update]:
        """Fill the rollout, and learn from it."""
        return self.collect(), self.update()

    @property
    def full(self) -> bool:
        """Whether the rollout is full, so that `update()` is next."""
        return self.acting.rollout.full

    def collect(self, steps: int | None = None) -> Episodes:
        """Act for at most `steps` steps in each copy, and no further than to the end of the rollout.

        Raises `RuntimeError` if the rollout is full (`update()` comes first), or if a parameter was moved in memory, as by
        setting its `.data`: acting would go on with the old one.
        """
        if self.full:
            raise RuntimeError("the rollout is full: call update() before collect()")
        self._measurable = False
        if steps is not None and not is_count(steps, least=0):
            raise ValueError(f"collect: steps={steps!r}: a whole number, 0 or more, or None for the whole rollout")
        left = self.acting.rollout.steps - self.acting.rollout.filled
        return self.acting.collect(left if steps is None else min(steps, left))

    def update(self) -> Update:
        """Learn from the full rollout and begin the next. Raises `RuntimeError` if the rollout is not full."""
        acting = self.acting
        if not self.full:
            raise RuntimeError(
                f"the rollout has {acting.rollout.filled} of {acting.rollout.steps} steps: collect() first"
            )
        if self._padding and acting.rollout.observations[..., -self._padding :].any():
            raise ValueError(f"the environments have padding={self._padding}, but the end of an observation was not 0")
        self.networks.check_places()
        with np.errstate(over="ignore", invalid="ignore"):
            last = acting.seen(self.environments.observations)
            batch = prepared(self.networks, acting.rollout, self._rewards(), last, self.settings)
        before = [layer.weight.detach().clone() for layer in self.networks.actor.linears()]
        found = learn(self.networks, self.adam, self.method, batch, self._orders(), self.settings)
        acting.diverge(~(found.total.isfinite().all(0).numpy() & self.networks.finite()))
        acting.begin_rollout()
        self._measurable = True
        policy, value = (each.double().mean(0).numpy() for each in (found.policy, found.value))
        return Update(policy, value, weight_change(before, self.networks), self.replaced())

    def _rewards(self) -> Floats:
        """The rollout's rewards, normalized where the settings say so, (steps, agents, copies)."""
        rollout = self.acting.rollout
        if not self.settings.normalize_rewards:
            return rollout.rewards
        sums, self._discounted = discounted_sums(
            rollout.rewards, rollout.ended, self._discounted, self.settings.discount
        )
        self._rewards_so_far.update(sums.transpose(1, 0, 2).reshape(sums.shape[1], -1))
        return normalized_rewards(rollout.rewards, self._rewards_so_far)

    def _orders(self) -> NDArray[np.int64]:
        """The order of each agent's states in each epoch, (epochs, agents, states)."""
        states = self.settings.rollout_steps * self.environments.copies
        streams = [generator(seed, "minibatch order", self.updates) for seed in self.seeds]
        return np.array([[draws.permutation(states) for draws in streams] for _ in range(self.settings.epochs)])

    def greedy_actions(self, observations: Floats | None = None) -> NDArray[Any]:
        """Actions without exploration noise, in the form that `step` of the environments takes: for evaluation.

        For the current observations, or for `observations` (agents, n, size) of evaluation environments: actions
        (agents, n[, size]). The agents are not changed. To evaluate them, step environments of their own: stepping the training
        environments by hand would take steps that the agents do not learn from.
        """
        return self.acting.greedy_actions(observations)

    def replaced(self) -> NDArray[np.int64]:
        """Units replaced so far, (agents,)."""
        if self.method is None:
            return np.zeros(len(self.seeds), np.int64)
        return np.array([group["replaced"] for group in self.method.stats().values()], np.int64).sum(axis=0)

    def measures(self, states: int | None = 1000) -> dict[str, NDArray[np.float64]]:
        """Measures of the networks (`pliant.rl.ppo.MEASURES`) on the last `states` states of the rollout just learned from.

        Raises `RuntimeError` at any other time than after `update()`, when that rollout is no longer there.
        """
        if not self._measurable:
            raise RuntimeError(
                "measures() reads the rollout just learned from: call it after update(), before collect()"
            )
        return measures(self.networks, self.acting.states(states))

    def _between_rollouts(self, what: str) -> None:
        if self.acting.rollout.filled:
            raise RuntimeError(f"{what} amid a rollout, {self.acting.rollout.filled} steps in: call it after update()")

    # -- beginning anew -----------------------------------------------------------------------------------------------

    def restart(self, agents: Iterable[int] | None = None) -> None:
        """Give some agents, or all, new networks and an Adam without state: between two rollouts.

        An agent's new initial weights are drawn from its seed and the number of its restarts. An agent that has diverged stays
        diverged. Raises `RuntimeError` amid a rollout, and `ValueError` for an unknown agent. Also raises `ValueError` where only
        some agents are named and units are replaced by continual backprop or a method of your own, whose state is shared by all
        agents, or with optimizer_state="fresh", which counts steps per fresh unit, so that an agent restarted alone cannot.
        """
        self._between_rollouts("restart()")
        chosen = sorted(range(len(self.seeds)) if agents is None else set(map(index, agents)))
        if any(not 0 <= agent < len(self.seeds) for agent in chosen):
            raise ValueError(f"restart: agents {chosen} of {len(self.seeds)}: they are numbered from 0")
        if len(chosen) < len(self.seeds):
            self._check_partial_restart()
        for agent in chosen:
            self._restarts[agent] += 1
            self.networks.redraw(agent, self.seeds[agent], int(self._restarts[agent]))
            self.adam.restart(agent)
            self.acting.experience.forget(agent)
            self._rewards_so_far.forget(agent)
        if self.method is not None and len(chosen) == len(self.seeds):
            if isinstance(self.method, UnitReset):
                self.method.restart(optimizer_state=True)
            else:
                self.method.restart()

    def _check_partial_restart(self) -> None:
        if self.method is not None and self.settings.method != "redo":
            raise ValueError(
                f"restart: {type(self.method).__name__} restarts with all agents of a stack or none; give these agents a PPO "
                f"of their own"
            )
        if self.method is not None and self.settings.optimizer_state == "fresh":
            raise ValueError(
                "restart: with optimizer_state='fresh', Adam's steps are counted for each fresh unit, and the count of an agent "
                "restarted alone would take its place. Restart all agents, choose optimizer_state='fill', 'zero' or 'keep', or "
                "give these agents a PPO of their own"
            )

    def forget_episodes(self) -> None:
        """Call this after beginning new episodes in all environments, as for a new task: those cut off are not reported.

        Raises `RuntimeError` amid a rollout, which would continue across the cut.
        """
        self._between_rollouts("forget_episodes()")
        self.acting.forget_episodes()
        self._discounted[:] = 0.0

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, arrays, numbers, strings, and mappings of these."""
        return {
            "format": FORMAT,
            "settings": self.settings.as_dict(),
            "seeds": list(self.seeds),
            "parameters": {name: value.detach().clone() for name, value in self.networks.named_parameters()},
            "adam": self.adam.state_dict(),
            "method": None if self.method is None else self.method.state_dict(),
            "acting": self.acting.state_dict(),
            "lives": self._restarts.copy(),
            "rewards": self._rewards_so_far.state_dict(),
            "discounted": self._discounted.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, to the bit.

        Raises `ValueError`, and changes nothing, if format, settings, seeds, shapes, dtype or environments differ.
        """
        here, measurable = self.state_dict(), self._measurable
        try:
            refuse_other_state(state, here)
            self._take_in(state)
        except Exception as error:  # the environments', or a method's: they know best what they cannot go on from
            self._take_in(here)
            self._measurable = measurable
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"this state of a PPO is damaged: {type(error).__name__} {error}") from error

    @torch.no_grad()
    def _take_in(self, state: Mapping[str, Any]) -> None:
        self.acting.load_state_dict(state["acting"])
        for name, parameter in self.networks.named_parameters():
            parameter.copy_(state["parameters"][name])
        self.adam.load_state_dict(state["adam"])
        if self.method is not None:
            self.method.load_state_dict(state["method"])
        self._restarts = counts(state, "lives", self._restarts)
        self._rewards_so_far.load_state_dict(state["rewards"])
        self._discounted = entry(state, "discounted", self._discounted)
        if getattr(self.environments, "interrupted", None) is not None and not self.acting.rollout.filled:
            self._discounted[:] = 0.0  # amid a rollout, its last step is marked as the end of these episodes
        self._measurable = False

    def save(self, path: StrPath) -> None:
        """Write `state_dict()` to a file. A half-written file never takes its place."""
        save_state(self.state_dict(), path)

    def load(self, path: StrPath) -> None:
        """Go on from what `save` wrote, to the bit, in a PPO of the same settings, seeds and environments.

        Nothing in the file is executed. Raises `ValueError`, and changes nothing, where they differ or the file is damaged.
        """
        self.load_state_dict(load_state(path))


def _environments(given: Any, seeds: Sequence[int] | None, copies: int | None) -> Environments:
    """What is given, if it has the interface of environments, or a `GymnasiumBatch` of it."""
    missing = [name for name in lacking(given, Environments) if "state_dict" not in name]  # asked when agents are saved
    is_ours = any(name not in missing for name in ("agents", "copies", "observation_size", "observations"))
    if missing and (is_of_gymnasium(given) or not is_ours):
        return GymnasiumBatch(given, seeds=(0,) if seeds is None else seeds, copies=copies)
    if missing:
        raise TypeError(
            f"PPO: {type(given).__name__} lacks {', '.join(missing)}, and so is none of pliant.rl.environments, nor one with "
            f"their interface: docs/environments.md has an example"
        )
    if copies is not None and copies != given.copies:
        raise ValueError(f"PPO: copies={copies}, and {type(given).__name__} has {given.copies}: leave copies out")
    return given


def _check(environments: Environments, settings: Settings, seeds: Sequence[int], dtype: torch.dtype) -> None:
    if not isinstance(settings, Settings):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"PPO: settings must be Settings or a preset's name, got a {type(settings).__name__}")
    if len(seeds) != environments.agents:
        raise ValueError(f"PPO: {len(seeds)} seeds for environments of {environments.agents} agents; give one each")
    if not all(isinstance(seed, Integral) and not isinstance(cast(object, seed), bool) for seed in seeds):
        raise TypeError(f"PPO: seeds={list(seeds)!r}: give a whole number for each agent")
    sizes = [environments.observation_size, *settings.hidden]
    weights = 2 * environments.agents * (sum(m * n for m, n in pairwise(sizes)) + sum(sizes))
    refuse_too_large(f"PPO: hidden={settings.hidden} for {environments.agents} agents", 4 * weights, 4)
    rows = settings.rollout_steps * environments.agents * environments.copies
    refuse_too_large(f"PPO: rollout_steps={settings.rollout_steps}", rows * (environments.observation_size + 4), 4)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"PPO: dtype must be torch.float32 or torch.float64, got {dtype}")
    states = settings.rollout_steps * environments.copies
    if states % settings.minibatch_size:
        raise ValueError(
            f"PPO: a rollout has {states} states (rollout_steps {settings.rollout_steps} x {environments.copies} copies), which "
            f"minibatch_size {settings.minibatch_size} does not divide"
        )
