"""Shrink and perturb.

    θ <- s θ + σ ξ        s `shrink`,  σ `noise_std`,  ξ ~ N(0, 1) or a fresh draw of the network;  every `period` steps

Published forms, which are not interchangeable:

    Ash and Adams       at each arrival of data: s < 1, then θ + N(0, σ²)     shrink=s, noise_std=σ, period=None, `perturb()`
    Dohare et al.       weight decay in the optimizer, N(0, σ²) every step    shrink=1, noise_std=σ (not times the step size)
    UPGD's baseline     (1 - α d) θ and α σ ξ every step                      shrink=1 - α d, noise_std=α σ
    L2 Init's baseline  (1 - q) θ and σ times fresh weights every step        shrink=1 - q, noise_std=σ, source="init"
    SR-SPR              s θ + (1 - s) fresh weights at events                 shrink=s, noise_std=1 - s, source="init"

Sources: Ash and Adams, NeurIPS 2020; Dohare et al., Nature 632 (2024), released code: weights and biases of weight layers
(image problems, where there are no others), every parameter, batch norms' too, on class-incremental CIFAR-100.

Draws are looked up by (seed, optimizer, step), see `pliant.engine.normal_stream`: to go on exactly takes a count of
steps, and the same numbers come on every device. In half precision a sum below half a unit in the last place is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.choices import one_of
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import written
from pliant.engine.fresh_copy import FreshCopy
from pliant.engine.normal_stream import standard_normal
from pliant.engine.taken_steps import Clock, Pending
from pliant.engine.whole_parameters import (
    Place,
    Which,
    WholeParameters,
    is_captured,
    seeds_of_runs,
)
from pliant.streams import stream_key
from pliant.units.models import plain_name

Source = Literal["normal", "init"]

FORMAT = 1


class ShrinkAndPerturb(WholeParameters):
    """Shrink parameters and add noise to them, after every `period` optimizer steps or when `perturb()` says so.

    A parameter that is frozen is left alone. A step that a GradScaler leaves out is none, see `taken_steps`; where only a
    CUDA device knows, what is due by a step follows the next one.

    Args:
        model: the network.
        optimizer: what steps it, or several, each with its own count of steps; may be None if `period` is.
        noise_std: σ, standard deviation of the noise, or what a fresh draw is multiplied by.
        shrink: s, in [0, 1]; 1 leaves the shrinking to the optimizer's weight decay.
        period: optimizer steps; None waits for `perturb()`.
        source: "normal", or "init": what a fresh `reset_parameters()` of each layer draws (1 for the scale of a norm).
        parameters: which, see `WholeParameters`; biases and norm parameters too, unless you say otherwise.
        runs: axis 0 of every parameter is one of so many runs, each with noise of its own seed; None: one network.
        seed: of all draws, or one for each run; None takes `torch.initial_seed()`, under data parallelism that of rank 0.
            Two of one seed draw the same noise: give an actor and a critic seeds of their own.
        attach: True acts by itself after `optimizer.step()`; False waits for you to call `step()` there.
        process_group: whose ranks share the seed, as in `pliant.engine.unit_reset.UnitReset`.

    Raises `ValueError` at construction for what does not fit.

    >>> model = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    >>> snp = ShrinkAndPerturb(model, optimizer, noise_std=1e-4, seed=0)
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> snp.steps
    [1]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        noise_std: float,
        shrink: float = 1.0,
        period: int | None = 1,
        source: Source = "normal",
        parameters: Which = None,
        runs: int | None = None,
        seed: int | Sequence[int] | None = None,
        attach: bool = True,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(model, optimizer, parameters)
        _check(noise_std, shrink, period, source)
        if optimizer is None and period is not None:
            raise ValueError(
                "without an optimizer there are no steps to count: give one, or period=None and call perturb()"
            )
        self.noise_std, self.shrink, self.period, self.source, self.runs = noise_std, shrink, period, source, runs
        self._check_runs()
        self.seeds = Ranks(model, process_group).agree_on(seeds_of_runs(seed, runs or 1))
        self.steps = [0] * max(1, len(self.optimizers))  # optimizer steps so far
        self.by_hand = 0  # calls of `perturb` so far
        self._fresh = FreshCopy(model) if source == "init" else None
        self._clocks = {each: Clock() for each in self.optimizers}
        self._pending: dict[int, Pending] = {}  # steps of which only the device knows so far
        self._owed = [0] * len(self.steps)  # such steps that were taken and are yet to be counted
        self._steps_by_itself = attach
        for each in self.optimizers if period is not None else ():
            if attach or hasattr(each, "_optimizer_step_post_hooks"):  # a wrapper that is called an optimizer has none
                self._handles.append(each.register_step_post_hook(self._after_step))

    # -- events -------------------------------------------------------------------------------------------------------

    def step(self, optimizer: Optimizer | None = None) -> None:
        """Count a step of `optimizer`, or of all, and perturb its parameters if it is time. Runs after `optimizer.step()`."""
        for number, each in enumerate(self.optimizers):
            if optimizer in (None, each):
                outcome = self._clocks[each].ask()
                self._settle()
                taken, self._owed[number] = self._owed[number] + (outcome is True), 0
                if isinstance(outcome, Tensor):
                    self._pending[number] = Pending(outcome)
                for _ in range(taken):
                    self._count(number)

    def _count(self, number: int) -> None:
        """One more step of an optimizer; perturb its parameters if it is time."""
        self.steps[number] += 1
        if self.period is not None and self.steps[number] % self.period == 0:
            places = [place for place in self.places if place.optimizer == number]
            self._perturb(places, ("perturbation", number, self.steps[number]))

    def _settle(self) -> None:
        """Learn of the steps of which only the device knew."""
        while self._pending:
            number, taken = self._pending.popitem()
            self._owed[number] += taken.wait()

    def perturb(self) -> None:
        """Shrink and perturb all chosen parameters now; no step is counted."""
        self.by_hand += 1
        self._perturb(self.places, ("perturbation by hand", self.by_hand))

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if is_captured(self.places):
            self._clocks[optimizer].recorded()
            if self._steps_by_itself:
                raise RuntimeError(
                    f"{type(optimizer).__name__}.step() is being captured in a CUDA graph, whose replay calls no hook. Build "
                    f"{type(self).__name__} with attach=False, and call its step() after every replay"
                )
            return
        self._clocks[optimizer].after(optimizer)
        if self._steps_by_itself:
            self.step(optimizer)

    def _perturb(self, places: Sequence[Place], words: Sequence[str | int]) -> None:
        self.check_places()
        if self.noise_std:
            keys = [stream_key(seed, *words) for seed in self.seeds]
            noise = self._normal(places, keys) if self._fresh is None else self._of_init(places, self._fresh, keys[0])
        else:
            noise = None
        parameters = [place.parameter for place in places]
        trained = [number for number, parameter in enumerate(parameters) if parameter.requires_grad]
        shrink_and_perturb(
            [parameters[each] for each in trained],
            None if noise is None else [noise[each] for each in trained],
            shrink=self.shrink,
            noise_std=self.noise_std,
        )
        written(parameters)

    # -- noise --------------------------------------------------------------------------------------------------------

    def _normal(self, places: Sequence[Place], keys: Sequence[int]) -> list[Tensor]:
        """One number for each entry. A run's do not depend on how many others there are."""
        sizes = [place.parameter.numel() // len(keys) for place in places]
        drawn: dict[torch.device, Sequence[Tensor]] = {}
        noise: list[Tensor] = []
        for number, place in enumerate(places):
            device = place.parameter.device
            if device not in drawn:
                drawn[device] = standard_normal(keys, sum(sizes), device).split(sizes, dim=1)
            noise.append(drawn[device][number].reshape(place.parameter.shape))
        return noise

    def _of_init(self, places: Sequence[Place], fresh: FreshCopy, key: int) -> list[Tensor]:
        """What a network built anew would start with."""
        drawn = {plain_name(name): parameter for name, parameter in fresh.draw(key).named_parameters()}
        return [drawn[place.name].detach().to(place.parameter) for place in places]

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        counts = {"steps": list(self.steps), "owed": list(self._owed), "by_hand": self.by_hand}
        return {**self._settings(), "seeds": list(self.seeds), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; strengths may change. Raises `ValueError` for another source or other parameters."""
        self.check_saved(state, self._settings())
        self.seeds, self.steps, self.by_hand = list(state["seeds"]), list(state["steps"]), int(state["by_hand"])
        self._pending, self._owed = {}, list(state.get("owed", [0] * len(self.steps)))

    def _settings(self) -> dict[str, Any]:
        optimizers = [place.optimizer for place in self.places]
        here = {"period": self.period, "source": self.source, "runs": self.runs}
        return {"format": FORMAT, **here, "names": self.names, "optimizer_of_name": optimizers}

    def _check_runs(self) -> None:
        if self.runs is None:
            return
        if self.source == "init":
            raise ValueError("source='init' draws a whole network at a time and knows no runs; use source='normal'")
        for place in self.places:
            if place.parameter.shape[:1] != (self.runs,):
                raise ValueError(
                    f"'{place.name}' has shape {tuple(place.parameter.shape)}; with runs={self.runs}, axis 0 of every parameter "
                    f"must be the run. Leave it out with parameters=..., or leave out runs"
                )


@torch.no_grad()
def shrink_and_perturb(
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor] | None,
    *,
    shrink: float,
    noise_std: float,
) -> None:
    """`shrink` θ + `noise_std` ξ in the place of each θ.

    >>> weight = torch.tensor([2.0, 4.0])
    >>> shrink_and_perturb([weight], [torch.tensor([1.0, -1.0])], shrink=0.5, noise_std=0.1)
    >>> weight
    tensor([1.1000, 1.9000])
    """
    if not parameters:
        return
    if shrink != 1.0:
        torch._foreach_mul_(parameters, shrink)  # pyright: ignore
    if noise is not None:
        torch._foreach_add_(parameters, noise, alpha=noise_std)  # pyright: ignore


def _check(noise_std: float, shrink: float, period: int | None, source: str) -> None:
    if not 0.0 <= noise_std < float("inf"):
        raise ValueError(f"noise_std must be 0 or more, got {noise_std}")
    if not 0.0 <= shrink <= 1.0:
        raise ValueError(f"shrink must lie in [0, 1], got {shrink}; 1 shrinks nothing")
    if period is not None and (not period >= 1 or period % 1):
        raise ValueError(f"period must be 1 or more whole optimizer steps, or None, got {period}")
    one_of("source", source, get_args(Source))
