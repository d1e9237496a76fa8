"""Methods that map parameters after every `period` steps of their optimizer, or, with `period=None`, when `apply()` says so.

    θ <- f(θ)        after steps `period`, 2 `period`, ... of the optimizer that steps θ; at an event, all chosen parameters

A parameter that is frozen is left alone. A step that a GradScaler leaves out is none; where only a CUDA device knows, what is
due by a step follows the next one. Random numbers are looked up by (seed, what they are for, optimizer, step), so that to go
on exactly takes a count of steps, and adding another method changes no draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, ClassVar, Literal, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import whole
from pliant.base.saving import count_in, counts_in
from pliant.engine.attached import Optimizers, inner, seeds_of_runs, uncompiled
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import written
from pliant.engine.taken_steps import LateSteps
from pliant.engine.whole_parameters import Place, Which, WholeParameters
from pliant.streams import stream_key

FORMAT = 2  # 1 lacked what was owed


class Period(TypedDict, total=False):
    """When and on what a map acts: what `AfterStep` takes beside model and optimizer, and every such method passes on."""

    period: int | None
    parameters: Which
    runs: int | None
    seed: int | Sequence[int] | None
    attach: bool
    process_group: dist.ProcessGroup | Literal["auto"] | None


class AfterStep(WholeParameters, ABC):
    """Maps parameters after every `period` optimizer steps, or at events.

    Args:
        model: the network.
        optimizer: what steps it, or several, each with its own count of steps; may be None if `period` is.
        period: optimizer steps; None waits for `apply()`.
        parameters: which, see `WholeParameters`.
        runs: axis 0 of every parameter is one of so many runs, each with a seed of its own; None: one network.
        seed: of all draws, or one for each run; None takes `torch.initial_seed()`, under data parallelism that of rank 0.
        attach: True acts by itself after `optimizer.step()`; False waits for you to call `step()` there.
        process_group: whose ranks share the seed, as in `pliant.UnitReset`.

    Raises `ValueError` at construction for what does not fit.
    """

    draws: ClassVar[str]  # what its random numbers are for, in one word that no other method has

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None,
        *,
        period: int | None = 1,
        parameters: Which = None,
        runs: int | None = None,
        seed: int | Sequence[int] | None = None,
        attach: bool = True,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(model, optimizer, parameters, attach=attach)
        if period is not None:
            period = whole("period", period, 1, of="optimizer steps", otherwise=", or None")
        if runs is not None:
            runs = whole("runs", runs, 1, of="networks", otherwise=", or None")
        if optimizer is None and period is not None:
            raise ValueError(
                "without an optimizer there are no steps to count: give one, or period=None and call apply()"
            )
        self.period, self.runs = period, runs
        self.check_fit()
        self.seeds = Ranks(model, process_group).agree_on(seeds_of_runs(seed, runs or 1))
        self.steps = [0] * max(1, len(self.optimizers))  # optimizer steps so far
        self.by_hand = 0  # calls of `apply` so far
        self._late = LateSteps[int, None]()
        if period is not None:
            with self._or_nothing_left():
                self._follow_steps()

    @abstractmethod
    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        """Map these parameters in place, but for frozen ones; `keys` of the streams of random numbers, one per run."""

    # -- events -------------------------------------------------------------------------------------------------------

    @uncompiled
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Count a step of `optimizer`, or of all, and act on its parameters if it is time. Runs after `optimizer.step()`."""
        for number, each in enumerate(self.optimizers):
            if optimizer is None or inner(optimizer) is each:
                outcome = self._clocks[each].ask()
                self._late.settle()
                taken = len(self._late.pop(number)) + (outcome is True)
                if isinstance(outcome, Tensor):
                    self._late.add(number, outcome, [None])
                for _ in range(taken):
                    self._count(number)

    @uncompiled
    def apply(self) -> None:
        """Act on all chosen parameters now; no step is counted."""
        self.by_hand += 1
        self._act(self.places, f"{self.draws} by hand", self.by_hand)

    def _ended(self, optimizer: Optimizer) -> None:
        if self._steps_by_itself:
            self.step(optimizer)

    def _count(self, number: int) -> None:
        """One more step of an optimizer."""
        self.steps[number] += 1
        if self.period is not None and self.steps[number] % self.period == 0:
            places = [place for place in self.places if place.optimizer == number]
            self._act(places, self.draws, number, self.steps[number])

    @torch.no_grad()
    def _act(self, places: Sequence[Place], *words: str | int) -> None:
        self.check_places(places)
        self.act(places, [stream_key(seed, *words) for seed in self.seeds])
        written(place.parameter for place in places)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._late.settle()
        owed = [len(self._late.owed.get(number, ())) for number in range(len(self.steps))]
        counts = {"steps": list(self.steps), "owed": owed, "by_hand": self.by_hand}
        return {**self.settings(), "seeds": list(self.seeds), **counts}

    def _load(self, state: dict[str, Any]) -> None:
        """Strengths may be others."""
        if state["format"] == 1:
            state = {"owed": [0] * len(self.steps), **state, "format": FORMAT}
        self._check_saved(state, self.settings())
        self.seeds = [index(seed) for seed, _ in zip(state["seeds"], self.seeds, strict=True)]
        self.steps = counts_in(state, "steps", len(self.steps))
        self.by_hand = count_in(state, "by_hand")
        owed = counts_in(state, "owed", len(self.steps))
        self._late.clear({number: [None] * count for number, count in enumerate(owed) if count})

    def settings(self) -> dict[str, Any]:
        """What a saved state must have been saved with."""
        optimizers = [place.optimizer for place in self.places]
        return {
            "format": FORMAT,
            "period": self.period,
            "runs": self.runs,
            "names": self.names,
            "optimizer_of_name": optimizers,
        }

    def check_fit(self) -> None:
        """Raise `ValueError`, at construction, where `act` could not map these parameters."""
        for place in self.places if self.runs is not None else ():
            if place.parameter.shape[:1] != (self.runs,):
                raise ValueError(
                    f"'{place.name}' has shape {tuple(place.parameter.shape)}; with runs={self.runs}, axis 0 of every parameter "
                    f"must be the run. Leave it out with parameters=..., or leave out runs"
                )
