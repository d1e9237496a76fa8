"""The initializer that a model defines itself, called for one parameter at a time.

    _init_weights(module), or (module, name)    as `model.apply(model._init_weights)` calls it: Hugging Face, timm, nanoGPT
    _initialize_weights()                       of all that the model holds: torchvision

It runs on a copy of the model without any weight but the one in question (the others are on the meta device), for the
module that holds it and then for all that this lies in, as `apply` does: so a parent has the last word on the weights of its
children, as GPT-2's blocks have on what they add to the residual stream. Of nested models that define one, the innermost
counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.process import random_state
from pliant.units.bound import NamedModel
from pliant.units.models import copied

METHODS = ("_init_weights", "_initialize_weights")


class Initializers:
    """The initializers of a model and of the models in it."""

    def __init__(self, names: NamedModel) -> None:
        self._modules = names.modules
        self._bare: dict[str, nn.Module] = {}  # by path: copies without weights

    def of(self, parameter: str) -> str | None:
        """What initializes a parameter, as the plan shows it; None where nothing in the model says that it does."""
        found = self._find(parameter)
        return None if found is None else f"{type(self._modules[found[0]]).__name__}.{found[1]}"

    def draw(self, parameter: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
        """The parameter, of a shape that may differ from its own, as initialized under `seed`.

        Raises `ValueError` if the initializer leaves a part of it as it was, and whatever the initializer raises.
        """
        found = self._find(parameter)
        if found is None:
            raise ValueError(f"nothing that holds '{parameter}' defines {' or '.join(METHODS)}")
        path, method = found
        if path not in self._bare:
            self._bare[path] = _without_weights(self._modules[path])
        model = self._bare[path]
        *inside, leaf = parameter.removeprefix(f"{path}." if path else "").split(".")
        homes = [(model.get_submodule(".".join(inside[:depth])), ".".join(inside[:depth])) for depth in _down(inside)]
        held = homes[0][0]._parameters  # pyright: ignore[reportPrivateUsage]
        bare = held[leaf]
        held[leaf] = nn.Parameter(torch.full(shape, torch.nan, dtype=dtype))
        try:
            with random_state(seed), torch.no_grad():
                _call(getattr(model, method), homes)
            drawn = cast(nn.Parameter, held[leaf]).detach()
        finally:
            held[leaf] = bare
        if drawn.shape != shape or drawn.isnan().any():
            raise ValueError(f"{self.of(parameter)} does not initialize '{parameter}'")
        return drawn

    def _find(self, parameter: str) -> tuple[str, str] | None:
        """Path and method of the innermost module that has one."""
        above = parameter.split(".")[:-1]
        for depth in _down(above):
            path = ".".join(above[:depth])
            for method in METHODS:
                if callable(getattr(type(self._modules[path]), method, None)):
                    return path, method
        return None


def _down(path: list[str]) -> range:
    """From a path's full depth to 0."""
    return range(len(path), -1, -1)


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device: as large as the code alone."""
    bare: dict[int, Any] = {id(each): each.detach().to("meta") for each in model.buffers()}
    for each in model.parameters():
        bare[id(each)] = nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad)
    return copied(model, bare)


def _call(method: Callable[..., object], homes: list[tuple[nn.Module, str]]) -> None:
    """Call it for every module and its name, innermost first; once if it takes none."""
    wanted = required_arguments(method)
    for home in homes if wanted else [()]:
        method(*home[:wanted])


def required_arguments(method: Callable[..., object]) -> int:
    """How many positional arguments it cannot do without.

    >>> required_arguments(lambda module, name, scheme="vit": None)
    2
    """
    parameters = inspect.signature(method).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters)
