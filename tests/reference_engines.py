"""The released generate-and-test engines, as coded, bugs included: the oracle of the parity tests.

Written from a description of what they compute; `Q..` marks what the design does otherwise. Not for use.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Layer:
    """One hidden layer: incoming weight and bias, outgoing weight and bias, `k` columns a unit after a flatten."""

    w: Tensor
    b: Tensor
    v: Tensor
    c: Tensor
    k: int = 1
    accumulated: float = 0.0
    replaced: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.w.shape[0]
        self.u, self.mu, self.age = (torch.zeros(n, dtype=self.w.dtype) for _ in range(3))

    def out(self) -> Tensor:
        """Mean |v|, by flattened input."""
        return self.v.abs().mean(dim=[0, *range(2, self.v.dim())])

    def into(self) -> Tensor:
        return self.w.abs().flatten(1).mean(1)


class DenseEngine:
    """Section 1.2; `draw(layer index, count)` gives the fresh rows, `uniform()` the draws of the stochastic mode."""

    def __init__(self, layers, rate, decay, maturity, utility, draw, uniform=None):
        self.layers, self.rate, self.d, self.maturity, self.utility = layers, rate, decay, maturity, utility
        self.draw, self.uniform = draw, uniform
        self.compensations = []

    def __call__(self, features):
        if self.rate == 0:
            return
        chosen = [self.test(layer, f) for layer, f in zip(self.layers, features, strict=True)]
        for index, (layer, units) in enumerate(zip(self.layers, chosen, strict=True)):
            self.generate(index, layer, units)

    def activity(self, layer, f):
        return f.mean(0), f.abs().mean(0), lambda mu_hat: (f - mu_hat).abs().mean(0)

    def instantaneous(self, layer, f):
        mean, magnitude, centred = self.activity(layer, f)
        layer.mu = self.d * layer.mu + (1 - self.d) * mean.view(-1, layer.k).mean(1)
        mu_hat = (layer.mu / (1 - self.d**layer.age)).repeat_interleave(layer.k)
        by_column = lambda x: x.view(-1, layer.k).mean(1)  # noqa: E731
        return {
            "weight": lambda: by_column(layer.out()),
            "contribution": lambda: by_column(layer.out() * magnitude),
            "adaptation": lambda: 1 / layer.into(),
            "zero_contribution": lambda: by_column(layer.out() * centred(mu_hat)),
            "adaptable_contribution": lambda: by_column(layer.out() * centred(mu_hat)) / layer.into(),
            "feature_by_input": lambda: by_column(centred(mu_hat)) / layer.into(),
        }[self.utility]()

    def test(self, layer, f):
        layer.age += 1
        r = self.instantaneous(layer, f)
        layer.u = self.d * layer.u + (1 - self.d) * r
        layer.u_hat = layer.u / (1 - self.d**layer.age)
        eligible = torch.where(layer.age > self.maturity)[0]
        count = self.count(layer, len(eligible)) if len(eligible) else 0
        units = eligible[torch.topk(-layer.u_hat[eligible], count)[1]]  # Q7: raises if more are due than are mature
        layer.u[units] = 0
        layer.mu[units] = 0  # Q1: cleared before generate() reads it
        return units

    def count(self, layer, eligible):
        x = self.rate * eligible
        layer.accumulated += x
        if self.uniform is not None:
            return int(self.uniform() <= x) if x < 1 else int(x)  # Q16: the fraction above 1 is thrown away
        count = int(layer.accumulated)
        layer.accumulated -= count
        return count

    def generate(self, index, layer, units):
        layer.w[units] *= 0  # Q19
        layer.w[units] += self.draw(index, len(units))
        layer.b[units] = 0
        columns = (units[:, None] * layer.k + torch.arange(layer.k)).flatten()
        self.compensate(layer, units)
        layer.v[:, columns] = 0  # Q17: the next layer's fresh rows may overwrite these zeros
        layer.age[units] = 0
        layer.replaced += units.tolist()

    def compensate(self, layer, units):
        shift = (layer.v[:, units] * layer.mu[units] / (1 - self.d ** layer.age[units])).sum(1)
        layer.c += shift
        self.compensations.append(shift)


class ConvEngine(DenseEngine):
    """Section 1.3: all units count towards what is due, convolutions average over space, no compensation (Q2)."""

    def activity(self, layer, f):
        f = f.movedim(1, -1).flatten(0, -2)
        return super().activity(layer, f)

    def count(self, layer, eligible):
        return super().count(layer, len(layer.age))

    def compensate(self, layer, units):
        pass
