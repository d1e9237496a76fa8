"""How many units go: by the replacement rate, a share of the mature units per step."""

from __future__ import annotations

from math import sqrt

import torch
from torch.nn import functional

from pliant.conformance.outcomes import expect
from pliant.conformance.trial import Kind, Nothing, Trial, adam, even, normal, perceptron


def fractions(kind: Kind) -> None:
    """Fractions of a unit add up over steps: as many go as rate x mature units x steps.

    Of 2,000 units at rate 1e-4, a fifth of a unit per step, and of 8 at 0.01. Between the sum over mature units alone and that
    over all, to a unit; where counts are drawn, to five standard deviations.
    """
    for width, rate, steps in ((2000, 1e-4, 300), (8, 0.01, 600)):
        model = even() if width == 8 else perceptron(6, width, 3)
        trial = Trial(kind, model, ["0"], normal(4, 6), rate=rate, maturity=2)
        born, replaced, mature = torch.zeros(width), 0, 0
        for _ in range(steps):
            units = trial.step().get("0", [])
            mature += int((trial.steps - born > 2).sum())
            replaced += len(units)
            born[units] = trial.steps
        slack = 5.0 * sqrt(rate * mature) if kind.draws_count else 1.0
        low, high = rate * mature - slack, rate * width * steps + slack
        expect(
            low <= replaced <= high,
            f"{max(low, 0):.0f} to {high:.0f} of {width} units replaced in {steps} steps at rate {rate:g}",
            replaced,
        )


def rate_zero(kind: Kind) -> None:
    """At rate 0 nothing changes: weights are, to the bit, those of plain training.

    With dropout on the inputs: numbers drawn from the global generator would change its masks.
    """
    found = _trained(kind)
    for name, plain in _trained(Nothing).items():
        off = int((found[name] != plain).sum())
        expect(off == 0, "weights as in plain training", f"{off} entries of '{name}' differ")


def _trained(kind: Kind) -> dict[str, torch.Tensor]:
    trial = Trial(kind, even(), ["0"], normal(16, 6), rate=0.0, maturity=2, optimizer=adam)
    torch.manual_seed(4)
    for _ in range(20):
        trial.step(functional.dropout(trial.inputs, 0.2))
    return trial.weights()
