"""Soft resets: before a step, parameters drift toward where they began, as far as that makes the coming batch likelier.

    θ(γ, ε)  =  γ θ + (1 - γ) θ*  +  ε σ √(γ² s² + 1 - γ²)      θ under an Ornstein-Uhlenbeck drift, ε ~ N(0, 1)
    γ       <-  γ + η ∂/∂γ log mean over M draws of exp(-L(θ(γ, ε)))        K times, from γ = 1 on, kept in [0, 1]
    θ       <-  γ θ + (1 - γ) θ*                                 the drift, without its noise
    θ       <-  θ + (γ² + (1 - γ²) / s²) (step of the optimizer)            the following one

    L  loss of the coming batch, -log of its likelihood       θ*  the initial parameters, or 0 (`toward`)
    η  `gamma_step_size`    K  `inner_steps`    M  `samples`    s  `spread`: what is not known of θ, in units of σ

Where nothing has changed γ stays at 1 and so do the parameters; where the batch is one that the network as it began would take
better, they drift, and learn faster, the more the less is known of them: the variance has grown by γ² + (1 - γ²) / s². Each
parameter (a weight, a bias) has a γ of its own, and as its σ the standard deviation of its entries as they began.

Source: Galashov et al., NeurIPS 2024 (arXiv 2411.04034): the drift, γ by gradient steps on the likelihood of the next batch,
the step from the drifted parameters, its greater size. There is no released code, and of K, M, η and s no published value
could be confirmed; nor could that γ begins at 1 in each step, and the factor of the step, which are derived here from the drift
and from a posterior of standard deviation s σ. Their Bayesian form, which learns a σ of each weight, is not here.

Cost of an event: K M forwards and backwards of the batch beside that of the step, a copy of the parameters while it lasts and one
while the optimizer steps; between them a copy of the initial ones, unless these are 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import called_with, number, positive, whole
from pliant.base.choices import one_of
from pliant.base.saving import count_in, fill
from pliant.engine.attached import Optimizers, seeds_of_runs, uncompiled
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import written
from pliant.engine.given_losses import checked_loss
from pliant.engine.normal_stream import normal_like
from pliant.engine.whole_parameters import Place, Which, WholeParameters
from pliant.streams import stream_key
from pliant.units.models import checked, unwrapped
from pliant.units.undisturbed import undisturbed

Toward = Literal["initial", "zero"]

FORMAT = 1


class SoftResets(WholeParameters):
    """Let parameters drift toward where they began when `apply(loss)` says so, before each step, and make that step greater.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        gamma_step_size: η; 0 does nothing.
        spread: s, in (0, 1]; 1 leaves steps as they are.
        inner_steps, samples: K and M, 1 or more.
        toward: "initial", of which a copy is kept, or "zero".
        parameters: which, see `WholeParameters`; None takes all.
        seed: of ε, looked up by (seed, event, step, draw); None takes `torch.initial_seed()`.
        process_group: whose ranks share the seed and average the gradient of γ, as in `pliant.UnitReset`.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(1.0)
    >>> soft = SoftResets(model, torch.optim.SGD(model.parameters(), lr=0.1), gamma_step_size=0.05, spread=0.5)
    >>> _ = model.weight.data.fill_(3.0)  # one entry has no spread, σ = 0
    >>> soft.apply(lambda: 2.5 * model(torch.ones(1, 1)).sum())  # ∂L/∂θ = 2.5, so γ = 1 - 0.05 · 2.5 (3 - 1)
    >>> soft.gammas(), model.weight.item()
    ({'weight': 0.75}, 2.5)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        gamma_step_size: float,
        spread: float,
        inner_steps: int = 1,
        samples: int = 1,
        toward: Toward = "initial",
        parameters: Which = None,
        seed: int | None = None,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        self.gamma_step_size = number("gamma_step_size", gamma_step_size)
        self.spread = number("spread", positive("spread", spread), 0.0, 1.0)
        self.inner_steps, self.samples = whole("inner_steps", inner_steps, 1), whole("samples", samples, 1)
        self.toward: Toward = one_of("toward", toward, get_args(Toward))
        (own_seed,) = seeds_of_runs(seed, 1)
        network = unwrapped(checked(model))
        if optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError("optimizer is None: soft resets change its steps, so give the one that steps the model")
        super().__init__(model, optimizer, parameters)
        self._network, self._ranks = network, Ranks(model, process_group)
        (self.seed,) = self._ranks.agree_on([own_seed])
        self.by_hand = 0  # calls of `apply` so far
        self.restart()
        with self._or_nothing_left():
            self._follow_steps()
            for handle in self._handles:  # of hooks after a step, ours is first: what others do there is no part of it
                cast(OrderedDict[int, Any], handle.hooks_dict_ref()).move_to_end(handle.id, last=False)

    @torch.no_grad()
    def restart(self) -> None:
        """Where the parameters are now is where they began. After a full reset."""
        initial = self.toward == "initial"
        self._targets = {p.parameter: p.parameter.detach().clone() for p in self.places if initial}
        stds = [p.parameter.detach().cpu().double().std(correction=0) for p in self.places]
        self._std = torch.stack(stds)  # σ, (parameters,)
        self._gamma = torch.ones_like(self._std)  # of the last event
        # of the step that follows, 1 if there was no event since the last one
        self._factor = torch.ones_like(self._std)
        self._before: dict[int, Tensor] = {}  # where parameters, by number, were when a step to be made greater began

    def gammas(self) -> dict[str, float]:
        """γ of each parameter at the last event; 1 where nothing drifted."""
        return dict(zip(self.names, _floats(self._gamma), strict=True))

    # -- an event -----------------------------------------------------------------------------------------------------

    @uncompiled
    @torch.no_grad()
    def apply(self, loss: Callable[[], Tensor]) -> None:
        """Find γ, and let the parameters drift.

        `loss`: without arguments, the loss of the coming batch at the parameters as the model then has them, which are others at
        each call. It should be -log of the likelihood of the batch, up to a constant; of a mean over n examples, η is n times
        smaller. Its forwards are no examples to other methods, and leave no trace in buffers or in global generators.

        Raises `TypeError` or `ValueError`, with nothing changed, for what is no scalar or not finite.
        """
        called_with("loss", loss)
        self.check_places(self.places)
        at = [i for i, each in enumerate(self.places) if each.parameter.requires_grad]
        θ = [self.places[i].parameter.detach().clone() for i in at]
        away = [each - self._target(self.places[i]) for i, each in zip(at, θ, strict=True)]
        γ = torch.ones(len(at), dtype=torch.float64)
        for inner in range(self.inner_steps):
            draws = [self._draw(loss, at, θ, away, γ, (inner, sample)) for sample in range(self.samples)]
            losses, slopes = (torch.stack(each) for each in zip(*draws, strict=True))
            (downhill,) = self._ranks.mean([(-losses).softmax(0) @ slopes])
            if not bool(downhill.isfinite().all()):
                raise ValueError("the gradients of loss() are not finite: nothing was changed")
            γ = (γ - self.gamma_step_size * downhill).clamp(0.0, 1.0)
        for i, each, d, g in zip(at, θ, away, _floats(γ), strict=True):
            if g != 1.0:
                self.places[i].parameter.copy_(each + (g - 1.0) * d)
        self.by_hand += 1
        self._gamma[at], self._factor[at] = γ, γ.square() + (1.0 - γ.square()) / self.spread**2
        written(self.places[i].parameter for i in at)

    def _draw(
        self,
        loss: Callable[[], Tensor],
        at: Sequence[int],
        θ: Sequence[Tensor],
        away: Sequence[Tensor],
        γ: Tensor,
        words: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """L(θ(γ, ε)) and its derivatives by γ, (parameters at,)."""
        ε = normal_like(θ, [stream_key(self.seed, "soft resets", self.by_hand + 1, *words)])
        std, change = map(_floats, spread_after(γ, self._std[at], self.spread))
        moved = [
            each + (g - 1.0) * d + s * e.to(each) for each, g, d, s, e in zip(θ, _floats(γ), away, std, ε, strict=True)
        ]
        value, gradients = self._loss_at(at, moved, loss)
        wide = map(_wide, away)
        ways = (torch.add(d, e.to(d), alpha=c) for d, c, e in zip(wide, change, ε, strict=True))  # ∂θ(γ, ε) / ∂γ
        return value, torch.stack([(g * way).sum().cpu().double() for g, way in zip(gradients, ways, strict=True)])

    def _loss_at(
        self, at: Sequence[int], moved: Sequence[Tensor], loss: Callable[[], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss at these parameters, and its gradients; the model is as before afterwards."""
        parameters = [self.places[i].parameter for i in at]
        with undisturbed(self._network):
            for parameter, value in zip(parameters, moved, strict=True):
                parameter.copy_(value)
            with torch.enable_grad():
                value = checked_loss(loss(), "loss()")
            gradients = cast(Sequence[Tensor | None], torch.autograd.grad(value, parameters, allow_unused=True))
        zeros = (torch.zeros_like(each) if g is None else g for g, each in zip(gradients, parameters, strict=True))
        return value.detach().flatten()[0].cpu().double(), list(zeros)

    def _target(self, place: Place) -> Tensor:
        """Where it began, on the device where it is and of its type."""
        if self.toward == "zero":
            return torch.zeros_like(place.parameter)
        held = self._targets[place.parameter] = self._targets[place.parameter].to(place.parameter)
        return held

    # -- the step that follows ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _begins(self, optimizer: Optimizer) -> None:
        greater = (i for i in self._stepped_by(optimizer) if self._factor[i] != 1.0)
        self._before = {i: self.places[i].parameter.detach().clone() for i in greater}

    @torch.no_grad()
    def _ended(self, optimizer: Optimizer) -> None:
        for i, before in self._before.items():
            parameter = self.places[i].parameter
            parameter.copy_(before.lerp_(parameter, self._factor[i].item()))
        written(self.places[i].parameter for i in self._before)
        self._before.clear()
        self._factor[self._stepped_by(optimizer)] = 1.0

    def _stepped_by(self, optimizer: Optimizer) -> list[int]:
        """The numbers of its parameters."""
        own = self.optimizers.index(optimizer)
        return [i for i, place in enumerate(self.places) if place.optimizer == own]

    # -- saving -------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "soft resets", "toward": self.toward, "names": self.names}

    def state_dict(self) -> dict[str, Any]:
        targets = [self._target(place).clone() for place in self.places] if self._targets else []
        numbers = {"std": self._std.clone(), "gamma": self._gamma.clone(), "factor": self._factor.clone()}
        return {**self._settings(), "seeds": [self.seed], "by_hand": self.by_hand, "targets": targets, **numbers}

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, self._settings())
        (self.seed,) = (index(seed) for seed in state["seeds"])
        self.by_hand = count_in(state, "by_hand")
        for place, held in zip(self.places if self._targets else (), state["targets"], strict=True):
            fill(self._target(place), held, place.name)
        for name, numbers in (("std", self._std), ("gamma", self._gamma), ("factor", self._factor)):
            fill(numbers, state[name], name)


def spread_after(gamma: Tensor, std: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """σ √(γ² s² + 1 - γ²), the standard deviation after a drift, and its derivative by γ.

    >>> spread_after(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]), spread=0.5)  # σ, and s σ with -σ (1 - s²) / s
    (tensor([2., 1.]), tensor([-0., -3.]))
    """
    lost = 1.0 - spread**2
    share = (1.0 - lost * gamma.square()).sqrt()
    return std * share, -std * lost * gamma / share


def _wide(tensor: Tensor) -> Tensor:
    """In single precision at least."""
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _floats(numbers: Tensor) -> list[float]:
    return cast(list[float], numbers.tolist())
