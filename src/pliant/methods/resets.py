"""Resets of the head, of the whole network, and of what the optimizer remembers.

    reset_head       at a new task: the output layer starts over, or from zero; the rest goes on
    reset_network    everything starts over: the retrained network, the ceiling that a method is held against
    reset_optimizer  the weights go on, the optimizer starts over

Source: Dohare et al., Nature 632 (2024), the released code: the head is zeroed at each task of Continual ImageNet, redrawn on
class-incremental CIFAR-100, where the retrained network has every parameter redrawn. The released code keeps momentum and
running statistics all the while: `optimizer_state="keep"`, `statistics=False`. Optimizer resets: Asadi et al., NeurIPS 2023;
Adam-Rel: Ellis et al., NeurIPS 2024 (arXiv 2412.17113), at each change of the loss (in PPO, at each new batch of experience).

Draws are made on a CPU under a seed given, so they are the same on every device, and the global random state is not
touched. State is written in place, so a captured CUDA graph goes on with what it was captured with.
"""

# pyright: reportPrivateUsage=false
# Hooks and parameters by name have no public name in PyTorch.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pliant.base.arguments import flag, integer, is_a, listed, shown
from pliant.base.choices import one_of
from pliant.engine.attached import Optimizers, each_of
from pliant.engine.feedback import written
from pliant.engine.fresh_copy import FreshCopy, Init
from pliant.engine.optimizer_state.whole import Policy, PolicyOrCounts, WholeState
from pliant.units.models import checked, copied, unwrapped


def reset_head(
    head: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    how: Literal["draw", "zero"] = "draw",
    seed: int | torch.Generator | None = None,
    init: Init | None = None,
    optimizer_state: Policy = "fresh",
) -> None:
    """Start the output layer over.

    Args:
        head: the layer, or any part of a network.
        optimizer: what steps it, or several; None leaves them alone.
        how: "draw" as it was built, or "zero", weights and bias. A weight that is computed from its parameters must become zero
            with these: that of a weight norm, a direction times a length, does not.
        seed, init, optimizer_state: as for `reset_network`; "zero" draws nothing and needs no seed.

    Raises `ValueError` as `reset_network` does, before anything is written.

    >>> head = nn.Linear(3, 2)
    >>> reset_head(head, how="zero")
    >>> head.weight.any().item()
    False
    """
    checked(head, "head")
    one_of("optimizer_state", optimizer_state, get_args(Policy))
    if one_of("how", how, ("draw", "zero")) == "draw":
        if seed is None:
            raise ValueError("reset_head(how='draw') needs a seed, a number or a generator")
        reset_network(head, optimizer, seed=seed, init=init, optimizer_state=optimizer_state)
        return
    memory = WholeState(optimizer, list(head.parameters()), optimizer_state)
    _check_zero(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
            _clear_gradient(parameter)
        memory.forget()
    written(head.parameters())


def reset_network(
    model: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    seed: int | torch.Generator,
    init: Init | None = None,
    statistics: bool = True,
    optimizer_state: Policy = "fresh",
) -> None:
    """Draw all parameters anew, frozen ones too, as if the network had been built after `torch.manual_seed(seed)`.

    A method that is attached remembers the old network: call its `restart()`.

    Args:
        model: the network, or the part of it to start over.
        optimizer: what steps it, or several; None leaves them alone.
        seed: of the draws; a generator gives one number for it.
        init: called with every module once all have been reset, as in `model.apply(init)`; needed for parameters
            that no `reset_parameters()` draws, and where the network was initialized by such a function.
        statistics: reset buffers that `reset_parameters()` resets, such as a batch norm's, too.
        optimizer_state: "fresh": goes on as a newly built optimizer would; "zero": averages 0, step counts go on; "keep".

    Raises `ValueError`, before anything is written, if a parameter cannot be drawn, or its state not forgotten.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> reset_network(model, seed=3)
    >>> _ = torch.manual_seed(3)
    >>> bool((model[0].weight == nn.Linear(4, 3).weight).all())
    True
    """
    one_of("optimizer_state", optimizer_state, get_args(Policy))
    memory = WholeState(optimizer, list(checked(model).parameters()), optimizer_state)
    fresh_copy, statistics = FreshCopy(model, init), flag("statistics", statistics)
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    fresh = fresh_copy.draw(integer("seed", seed))
    with torch.no_grad():
        for parameter, drawn in zip(model.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(drawn)
            _clear_gradient(parameter)
        for buffer, drawn in zip(unwrapped(model).buffers(), fresh.buffers(), strict=True) if statistics else ():
            buffer.copy_(drawn)
        memory.forget()
    written(model.parameters())


def reset_optimizer(
    optimizer: Optimizers,
    parameters: Iterable[nn.Parameter] | None = None,
    *,
    optimizer_state: PolicyOrCounts = "fresh",
) -> None:
    """Forget what the optimizer remembers of these parameters, or of all; the parameters stay as they are.

    `optimizer_state="counts"` is Adam-Rel, of Adam, AdamW, Adamax, NAdam and RAdam: the count of steps starts over, averages go
    on, and are corrected as if they had just begun. The next step is (1 - β2)^½ / (1 - β1) = 0.32 of Adam's where gradients stay
    as they were, and at most about one step size where they have suddenly grown, in place of 3.2.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.Adam([weight])
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> reset_optimizer(optimizer)
    >>> optimizer.state[weight]["step"].item(), optimizer.state[weight]["exp_avg"].tolist()
    (0.0, [0.0, 0.0])
    """
    each = each_of(optimizer)
    if parameters is None:
        parameters = [p for one in each for settings in one.param_groups for p in settings["params"]]
    mine = listed(parameters)
    if mine is None or not all(is_a(p, Tensor) for p in mine):
        raise TypeError(f"parameters takes a list of those of a model, got {shown(parameters)}")
    with torch.no_grad():
        WholeState(each, mine, optimizer_state).forget()


@torch.no_grad()
def _check_zero(head: nn.Module) -> None:
    """Raise `ValueError` if a weight that parametrizations or hooks compute is not zero where its parameters are."""
    if not any(is_parametrized(each) or bool(cast(Any, each._forward_pre_hooks)) for each in head.modules()):
        return
    copy = copied(unwrapped(head)).cpu()
    for parameter in copy.parameters():
        parameter.zero_()
    for path, module in cast(Iterable[tuple[str, nn.Module]], copy.named_modules()):
        for name, weight in _computed(module):
            if weight.any():  # NaN is not zero
                full = f"{path}.{name}".lstrip(".")
                raise ValueError(
                    f"'{full}' ({type(module).__name__}) is computed from parameters, and is not zero where these are (a weight "
                    f"norm divides by their length): use how='draw' with init=, or remove the norm from the head"
                )


def _computed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a module that parametrizations or torch's hooks (weight and spectral norm, pruning) compute, by name."""
    for name in cast(Iterable[str], module.parametrizations) if is_parametrized(module) else ():
        yield name, getattr(module, name)
    for hook in cast(Iterable[Any], module._forward_pre_hooks.values()):
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and name not in module._parameters and isinstance(vars(module).get(name), Tensor):
            hook(module, ())
            yield name, getattr(module, name)


def _clear_gradient(parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        parameter.grad.zero_()
