"""One implementation on one small network, step by step: which units were replaced, and what became of the weights.

Numbers of batches and targets come from generators of the trial's own. With the default optimizer, whose step size is 0, every
change of a weight is the implementation's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, Optimizer

from pliant.base.choices import shortened
from pliant.conformance.adapter import Settings, UnitResetAdapter
from pliant.conformance.outcomes import Failed, NotApplicable

Kind = type[UnitResetAdapter]
Replaced = dict[str, list[int]]  # units by the layer that computes them
Make = Callable[[nn.Module], Optimizer]

SILENT = -100.0  # a bias at which no unit fires
DRIFT = 0.02  # more than any step of an optimizer moves a weight here, and less than a redraw does


def still(model: nn.Module) -> Optimizer:
    """An optimizer that changes nothing."""
    return SGD(model.parameters(), lr=0.0)


def adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), lr=1e-3)


class Nothing(UnitResetAdapter):
    """Plain training."""

    def attach(self, settings: Settings) -> None:
        pass


@dataclass(frozen=True)
class Event:
    """A step at which units were replaced: parameters and buffers before and after it."""

    step: int
    units: Replaced
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


class Trial:
    """An adapter attached to a network whose layers `hidden` compute hidden units, a weight's row each.

    `silent`: units of the first of these layers that do not fire, from when the implementation is attached.
    `patience`: steps in which units must be replaced, three times the earliest step unless given.

    Raises `NotApplicable` where `may_refuse` and the implementation does not take this network or these settings.
    """

    def __init__(
        self,
        kind: Kind,
        model: nn.Module,
        hidden: Sequence[str],
        inputs: Tensor,
        *,
        rate: float,
        maturity: int,
        decay: float = 0.5,
        seed: int = 0,
        silent: Iterable[int] = (),
        optimizer: Make = still,
        may_refuse: bool = False,
        patience: int | None = None,
    ) -> None:
        self.hidden, self.inputs = hidden, inputs
        self.patience = 3 * (maturity + 1) + 5 if patience is None else patience
        self.parameters = dict(model.named_parameters())
        self._held = {**self.parameters, **dict(model.named_buffers())}
        self._plain = copy.deepcopy(model).eval()
        self._targets = normal(*self.output().shape, seed=1)
        self.base = optimizer(model)
        self.moves = any(group["lr"] > 0 for group in self.base.param_groups)
        settings = Settings(rate, maturity, decay, seed, inputs)
        try:
            self.adapter = kind(model, self.base, settings)
        except (ValueError, TypeError, NotImplementedError) as error:
            if not may_refuse:
                raise
            raise NotApplicable(f"refused by it: {shortened(error, 300)}") from error
        self.steps = 0
        self.silence(silent, hidden[0])

    # -- stepping ----------------------------------------------------------------------------------------------

    def step(self, inputs: Tensor | None = None, scale: float = 1.0) -> Replaced:
        """One step of training, of `scale` times the squared error; the units that it replaced."""
        inputs = self.inputs if inputs is None else inputs
        before = self.weights()
        self.base.zero_grad()
        error = self.adapter.forward(inputs) - self._targets[: len(inputs)]
        (scale * error.square().mean()).backward()
        self.adapter.step()
        self.steps += 1
        told = self.adapter.replaced()
        found = _redrawn(before, self._held, self.hidden, DRIFT if self.moves else 0.0) if told is None else told
        return {name: sorted(units) for name, units in found.items() if list(units)}

    def run(self, steps: int) -> list[Replaced]:
        return [self.step() for _ in range(steps)]

    def next(self) -> Event:
        """Step until units are replaced. Raises `Failed` where none is in `patience` steps."""
        for _ in range(self.patience):
            before = self.weights()
            units = self.step()
            if units:
                return Event(self.steps, units, before, self.weights())
        raise Failed("replacements once units are mature", f"none in {self.patience} steps")

    # -- the network -------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers."""
        return {name: held.detach().clone() for name, held in self._held.items()}

    def silence(self, units: Iterable[int], layer: str = "0") -> None:
        """From here on these units do not fire."""
        listed = list(units)
        if listed:
            self.write(f"{layer}.bias", listed, SILENT)

    def write(self, name: str, index: Any, values: Tensor | float) -> None:
        """Write entries of a parameter, as learning could have."""
        with torch.no_grad():
            self._held[name][index] = values

    @torch.no_grad()
    def output(self) -> Tensor:
        """Of a plain copy of the network with the weights of now: the implementation sees nothing of it."""
        return functional_call(self._plain, self._held, (self.inputs,))


def _redrawn(before: Mapping[str, Tensor], now: Mapping[str, Tensor], hidden: Sequence[str], drift: float) -> Replaced:
    """Units most of whose incoming weights moved by more than `drift` (fewer move where units that feed them are cut off)."""
    found = Replaced()
    for name in hidden:
        moved = ((now[f"{name}.weight"].detach() - before[f"{name}.weight"]).abs() > drift).flatten(1)
        found[name] = (moved.float().mean(1) > 0.5).nonzero().flatten().tolist()
    return found


def warmed(kind: Kind, optimizer: Make, scale: float = 1.0) -> Trial:
    """After four steps of `scale` times the error units 1 and 5 of `even` fall silent: those the optimizer remembers well."""
    trial = Trial(kind, even(), ["0"], normal(16, 6), rate=1.0 / 8.0, maturity=10, optimizer=optimizer)
    for _ in range(4):
        trial.step(scale=scale)
    trial.silence([1, 5])
    return trial


# -- networks and numbers -------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int, seed: int = 2) -> Tensor:
    return 1.0 - 2.0 * torch.randint(2, shape, generator=torch.Generator().manual_seed(seed))


def perceptron(*sizes: int, bias: bool = True) -> Any:
    """A `Sequential` of linear layers "0", "2", "4" with ReLU between them, as torch starts them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def even() -> Any:
    """6-8-3; its eight units are much alike: incoming and outgoing weights of one size, and a bias at which most inputs count."""
    model = perceptron(6, 8, 3)
    with torch.no_grad():
        model[0].weight.copy_(0.3 * signs(8, 6))
        model[0].bias.fill_(1.0)
        model[2].weight.copy_(0.3 * signs(3, 8))
        model[2].bias.zero_()
    return model


def named(units: Iterable[int]) -> str:
    """As a sentence names them.

    >>> named([1, 5]), named([3])
    ('units 1, 5', 'unit 3')
    """
    listed = list(units)
    return f"unit{'' if len(listed) == 1 else 's'} {', '.join(map(str, listed)) or 'none'}"
