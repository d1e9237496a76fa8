"""Normalize and project: what a norm divides out of a layer's weights is kept at its first size.

    W <- W ρ / ||W||,  b <- b ρ / ||W||        of a layer that a norm follows; ρ is ||W|| at construction
    (γ, β) <- (γ, β) √n / ||(γ, β)||           of a norm of n units whose scale does not matter either

A norm after a layer divides the layer's scale out again, so the projection leaves the network's function as it is. What it
changes is the effective step size, α / ||W||², which otherwise shrinks as weights grow: it is now what the optimizer's schedule
says.

That a scale does not matter is tried, on a copy in float64: `example_inputs` are run with each layer doubled, and what changes
the output is not projected. So pass the network in which a layer norm, group norm or RMS norm stands before each nonlinearity;
the last layer, layers inside of a residual sum, and those before a batch norm (which in evaluation divides by what it saw) are
left out, or refused if they are named.

Source: Lyle et al., NeurIPS 2024 (arXiv 2407.01800), which projects after every step and sets a schedule of the step size beside
it. Departures: it projects every layer, so that outputs change where no norm follows; biases, of which it says nothing, keep
their proportion to the weights; norms are projected (there all are) where that changes nothing: where what follows is a ReLU and
a layer without a bias before a norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from pliant.base.saving import fill
from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.whole_parameters import Place
from pliant.units.models import arguments, checked, is_norm, tensors_in, unwrapped
from pliant.units.verify.double import double_copy, long

CHANGE = 1e-6  # of the output, relative to its size: from here on it is no rounding in float64


@dataclass(frozen=True)
class Layer:
    """A weight, or a norm's scale, and what is scaled with it."""

    place: Place
    bias: nn.Parameter | None
    norm: bool

    def size(self) -> Tensor:
        """||W||, or ||(γ, β)||."""
        square = self.place.parameter.detach().double().square().sum()
        if self.norm and self.bias is not None:
            square = square + self.bias.detach().double().square().sum()
        return square.sqrt()


class NormalizeAndProject(AfterStep):
    """Project the layers whose scale does not matter, after every `period` optimizer steps or when `apply()` says so.

    Args:
        model, optimizer: the network and what steps it, or several.
        example_inputs: a batch that the model takes: a tensor, a tuple of arguments or a dictionary of them. None tries nothing
            and projects the `parameters` that are named, whatever that does to the output.
        period: also `parameters` (None takes all that may be projected) and the rest of `pliant.engine.after_step.AfterStep`;
            `runs` is not for it, and it draws nothing. Raises `ValueError` for what does not fit.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    >>> nap = NormalizeAndProject(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=torch.randn(5, 3))
    >>> nap.names
    ['0.weight']
    """

    draws = "projection"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        *,
        example_inputs: Any = None,
        **period: Unpack[Period],
    ) -> None:
        named = period.get("parameters") is not None
        if example_inputs is None and not named:
            raise ValueError(
                "give example_inputs=x, on which it is tried which layers may be projected, or name parameters="
            )
        self._named, self._examples, self._network = named, example_inputs, unwrapped(checked(model))
        super().__init__(model, optimizer, **period)
        self.restart()

    def check_fit(self) -> None:
        """Find the layers. Raises `ValueError` where a named one may not be projected, or none is left."""
        if self.runs is not None:
            raise ValueError("NormalizeAndProject knows no runs: leave runs out, and give it one network at a time")
        layers = [layer for place in self.places if (layer := _layer(place)) is not None]
        if self._examples is not None:
            changes = _changes(self._network, layers, self._examples)
            for layer, change in zip(layers, changes, strict=True):
                if self._named and change > CHANGE:
                    raise ValueError(
                        f"'{layer.place.name}' may not be projected: with its layer doubled the output changes by {change:.2g} "
                        f"of its size, since no layer norm, group norm or RMS norm divides that out. Leave it out of parameters"
                    )
            layers = [layer for layer, change in zip(layers, changes, strict=True) if change <= CHANGE]
        if not layers:
            raise ValueError(
                "no layer may be projected: a change of scale of each changes the output. Put a layer norm, group norm or RMS "
                "norm before each nonlinearity"
            )
        self.layers = {layer.place: layer for layer in layers}
        self.places = [layer.place for layer in layers]

    @torch.no_grad()
    def restart(self) -> None:
        """The sizes that layers have now are those that they keep. After a full reset."""
        self._sizes = {
            place: torch.tensor(sqrt(place.parameter.numel()), dtype=torch.float64)
            if layer.norm
            else layer.size().cpu()
            for place, layer in self.layers.items()
        }

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        for place in (place for place in places if place.parameter.requires_grad):
            layer = self.layers[place]
            ratio = self._sizes[place].to(place.parameter.device) / layer.size()
            ratio = torch.where(ratio.isfinite(), ratio, 1.0)
            for parameter in (place.parameter, *(() if layer.bias is None else (layer.bias,))):
                parameter.mul_(ratio.to(parameter.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "targets": [size.clone() for size in self._sizes.values()]}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        for (place, size), held in zip(self._sizes.items(), state["targets"], strict=True):
            fill(size, held, place.name)


def _layer(place: Place) -> Layer | None:
    """The layer of a weight; None of a bias."""
    if "weight" not in place.leaf:
        return None
    bias = getattr(place.home, place.leaf.replace("weight", "bias"), None)
    return Layer(place, bias if isinstance(bias, nn.Parameter) else None, is_norm(place.home))


@torch.no_grad()
def _changes(network: nn.Module, layers: Sequence[Layer], examples: Any) -> list[float]:
    """How much the output changes with each layer doubled, relative to its size; without what norms add to a variance."""
    copy = double_copy(network)
    for module in cast(Iterable[Any], copy.modules()):
        if isinstance(getattr(module, "eps", None), float):
            module.eps = 1e-30
    args, kwargs = arguments(examples)
    args = tuple(long(each) if isinstance(each, Tensor) else each for each in args)
    named = {name: long(each) if isinstance(each, Tensor) else each for name, each in kwargs.items()}

    def output() -> Tensor:
        found = [each.flatten() for each in tensors_in(copy(*args, **named)) if each.is_floating_point()]
        return torch.cat(found)

    def double(path: str, factor: float) -> None:
        for each in (path, path.replace("weight", "bias")):
            home, _, leaf = each.rpartition(".")
            parameter = getattr(copy.get_submodule(home), leaf, None)
            if isinstance(parameter, nn.Parameter):
                parameter.mul_(factor)

    before, changes = output(), list[float]()
    for layer in layers:
        double(layer.place.path, 2.0)
        changes.append(float(((output() - before).square().sum() / before.square().sum()).sqrt()))
        double(layer.place.path, 0.5)
    return changes
