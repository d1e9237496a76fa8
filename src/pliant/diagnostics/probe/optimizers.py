"""The user's optimizers on the parameters of another network: of the same kind and settings, with their state or without."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import called_with, is_a, shown
from pliant.engine.attached import each_of

Maker = Callable[[list[nn.Parameter]], Optimizer]


class OptimizersLike:
    """Optimizers like those that train `model`, for networks with parameters of the same names.

    Args:
        model: without wrappers.
        optimizer: one or several that step it; or a function of a list of parameters that makes one.

    `trained` are the model's parameters that they step and that are not frozen. `step_sizes` are those of the first group, now
    and at first (a scheduler writes the latter down, as `initial_lr`).

    Raises `TypeError` or `ValueError` for something else, or optimizers of another model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | Maker) -> None:
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        free = [parameter for parameter in self._names if parameter.requires_grad]
        if not free:
            raise ValueError("the model is frozen: no parameter has requires_grad=True, so there is nothing to probe")
        self._maker = (
            called_with("optimizer", optimizer, "a list of parameters")
            if callable(optimizer) and not hasattr(optimizer, "param_groups") and not is_a(optimizer, (type, nn.Module))
            else None
        )
        if self._maker is None:
            self._originals = each_of(cast(Any, optimizer))
        else:
            made = self._maker(list(free))
            if not is_a(made, Optimizer):
                raise TypeError(f"optimizer(parameters) gave {shown(made)}, not a torch.optim.Optimizer")
            self._originals = (made,)
        stepped = {p for each in self._originals for group in each.param_groups for p in group["params"]}
        self.trained = [parameter for parameter in free if parameter in stepped]
        if not self.trained:
            raise ValueError(
                "optimizer steps no parameter of the model that trains: give the one that steps this model"
            )
        group = next(
            g for each in self._originals for g in each.param_groups if any(p in self._names for p in g["params"])
        )
        if "lr" not in group:
            raise ValueError(
                f"{type(self._originals[0]).__name__} has no step size 'lr' in its parameter groups: give optimizer=, a "
                f"function of a list of parameters that makes one which has"
            )
        self.step_sizes = float(group["lr"]), float(group.get("initial_lr", group["lr"]))
        self.has_state = self._maker is None and any(
            each.state.get(parameter) for each in self._originals for parameter in self.trained
        )
        self.name = " + ".join(type(each).__name__ for each in self._originals)

    def on(self, network: nn.Module, factor: float, *, state: bool) -> list[Optimizer]:
        """Optimizers of `network`, each step size its first one times `factor`; with `state`, with the state of now."""
        parameters = dict(network.named_parameters())
        return [self._like(original, parameters, factor, state) for original in self._originals]

    def _like(self, original: Optimizer, there: Mapping[str, nn.Parameter], factor: float, state: bool) -> Optimizer:
        groups: list[dict[str, Any]] = []
        pairs: list[tuple[Tensor, nn.Parameter]] = []
        for group in original.param_groups:
            mine = [parameter for parameter in group["params"] if parameter in self._names]
            theirs = [there[self._names[parameter]] for parameter in mine]
            pairs += zip(mine, theirs, strict=True)
            settings = {key: deepcopy(value) for key, value in group.items() if key not in ("params", "initial_lr")}
            settings["lr"] = float(group.get("initial_lr", group["lr"])) * factor
            if theirs:
                groups.append({"params": theirs, **settings})
        made = self._made(original, groups)
        if state:
            for mine, theirs in pairs:
                if mine in original.state:
                    made.state[theirs] = deepcopy(original.state[mine])
        train = getattr(made, "train", None)  # of schedule-free optimizers
        if callable(train):
            train()
        return made

    def _made(self, original: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
        if self._maker is not None:
            made = self._maker([parameter for group in groups for parameter in group["params"]])
            for group in made.param_groups:
                group["lr"] = groups[0]["lr"]
            return made
        kind = type(original)
        try:
            takes = inspect.signature(kind).parameters
            defaults = {name: deepcopy(value) for name, value in original.defaults.items() if name in takes}
            return kind(cast(Any, groups), **cast(Any, defaults))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a {kind.__name__} cannot be made anew with the settings of yours ({error}): give optimizer=, a function of a "
                f"list of parameters that makes one"
            ) from None
