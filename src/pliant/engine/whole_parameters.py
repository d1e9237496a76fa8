"""Methods that act on whole parameters around each optimizer step: which parameters, and where they are in the model.

A method here is hooked to the optimizers alone. The model carries nothing, so copies of it, and copies of its optimizer, know
of no method.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer

from pliant.base.arguments import called_with, patterns, shown
from pliant.engine.attached import Attached, Optimizers, each_of, home_of_parameters
from pliant.units.models import checked, plain_name, unwrapped

Which = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True)
class Place:
    """A parameter where it lies in the model."""

    name: str  # without what DistributedDataParallel and `torch.compile` add; a submodule called `module` is none of these
    path: str  # its name in the network inside of these
    parameter: nn.Parameter
    home: nn.Module
    leaf: str
    optimizer: int  # which of those given steps it


class WholeParameters(Attached, ABC):
    """What the methods share: the parameters chosen, and saving.

    Args:
        model: the network that trains.
        optimizer: what steps it, or several; each parameter is looked up in its own, the first that lists it.
        parameters: names or patterns (`fnmatch`), or a function (name, parameter) -> bool; None takes all. In any case
            only those of the model that an optimizer given steps, if one is.
        attach: as for `Attached`.

    Raises `ValueError` if none are left, or a pattern matches no name.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizers | None, parameters: Which, *, attach: bool = True
    ) -> None:
        super().__init__(() if optimizer is None else each_of(optimizer), attach=attach)
        self.places = places_of(model, None if optimizer is None else self.optimizers, parameters)

    @property
    def names(self) -> list[str]:
        """The parameters acted on."""
        return [place.name for place in self.places]

    def _check_saved(self, state: dict[str, Any], here: dict[str, Any]) -> None:
        """Names are compared by the one rule, so that states of before, which wrappers and other rules named, are known."""
        names = {"names": [plain_name(str(name)) for name in state["names"]]} if "names" in state else {}
        super()._check_saved({**state, **names}, {**here, "names": list(map(plain_name, self.names))})

    def _state_after(self, other: Attached, state: dict[str, Any]) -> dict[str, Any]:
        """Counts go on, and so does what is kept of parameters of the same names and shapes."""
        begun = self.state_dict()
        kept = dict(zip(state["names"], state.get("targets", ()), strict=False))
        targets = [
            kept[name] if name in kept and kept[name].shape == held.shape else held
            for name, held in zip(begun["names"], begun.get("targets", ()), strict=False)
        ]
        mine = {name: begun[name] for name in ("names", "optimizer_of_name", "owed") if name in begun}
        return {**state, **mine, **({"targets": targets} if "targets" in begun else {})}

    def _acted_on(self) -> Iterable[tuple[str, Tensor]]:
        return [(place.name, place.parameter) for place in self.places]

    def check_places(self, places: Iterable[Place]) -> None:
        """Raise `RuntimeError` if one of these parameters is no longer the model's."""
        for place in places:
            if getattr(place.home, place.leaf, None) is not place.parameter:
                raise RuntimeError(
                    f"'{place.name}' was replaced by another tensor after {type(self).__name__} attached "
                    f"(load_state_dict(assign=True), a conversion, a parametrization?). detach(), and attach to the model as it "
                    f"is now"
                )


def places_of(model: nn.Module, optimizers: Sequence[Optimizer] | None, parameters: Which = None) -> list[Place]:
    """The chosen parameters of `model` that one of `optimizers` steps, in the model's order, each once; None: of all."""
    home = None if optimizers is None else home_of_parameters(optimizers)
    network = unwrapped(checked(model))
    found: list[Place] = []
    for full, parameter in network.named_parameters():
        if home is None or parameter in home:
            path, _, leaf = full.rpartition(".")
            number = 0 if optimizers is None or home is None else optimizers.index(home[parameter])
            found.append(
                Place(full.replace("_orig_mod.", ""), full, parameter, network.get_submodule(path), leaf, number)
            )
    places = _chosen(found, parameters)
    if not places:
        raise ValueError(
            "no parameters are left to act on: none of those chosen is stepped by the optimizer given. Pass the optimizer that "
            "was built from this model's parameters"
        )
    return places


def in_weight_layers(model: nn.Module) -> Callable[[str, nn.Parameter], bool]:
    """For `parameters`: those of linear, convolution and attention layers, weights and biases.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [place.name for place in places_of(model, None, in_weight_layers(model))]
    ['0.weight', '0.bias']
    """
    layers = (each for each in model.modules() if isinstance(each, nn.Linear | _ConvNd | nn.MultiheadAttention))
    found = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    return lambda name, parameter: id(parameter) in found


def _chosen(places: Sequence[Place], parameters: Which) -> list[Place]:
    if parameters is None:
        return list(places)
    if callable(parameters):
        called_with("parameters", parameters, "name", "parameter")
        return [place for place in places if parameters(place.name, place.parameter)]
    given = patterns("parameters", parameters)
    for pattern in given:
        if not any(fnmatchcase(place.name, pattern) for place in places):
            known = ", ".join(place.name for place in places)
            raise ValueError(f"parameters={shown(pattern)} matches none that the optimizer steps; those are: {known}")
    return [place for place in places if any(fnmatchcase(place.name, pattern) for pattern in given)]
