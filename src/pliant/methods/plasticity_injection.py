"""Plasticity injection: the head is frozen, and a fresh one learns beside it what is to change in its output.

    h(x)  ->  h(x) + h'1(x) - h'2(x)        h frozen; h'1 fresh, and trains; h'2 as h'1 was drawn, frozen

So the output is what it was, the number of parameters that train too, and the head can learn again. The source's other use is a
diagnosis: if the agent gets better by it, what it lacked was plasticity.

Source: Nikishin et al., NeurIPS 2023 (arXiv 2305.15555): once, at a time that the experimenter chooses, with the encoder training
on; the head is all that follows it (after the convolutions, two linear layers). Repeated, it freezes the injected head whole, and
adds two more. Computed as h + (h'1 - h'2), so that at that moment the output is the same to the bit. The source does not say what
becomes of the optimizer: the fresh parameters take the places of the frozen ones in it, with their settings and without their
state.

Cost: two heads more in memory and in each forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.optim import LBFGS, Optimizer

from pliant.base.arguments import integer, is_a, shown, text
from pliant.base.choices import did_you_mean
from pliant.engine.attached import Optimizers, each_of
from pliant.engine.data_parallel import refuse_shards
from pliant.engine.fresh_copy import FreshCopy, Init
from pliant.engine.optimizer_state.rules import layers
from pliant.units.models import checked, copied, unwrapped, wrappers_of


class InjectedHead(nn.Module):
    """h(x) + h'1(x) - h'2(x), of three modules that give one tensor each."""

    def __init__(self, frozen: nn.Module, fresh: nn.Module, start: nn.Module) -> None:
        super().__init__()
        self.frozen, self.fresh, self.start = frozen, fresh, start

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs = [each(*args, **kwargs) for each in (self.frozen, self.fresh, self.start)]
        for each in outputs:
            if not is_a(each, Tensor):
                raise TypeError(
                    f"an injected head adds outputs, and this one's is {shown(each)}: inject into a part that gives a tensor"
                )
        return outputs[0] + (outputs[1] - outputs[2])


def inject_plasticity(
    model: nn.Module,
    head: str,
    optimizer: Optimizers,
    *,
    seed: int | torch.Generator,
    init: Init | None = None,
) -> InjectedHead:
    """Put an `InjectedHead` in the place of a part of `model`, and its fresh parameters in that of the old ones in `optimizer`.

    Methods that are attached hold the old parameters, and say so at their next step: have them succeeded by ones on the new
    model, `method.successor(make)`. To load a saved model, inject into a new one first, under any seed.

    Args:
        model: the network, before DistributedDataParallel is put around it.
        head: the name of a module in it, as in `model.named_modules()`: all that is to be injected into.
        optimizer: what steps it, or several.
        seed, init: of the fresh head, as for `pliant.reset_network`.

    Returns the new head. Raises `TypeError` or `ValueError`, before anything is changed, for what cannot be injected into: a part
    that is used twice or shares parameters with another, of which nothing trains, that draws numbers (dropout) or holds running
    statistics, which do not freeze; parameters that no optimizer given steps, or that cannot be drawn anew.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> x = torch.randn(3, 4)
    >>> before = model(x)
    >>> head = inject_plasticity(model, "2", optimizer, seed=0)
    >>> torch.equal(model(x), before)
    True
    >>> [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    ['fresh.weight', 'fresh.bias']
    """
    old = _checked_head(model, head)
    network, given = unwrapped(model), each_of(optimizer)
    template = old.fresh if isinstance(old, InjectedHead) else old
    trains = {name: each for name, each in template.named_parameters() if each.requires_grad}
    _check_trained(model, old, head, trains)
    stepped = _slots(given, head, trains)
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    fresh_copy, seed = FreshCopy(template, init), integer("seed", seed)
    fresh = copied(template)
    parameters = dict(fresh.named_parameters())
    drawn = fresh_copy.numbers_like(parameters, seed)
    with torch.no_grad():
        for parameter, numbers in zip(parameters.values(), drawn, strict=True):
            parameter.copy_(numbers)
            parameter.grad = None
    start = copied(fresh).requires_grad_(False)
    _freeze(old)
    for layer, settings, place, name in stepped:
        layer.state.pop(trains[name], None)
        settings["params"][place] = parameters[name]
    injected = InjectedHead(old, fresh, start)
    injected.training = old.training
    parent, _, leaf = head.rpartition(".")
    setattr(network.get_submodule(parent), leaf, injected)
    return injected


def _checked_head(model: nn.Module, head: str) -> nn.Module:
    """The module of this name. Raises `TypeError` or `ValueError` where its place cannot be taken by another."""
    checked(model)
    refuse_shards(model)
    wrapper = next(
        (each for _, each in wrappers_of(model) if isinstance(each, nn.parallel.DistributedDataParallel)), None
    )
    if wrapper is not None:
        raise ValueError(
            "model is a DistributedDataParallel, which would not know the fresh parameters: inject into the network inside, then "
            "wrap it anew"
        )
    modules = dict(cast(Iterator[tuple[str, nn.Module]], unwrapped(model).named_modules(remove_duplicate=False)))
    if text("head", head) not in modules:
        raise ValueError(f"head={shown(head)} is no module of the model{did_you_mean(head, modules)}")
    old = modules[head]
    if isinstance(old, nn.RNNBase | nn.MultiheadAttention):
        raise ValueError(
            f"head: '{head}' ({type(old).__name__}) gives a tuple, and outputs are to be added: put it in a module"
        )
    names = [name for name, module in modules.items() if module is old]
    if len(names) > 1:
        raise ValueError(
            f"head: '{head}' is '{names[0] if names[1] == head else names[1]}' too: inject into a part used once"
        )
    return old


def _check_trained(model: nn.Module, old: nn.Module, head: str, trains: dict[str, nn.Parameter]) -> None:
    """Raise `ValueError` where freezing the head, or adding a fresh one to it, would do something else."""
    if not trains:
        raise ValueError(f"head: no parameter of '{head}' trains, so there is nothing to inject into")
    own = set(old.parameters())
    outside = unwrapped(model).named_parameters(remove_duplicate=False)
    shared = next((name for name, each in outside if each in own and not name.startswith(f"{head}.")), None)
    if shared is not None:
        raise ValueError(
            f"head: '{head}' shares '{shared}', which would be frozen with it: inject into a part of its own"
        )
    for name, module in cast(Iterator[tuple[str, nn.Module]], old.named_modules()):
        full, kind = f"{head}.{name}".rstrip("."), type(module).__name__
        if isinstance(module, _DropoutNd) and module.p:
            raise ValueError(
                f"head: '{full}' ({kind}) draws numbers, which differ in h'1 and h'2: leave it out of the head"
            )
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise ValueError(
                f"head: '{full}' ({kind}) holds running statistics, which go on in a frozen head: leave it out of the head"
            )


# an optimizer, a group of its parameters, a place in it, the name of the parameter there
Slot = tuple[Optimizer, dict[str, Any], int, str]


def _slots(optimizers: Sequence[Optimizer], head: str, trains: dict[str, nn.Parameter]) -> list[Slot]:
    """Where optimizers list these parameters. Raises `ValueError` for one that none of them does."""
    names = {parameter: name for name, parameter in trains.items()}
    slots = [
        (layer, settings, place, names[parameter])
        for each in optimizers
        for layer in layers(each)
        for settings in layer.param_groups
        for place, parameter in enumerate(settings["params"])
        if parameter in names
    ]
    missing = next((name for name in trains if name not in {name for *_, name in slots}), None)
    if missing is not None:
        raise ValueError(f"optimizer does not step '{head}.{missing}': give the one that does, or freeze it first")
    if any(isinstance(layer, LBFGS) for layer, *_ in slots):
        raise ValueError(
            "optimizer: LBFGS keeps a list of its parameters that nobody can change: inject, and build a new one"
        )
    return slots


def _freeze(old: nn.Module) -> None:
    """Put frozen parameters with the same memory in the place of those of `old`: what holds these sees that they are gone."""
    frozen = {each: nn.Parameter(each.detach(), requires_grad=False) for each in old.parameters()}
    for module in old.modules():
        for name, each in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, frozen[each])
