"""Wasserstein penalty: the values of each parameter are pulled toward those that it began with, whichever entry holds them.

    g <- g + λ (θ - θ*)        θ*[j] = the initial value of the rank that θ[j] has among the entries now;  λ is `strength`

This is the gradient of λ/2 Σ (sort(θ) - sort(θ0))², n λ/2 times the squared 2-Wasserstein distance between the n entries as a
distribution and the initial ones. So it gives what L2 Init gives, a scale that weights keep, but a weight may trade its value
for another's: permuting the entries changes nothing.

Source: Lewandowski et al. (arXiv 2406.06811, version 1): Σ (sort(w) - sort(w0))² per layer, without the half, so that their λ is
`strength` / 2. Chung et al. (arXiv 2412.07224, released code), a coefficient of 1e-3: the mean over the entries of a parameter,
biases too, so `strength` is 2 / n of theirs. Each parameter is a distribution of its own here, as there; of entries that are
equal the first counts as the lesser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.base.saving import fill
from pliant.engine.attached import Optimizers
from pliant.engine.pull import Pull
from pliant.engine.whole_parameters import Which

FORMAT = 1


class Wasserstein(Pull):
    """Pull the sorted values of each parameter toward the sorted values that it had when this was built.

    Closures and GradScalers: see `pliant.engine.pull`. Costs a sort of all entries in each step.

    Args:
        model: the network; of a stack of several runs the entries of all would be sorted together.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        parameters: which, see `WholeParameters`; None takes all, biases and norm parameters too.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> wasserstein = Wasserstein(model, optimizer, strength=0.5)
    >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 1.0]]))
    >>> (0.0 * model.weight.sum()).backward()
    >>> optimizer.step()
    >>> model.weight.data  # 4 is the larger one, and goes to 2: 4 - 0.1 · 0.5 (4 - 2)
    tensor([[3.9000, 1.0000]])
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers, *, strength: float, parameters: Which = None) -> None:
        super().__init__(model, optimizer, strength=strength, parameters=parameters)
        self.restart()
        self._follow_steps()

    def restart(self) -> None:
        """The values that parameters have now are those that they are pulled to. After a full reset."""
        self._values = {place.parameter: place.parameter.detach().flatten().sort().values for place in self.places}

    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return [away_from_values(each, self._initial(each)) for each in parameters]

    def _initial(self, parameter: nn.Parameter) -> Tensor:
        """Its sorted initial values, on the device where it is and of its type."""
        held = self._values[parameter] = self._values[parameter].to(parameter)
        return held

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "wasserstein", "names": self.names}

    def state_dict(self) -> dict[str, Any]:
        return {**self._settings(), "targets": [self._values[place.parameter].clone() for place in self.places]}

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, self._settings())
        for place, held in zip(self.places, state["targets"], strict=True):
            fill(self._initial(place.parameter), held, place.name)


def away_from_values(parameter: Tensor, values: Tensor) -> Tensor:
    """θ - θ* of a parameter, given its sorted initial values, (entries,).

    >>> away_from_values(torch.tensor([[5.0, 0.0, 2.0]]), torch.tensor([-1.0, 1.0, 3.0]))
    tensor([[2., 1., 1.]])
    """
    now, order = parameter.detach().flatten().sort(stable=True)
    return torch.empty_like(now).scatter_(0, order, now - values).view_as(parameter)
