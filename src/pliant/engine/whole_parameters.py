"""Methods that act on whole parameters around each optimizer step: which parameters, and living with the model.

A method here is hooked to the optimizers alone. The model carries nothing, so copies of it, and copies of its
optimizer, know of no method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import index
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.units.models import plain_name, unwrapped

Which = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True)
class Place:
    """A parameter where it lies in the model."""

    name: str  # without the prefixes that DistributedDataParallel and `torch.compile` add
    parameter: nn.Parameter
    home: nn.Module
    leaf: str
    optimizer: int  # which of those given steps it


class WholeParameters(ABC):
    """What the methods share: the parameters chosen, the hooks on their optimizers, and saving.

    Args:
        model: the network that trains.
        optimizer: what steps it, or several; each parameter is looked up in its own.
        parameters: names or patterns (`fnmatch`), or a function (name, parameter) -> bool; None takes all. In any case
            only those of the model that an optimizer given steps, if one is.

    Raises `ValueError` if none are left, if two of the optimizers step the same one, or a pattern matches no name.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None, parameters: Which) -> None:
        self.optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer or ())
        self.places = places_of(model, None if optimizer is None else self.optimizers, parameters)
        self._handles: list[RemovableHandle] = []

    @property
    def names(self) -> list[str]:
        """The parameters acted on."""
        return [place.name for place in self.places]

    def check_places(self) -> None:
        """Raise `RuntimeError` if a parameter is no longer the model's."""
        for place in self.places:
            if getattr(place.home, place.leaf, None) is not place.parameter:
                raise RuntimeError(
                    f"'{place.name}' was replaced by another tensor after {type(self).__name__} attached "
                    f"(load_state_dict(assign=True), a conversion, a parametrization?). detach(), and attach to the model as it "
                    f"is now"
                )

    # -- attaching and saving -----------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises `ValueError` if it was saved for something else."""

    def check_saved(self, state: dict[str, Any], here: dict[str, Any]) -> None:
        """Raise `ValueError` unless `state` was saved with the entries of `here`."""
        for name, mine in here.items():
            if state.get(name) != mine:
                raise ValueError(
                    f"this state of {type(self).__name__} was saved with {name} = {state.get(name)}, here it is {mine}"
                )

    def __deepcopy__(self, memo: object) -> Self:
        raise TypeError(
            f"{type(self).__name__} holds hooks on one optimizer and cannot be copied. Copy the model and its optimizer, build "
            f"a new {type(self).__name__} on the copies, and load this one's state_dict()"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{type(self).__name__} holds hooks on one optimizer and cannot be pickled; save its state_dict()"
        )


def places_of(model: nn.Module, optimizers: Sequence[Optimizer] | None, parameters: Which = None) -> list[Place]:
    """The chosen parameters of `model` that one of `optimizers` steps, in the model's order, each once."""
    owner: dict[nn.Parameter, int] = {} if optimizers is not None else dict.fromkeys(model.parameters(), 0)
    for number, optimizer in enumerate(optimizers or ()):
        for parameter in (p for settings in optimizer.param_groups for p in settings["params"]):
            if owner.setdefault(parameter, number) != number:
                raise ValueError("a parameter is stepped by two of the optimizers given; each must have its own")
    found: list[Place] = []
    network = unwrapped(model)
    for full, parameter in network.named_parameters():
        if parameter in owner:
            path, _, leaf = full.rpartition(".")
            found.append(Place(plain_name(full), parameter, network.get_submodule(path), leaf, owner[parameter]))
    places = _chosen(found, parameters)
    if not places:
        raise ValueError(
            "no parameters are left to act on: none of those chosen is stepped by the optimizer given. Pass the optimizer that "
            "was built from this model's parameters"
        )
    return places


def _chosen(places: Sequence[Place], parameters: Which) -> list[Place]:
    if parameters is None:
        return list(places)
    if callable(parameters):
        return [place for place in places if parameters(place.name, place.parameter)]
    patterns = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    for pattern in patterns:
        if not any(fnmatchcase(place.name, pattern) for place in places):
            known = ", ".join(place.name for place in places)
            raise ValueError(f"parameters={pattern!r} matches none that the optimizer steps; those are: {known}")
    return [place for place in places if any(fnmatchcase(place.name, pattern) for pattern in patterns)]


def seeds_of_runs(seed: int | Sequence[int] | None, runs: int) -> list[int]:
    """One seed a run; from a number, that and the following ones. None takes `torch.initial_seed()`, which is not drawn from.

    >>> seeds_of_runs(7, runs=3)
    [7, 8, 9]
    """
    if seed is None or not isinstance(seed, Sequence):
        first = torch.initial_seed() if seed is None else index(seed)
        return [first + run for run in range(runs)]
    if len(seed) != runs:
        raise ValueError(f"{len(seed)} seeds for {runs} runs; give one each, or one number")
    return [index(each) for each in seed]


def is_captured(places: Sequence[Place]) -> bool:
    """Whether what happens now is recorded in a CUDA graph, whose replay calls no hook."""
    on_cuda = any(place.parameter.device.type == "cuda" for place in places)
    return on_cuda and torch.cuda.is_current_stream_capturing()
