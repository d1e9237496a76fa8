"""What our optimizers share: settings that are checked group by group, a closure, and gradients that are real and dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any] | None


class CheckedOptimizer(Optimizer, ABC):
    """An optimizer that refuses wrong settings of any group of parameters, and parameters of complex numbers."""

    @abstractmethod
    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `TypeError` or `ValueError` for settings, of a group or of all, that do not fit."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]  (else torch says what it takes)
            self.check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(parameter.is_complex() for parameter in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError(f"params: {type(self).__name__} steps no complex parameters, give those another optimizer")


def value_of(closure: Closure) -> Any:
    """What the closure, which finds the gradients, returns; None if there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradients(optimizer: Optimizer) -> list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Of each group its settings, the parameters that have a gradient, and these gradients; groups without any are left out.

    Raises `RuntimeError` for a gradient that is not dense.
    """
    found: list[tuple[dict[str, Any], list[Tensor], list[Tensor]]] = []
    for settings in optimizer.param_groups:
        stepped = [parameter for parameter in cast(list[Tensor], settings["params"]) if parameter.grad is not None]
        gradients = [parameter.grad for parameter in stepped if parameter.grad is not None]
        if any(gradient.layout is not torch.strided for gradient in gradients):
            raise RuntimeError(
                f"{type(optimizer).__name__} needs dense gradients: use sparse=False, or give that parameter another optimizer"
            )
        if stepped:
            found.append((settings, stepped, gradients))
    return found
