"""What the optimizer remembers of a replaced unit, and that the optimizer stays one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pliant.conformance.outcomes import expect
from pliant.conformance.trial import Kind, Make, Nothing, Trial, adam, even, named, normal, warmed

STEP_SIZE = 1e-3


def state(kind: Kind) -> None:
    """What the optimizer remembers of a replaced unit's weights is cleared, and of no other weight.

    Momentum of SGD; both averages of Adam. Others are compared, to the bit, with the same training without replacement.
    """
    _compare(kind, lambda model: SGD(model.parameters(), lr=0.0, momentum=0.9))
    _compare(kind, lambda model: Adam(model.parameters(), lr=0.0))


def state_by_parameter(kind: Kind) -> None:
    """The optimizer's state is found by the parameter, not by a position.

    Here the optimizer has two groups of parameters, the output layer's first.
    """

    def reversed_groups(model: nn.Module) -> Optimizer:
        parameters = list(model.parameters())
        return Adam([{"params": parameters[:1:-1]}, {"params": parameters[1::-1]}], lr=0.0)

    _compare(kind, reversed_groups)


def _compare(kind: Kind, make: Make) -> None:
    trial, plain = warmed(kind, make), warmed(Nothing, make)
    event = trial.next()
    plain.run(event.step - plain.steps)
    units = event.units["0"]
    for name, held, undisturbed in _states(trial, plain):
        touched = torch.zeros_like(held, dtype=torch.bool)
        if name.startswith("0."):
            touched[units] = True
        elif name.startswith("2.weight"):
            touched[:, units] = True
        remembered = held[touched]
        expect(
            not remembered.any(),
            f"0 in {name} of {named(units)}",
            f"up to {remembered.abs().max():.3g}" if touched.any() else "",
        )
        other = touched | (held == undisturbed)
        expect(bool(other.all()), f"{name} of other weights as it was", f"{int((~other).sum())} entries changed")


def _states(trial: Trial, plain: Trial) -> list[tuple[str, Tensor, Tensor]]:
    """Tensors of a parameter's shape, with the same of the other trial."""
    return [
        (f"{name}, {key},", trial.base.state[trial.parameters[name]][key], value)
        for name, other in plain.parameters.items()
        for key, value in plain.base.state[other].items()
        if isinstance(value, Tensor) and value.shape == other.shape
    ]


def fresh_units_learn(kind: Kind) -> None:
    """A new unit's first step under Adam is as large as any, whatever the old unit's gradients were.

    The old unit's were a thousand times as large as the new one's. Were their sizes kept, the new unit would hardly move (less
    than a third of a step size); were their average kept, it would jump (more than ten step sizes).
    """
    trial = warmed(kind, adam, scale=1e3)
    event = trial.next()
    trial.step()
    units = event.units["0"]
    steps = trial.weights()["2.weight"][:, units] - event.after["2.weight"][:, units]
    size = float(steps.abs().median(0).values.max()) / STEP_SIZE  # of the unit that fires most; one may not fire at all
    expect(1.0 / 3.0 <= size <= 10.0, "a first step of about 1 step size", f"{size:.3g} step sizes")


def hooks(kind: Kind) -> None:
    """The optimizer stays an optimizer: hooks are called once per step, schedules take it."""
    trial = Trial(kind, even(), ["0"], normal(16, 6), rate=1.0 / 8.0, maturity=5, silent=[1, 5])
    calls = list[int]()

    def count(optimizer: Optimizer, *arguments: Any) -> None:
        calls.append(1)

    trial.adapter.optimizer.register_step_post_hook(count)
    LambdaLR(trial.adapter.optimizer, lambda step: 1.0)
    trial.run(3)
    expect(len(calls) == 3, "3 calls of a hook in 3 steps", len(calls))
