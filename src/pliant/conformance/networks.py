"""Other networks and other batches: without biases, branched, convolutional, with a sequence axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.conformance.outcomes import expect
from pliant.conformance.trial import Event, Kind, Trial, even, named, normal, perceptron, signs

RATE, MATURITY = 1.0 / 8.0, 5


def no_bias(kind: Kind) -> None:
    """Layers without biases: the unit that never fires goes, and is cut off."""
    model = perceptron(6, 8, 3, bias=False)
    with torch.no_grad():
        model[0].weight.copy_(0.3 * signs(8, 6))
        model[0].weight[[1, 5]] = 0.0
    event = Trial(kind, model, ["0"], normal(16, 6), rate=RATE, maturity=MATURITY).next()
    _silent_ones(kind, event, [1, 5])
    largest = float(event.after["2.weight"][:, event.units["0"]].abs().max())
    expect(largest == 0.0, f"outgoing weights 0 of {named(event.units['0'])}", f"up to {largest:.3g}")


class Branched(nn.Module):
    """Two layers read the same units; layers are registered in another order than they run in, and all are equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.second(h).tanh() + self.shortcut(h)


def branches(kind: Kind) -> None:
    """A unit that feeds two layers is cut off from both.

    So replacing one that never fires leaves the output as it was. Layers are registered in another order than they run in.
    """
    _output_stays(kind, Branched(), "first", normal(16, 8))


def convolution(kind: Kind) -> None:
    """A filter in front of a flatten is cut off from all columns that it feeds.

    So replacing one that never fires leaves the output as it was.
    """
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    _output_stays(kind, model, "0", normal(16, 2, 4, 4))


def _output_stays(kind: Kind, model: nn.Module, layer: str, inputs: Tensor) -> None:
    """No unit of the layer fires, so whichever go, nothing is lost and nothing may be gained."""
    trial = Trial(kind, model, [layer], inputs, rate=RATE, maturity=MATURITY, silent=range(8), may_refuse=True)
    before = trial.output()
    units = trial.next().units[layer]
    off = float((trial.output() - before).abs().max())
    expect(off <= 1e-5, f"the output as it was before {named(units)} went", f"changed by up to {off:.3g}")


def tokens(kind: Kind) -> None:
    """Units are the last axis of a linear layer's output, also of (batch, tokens, units).

    Of 8 units on 5 tokens the last two never fire.
    """
    inputs = normal(4, 5, 6)
    trial = Trial(kind, even(), ["0"], inputs, rate=RATE, maturity=MATURITY, silent=[6, 7], may_refuse=True)
    before = trial.output()
    _silent_ones(kind, trial.next(), [6, 7])
    off = float((trial.output() - before).abs().max())
    expect(kind.selection == "random" or off <= 1e-5, "the output as it was", f"changed by up to {off:.3g}")


def smaller_batch(kind: Kind) -> None:
    """A batch may be smaller than the one before, also of one example."""
    trial = Trial(kind, even(), ["0"], normal(16, 6), rate=RATE, maturity=MATURITY, silent=[1, 5])
    for size in (16, 5, 16, 1):
        trial.step(normal(16, 6)[:size])
    _silent_ones(kind, trial.next(), [1, 5])
    trial.step(normal(16, 6)[:5])


def _silent_ones(kind: Kind, event: Event, right: list[int]) -> None:
    units = event.units["0"]
    expected = f"{named(right)}, which never fire, to go first"
    expect(kind.selection == "random" or {*units} <= {*right}, expected, named(units))
