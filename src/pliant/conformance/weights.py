"""What becomes of the weights: of the unit that goes, of what it feeds, and of all others."""

from __future__ import annotations

from math import log, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from pliant.conformance.outcomes import expect
from pliant.conformance.trial import SILENT, Kind, Trial, adam, even, named, normal, perceptron, warmed

INPUTS = normal(16, 6)
MATURITY, RATE = 5, 1.0 / 8.0


def incoming(kind: Kind) -> None:
    """Incoming weights are drawn anew, from the distribution that the layer started from.

    Each unit has a draw of its own; its bias is 0, or drawn too. Of 100 units of 64 inputs, a Linear as torch starts it: uniform
    within 1/8. The distance between the empirical and the true distribution function is less than what one true sample in a
    million exceeds.
    """
    inputs, bound = normal(4, 64), 1.0 / 8.0
    trial = Trial(kind, perceptron(64, 100, 2), ["0"], inputs, rate=1.0, maturity=2, silent=range(100))
    event = trial.next()
    units = event.units["0"]
    expect(len(units) >= 20, "most of 100 silent units replaced at rate 1", named(units))
    fresh = event.after["0.weight"][units]
    spread = f"mean {fresh.mean():.3g}, standard deviation {fresh.std():.3g}, largest {fresh.abs().max():.3g}"
    expected = f"weights uniform within {bound:g} (mean 0, standard deviation {bound / sqrt(3):.3g})"
    expect(_distance(fresh, bound) < sqrt(log(2e6) / (2 * fresh.numel())), expected, spread)
    expect(bool((torch.pdist(fresh) > 0).all()), "another draw for each unit", "units with equal weights")
    biases = event.after["0.bias"][units]
    expect(bool((biases.abs() <= bound).all()), f"biases of 0, or within {bound:g}", f"{biases.abs().max():g}")


def _distance(sample: Tensor, bound: float) -> float:
    """Kolmogorov's, from the uniform distribution within `bound`."""
    ordered = sample.flatten().double().sort().values
    law = ((ordered + bound) / (2.0 * bound)).clamp(0.0, 1.0)
    ranks = torch.arange(len(ordered) + 1) / len(ordered)
    return float(torch.maximum((ranks[1:] - law).abs(), (law - ranks[:-1]).abs()).max())


def outgoing(kind: Kind) -> None:
    """Outgoing weights are zero after the step that replaces a unit.

    With Adam at step size 1e-3 and units that had learned: what it remembers of them must not move the zeros again.
    """
    trial = warmed(kind, adam)
    event = trial.next()
    units = event.units["0"]
    largest = float(event.after["2.weight"][:, units].abs().max())
    expect(largest == 0.0, f"outgoing weights 0 of {named(units)}", f"up to {largest:.3g}")


def others(kind: Kind) -> None:
    """No weight changes but the replaced units' own, and the bias that takes over their contribution."""
    event = Trial(kind, even(), ["0"], INPUTS, rate=RATE, maturity=MATURITY, silent=[1, 5]).next()
    units = event.units["0"]
    expected = "weights of all other units as they were"
    for name, before in event.before.items():
        after = event.after[name]
        expect(after.shape == before.shape, expected, f"'{name}' of another shape")
        changed = after != before
        if name.startswith("0."):
            changed[units] = False
        elif name == "2.weight":
            changed[:, units] = False
        elif kind.hands_over:
            continue
        expect(not changed.any(), expected, f"{int(changed.sum())} entries of '{name}' changed as {named(units)} went")


def hand_over(kind: Kind) -> None:
    """Mean activity times outgoing weight of a replaced unit is added to the bias of what it fed.

    On one batch that does not change, at decay rate 0.9 after 50 steps; to 2%.
    """
    model = even()
    with torch.no_grad():
        active = functional.relu(model[0](INPUTS)).mean(0)
    trial = Trial(kind, model, ["0"], INPUTS, rate=RATE, maturity=50, decay=0.9)
    event = trial.next()
    units = event.units["0"]
    right = event.before["2.weight"][:, units] @ active[units]
    found = event.after["2.bias"] - event.before["2.bias"]
    near = torch.allclose(found, right, rtol=0.02, atol=0.02 * float(right.abs().max()))
    expect(near, f"the bias to change by {_listed(right)}", _listed(found))


def _listed(values: Tensor) -> str:
    return ", ".join(f"{float(value):.3g}" for value in values)


def output_layer(kind: Kind) -> None:
    """No unit of the output layer is ever replaced, and units of every hidden layer are.

    Its weights are those it started with, or zero where they leave a replaced unit. Layers 6-8-8-8: as wide as hidden ones.
    """
    trial = Trial(kind, perceptron(6, 8, 8, 8), ["0", "2"], INPUTS, rate=0.25, maturity=3, silent=[1, 4])
    trial.silence([2, 7], "2")
    start, gone = trial.weights()["4.weight"], {"0": 0, "2": 0}
    for units in trial.run(20):
        for layer in gone:
            gone[layer] += len(units.get(layer, []))
    now = trial.weights()["4.weight"]
    expected = "output weights as they were, or zero"
    rows = [row for row, other in enumerate(((now != start) & (now != 0)).any(1)) if other]
    expect(not rows, expected, f"other weights of {named(rows)} of the output layer")
    for layer, count in gone.items():
        expect(count > 0, "replacements in both hidden layers", f"none in layer '{layer}' in 20 steps")


def norm(kind: Kind) -> None:
    """What a batch norm holds of a replaced unit starts over: scale 1, shift 0, mean 0, variance 1."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    trial = Trial(kind, model, ["0"], INPUTS, rate=RATE, maturity=MATURITY, may_refuse=True)
    trial.write("1.weight", slice(None), 1.7)
    trial.write("1.bias", slice(None), SILENT)
    event = trial.next()
    units = event.units["0"]
    for name, start in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
        found = event.after[f"1.{name}"][units]
        expect(bool((found == start).all()), f"{start:g} in the norm's {name} of {named(units)}", _listed(found))
