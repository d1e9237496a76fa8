"""Resets of the head, of the whole network, and of what the optimizer remembers.

    reset_head       at a new task: the output layer starts over, or from zero; the rest goes on
    reset_network    everything starts over: the retrained network, the ceiling that a method is held against
    reset_optimizer  the weights go on, the optimizer starts over

Source: Dohare et al., Nature 632 (2024), as released: the head is zeroed at each task of Continual ImageNet, redrawn on
class-incremental CIFAR-100, where the retrained network has every parameter redrawn. The released code keeps momentum and
running statistics all the while: `optimizer_state="keep"`, `statistics=False`. Optimizer resets: Asadi et al., NeurIPS 2023.

Draws are made on a CPU under a seed given, so they are the same on every device, and the global random state is not
touched. State is written in place, so a captured CUDA graph goes on with what it was captured with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.choices import one_of
from pliant.engine.feedback import written
from pliant.engine.fresh_copy import FreshCopy, Init
from pliant.engine.optimizer_state.units import RULES, Rule
from pliant.engine.optimizer_state.young import YoungEntries
from pliant.units.models import unwrapped

State = Literal["fresh", "zero", "keep"]
Optimizers = Optimizer | Sequence[Optimizer] | None

_FIRST_COUNTS = {"step": 0.0, "mu_product": 1.0, "mu": 1.0}  # the others start at a setting
_COUNTS_OF_GROUP = ("k", "weight_sum", "lr_max")  # schedule-free's, one for all parameters of a group


def reset_head(
    head: nn.Module,
    optimizer: Optimizers = None,
    *,
    how: Literal["draw", "zero"] = "draw",
    seed: int | torch.Generator | None = None,
    init: Init | None = None,
    optimizer_state: State = "fresh",
) -> None:
    """Start the output layer over.

    Args:
        head: the layer, or any part of a network.
        optimizer: what steps it, or several; None leaves them alone.
        how: "draw" as it was built, or "zero", weights and bias.
        seed, init, optimizer_state: as for `reset_network`; "zero" draws nothing and needs no seed.

    Raises `ValueError` as `reset_network` does, before anything is written.

    >>> head = nn.Linear(3, 2)
    >>> reset_head(head, how="zero")
    >>> head.weight.any().item()
    False
    """
    if one_of("how", how, ("draw", "zero")) == "draw":
        if seed is None:
            raise ValueError("reset_head(how='draw') needs a seed, a number or a generator")
        reset_network(head, optimizer, seed=seed, init=init, optimizer_state=optimizer_state)
        return
    memory = _Memory(optimizer, list(head.parameters()), optimizer_state)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
            _clear_gradient(parameter)
        memory.forget()
    written(head.parameters())


def reset_network(
    model: nn.Module,
    optimizer: Optimizers = None,
    *,
    seed: int | torch.Generator,
    init: Init | None = None,
    statistics: bool = True,
    optimizer_state: State = "fresh",
) -> None:
    """Draw all parameters anew, frozen ones too, as if the network had been built after `torch.manual_seed(seed)`.

    A method that is attached remembers the old network: call its `restart()`.

    Args:
        model: the network, or the part of it to start over.
        optimizer: what steps it, or several; None leaves them alone.
        seed: of the draws; a generator gives one number for it.
        init: called with every module once all have been reset, as in `model.apply(init)`; needed for parameters
            that no `reset_parameters()` draws, and where the network was initialised by such a function.
        statistics: reset buffers that `reset_parameters()` resets, such as a batch norm's, too.
        optimizer_state: "fresh": goes on as a newly built optimizer would; "zero": averages 0, step counts go on; "keep".

    Raises `ValueError`, before anything is written, if a parameter cannot be drawn, or its state not forgotten.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> reset_network(model, seed=3)
    >>> _ = torch.manual_seed(3)
    >>> bool((model[0].weight == nn.Linear(4, 3).weight).all())
    True
    """
    memory = _Memory(optimizer, list(model.parameters()), optimizer_state)
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    fresh = FreshCopy(model, init).draw(seed)
    with torch.no_grad():
        for parameter, drawn in zip(model.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(drawn)
            _clear_gradient(parameter)
        for buffer, drawn in zip(unwrapped(model).buffers(), fresh.buffers(), strict=True) if statistics else ():
            buffer.copy_(drawn)
        memory.forget()
    written(model.parameters())


def reset_optimizer(
    optimizer: Optimizer | Sequence[Optimizer],
    parameters: Iterable[nn.Parameter] | None = None,
    *,
    optimizer_state: State = "fresh",
) -> None:
    """Forget what the optimizer remembers of these parameters, or of all; the parameters stay as they are.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.Adam([weight])
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> reset_optimizer(optimizer)
    >>> optimizer.state[weight]["step"].item(), optimizer.state[weight]["exp_avg"].tolist()
    (0.0, [0.0, 0.0])
    """
    each = (optimizer,) if isinstance(optimizer, Optimizer) else optimizer
    if parameters is None:
        parameters = [p for one in each for settings in one.param_groups for p in settings["params"]]
    with torch.no_grad():
        _Memory(optimizer, list(parameters), optimizer_state).forget()


class _Memory:
    """What optimizers remember of some parameters, known to be forgettable."""

    def __init__(self, optimizer: Optimizers, parameters: Sequence[nn.Parameter], policy: State) -> None:
        one_of("optimizer_state", policy, get_args(State))
        optimizers = () if optimizer is None else (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        self.policy, self.parameters = policy, set(parameters)
        self.held = [
            (each, settings, [p for p in settings["params"] if p in self.parameters])
            for each in optimizers
            for settings in each.param_groups
        ]
        if optimizers and not any(mine for _, _, mine in self.held):
            raise ValueError("the optimizer given steps none of these parameters; pass the one that does, or none")
        if policy != "keep":
            for each, settings, mine in self.held:
                self._check(each, settings, mine)

    def _check(self, optimizer: Optimizer, settings: dict[str, Any], mine: Sequence[nn.Parameter]) -> None:
        rule = _rule(optimizer) if mine else Rule()
        for parameter in mine:
            unknown = sorted(set(optimizer.state.get(parameter, {})) - rule.keys)
            if unknown:
                keys = ", ".join(map(repr, unknown))
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {keys}, and no rule says how to forget it. Use optimizer_state='keep', "
                    f"and build a new optimizer"
                )
        if mine and not settings.get("train_mode", True) and any(p in optimizer.state for p in mine):
            raise ValueError(
                f"{type(optimizer).__name__} is in eval mode, where parameters hold averages: call optimizer.train() first"
            )
        if self.policy == "fresh" and "weight_sum" in settings and 0 < len(mine) < len(settings["params"]):
            raise ValueError(
                f"{type(optimizer).__name__} counts steps for all parameters of a group, of which only some start over. Give "
                f"them a group of their own, or use optimizer_state='zero'"
            )

    def forget(self) -> None:
        """Forget it. The parameters have their new values."""
        for optimizer, settings, mine in self.held if self.policy != "keep" else ():
            for parameter in mine:
                if parameter in optimizer.state:
                    self._forget(_rule(optimizer), settings, parameter, optimizer.state[parameter])
            if mine and self.policy == "fresh":
                settings.update({key: optimizer.defaults[key] for key in _COUNTS_OF_GROUP if key in settings})
                _look_at_counts_again(optimizer, _rule(optimizer))

    def _forget(self, rule: Rule, settings: dict[str, Any], parameter: nn.Parameter, state: dict[str, Any]) -> None:
        undampened = self.policy == "fresh" and settings.get("momentum") and settings.get("dampening")
        for key, held in state.items():
            if key in rule.shared:
                if self.policy == "fresh":
                    state[key] = _filled(held, _FIRST_COUNTS.get(key, settings["lr"]))
            elif key == "momentum_buffer" and undampened:
                state[key] = None  # its first step is undampened only without a buffer
            elif key in rule.value:
                held.copy_(parameter)
            else:
                start = settings[rule.start[key]] if rule.start and key in rule.start else 0.0
                state[key] = _filled(held, start)


def _rule(optimizer: Optimizer) -> Rule:
    kind = type(optimizer)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if name not in RULES:
        known = ", ".join(each.partition(".")[2] for each in RULES)
        raise ValueError(
            f"no rule to forget the state of {kind.__name__} (known: {known}). Use optimizer_state='keep', and build a new one"
        )
    return RULES[name]


def _filled(held: Any, value: Any) -> Any:
    """`value` in the place of what is held, in its own memory if it has any."""
    if held is None:
        return None
    return held.copy_(torch.as_tensor(value)) if isinstance(held, Tensor) else type(held)(value)


def _look_at_counts_again(optimizer: Optimizer, rule: Rule) -> None:
    """Entries that count their own steps are compared with their parameter's count, which has changed."""
    if rule.counted is not None:
        young = YoungEntries.of(optimizer, rule.counted)
        young.join(optimizer, ())
        young.leave(optimizer)


def _clear_gradient(parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        parameter.grad.zero_()
