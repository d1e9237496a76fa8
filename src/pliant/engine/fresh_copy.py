"""A copy of a network on the CPU whose parameters can be drawn anew, as if it had just been built.

Modules are reset as they were built, children before parents in order of definition, each by its own
`reset_parameters()`: right after `torch.manual_seed(s)` that makes a network of torch's layers equal, to the bit, to one
that is built then. Layers that were made as copies of one another (`nn.TransformerEncoder`) are drawn one by one.

What code outside of the modules did to them is not repeated (`init` is for that), and no network is touched until
all of its parameters are known to have been drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import called_with
from pliant.base.process import random_state
from pliant.units.models import checked, copied, unwrapped

Init = Callable[[nn.Module], object]


class FreshCopy:
    """Draws networks like `model`.

    Args:
        model: a network or a part of one; wrappers (DistributedDataParallel, `torch.compile`) are looked through.
        init: called with every module after all have been reset, as by `model.apply(init)`; it may overwrite any of it.

    Raises `ValueError` if the model cannot be copied, or if two modules share a parameter and there is no `init` to say how it
    starts.
    """

    def __init__(self, model: nn.Module, init: Init | None = None) -> None:
        self.init = None if init is None else called_with("init", init, "module")
        self.copy = copied(unwrapped(checked(model))).cpu()
        if init is None:
            _refuse_tied(self.copy)

    def draw(self, seed: int, wanted: Iterable[str] | None = None) -> nn.Module:
        """The copy, drawn anew under `seed`. The global random state stays as it was.

        Raises `ValueError` if a parameter, of those `wanted` or of all, was drawn neither by a `reset_parameters()` nor by
        `init`.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.copy.buffers()]
        with torch.no_grad(), random_state(seed):
            for parameter in self.copy.parameters():
                parameter.fill_(torch.nan)
            for module in children_first(self.copy):
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if callable(reset):
                    reset()
            if self.init is not None:
                self.copy.apply(cast(Callable[[nn.Module], None], self.init))
            for buffer, before in buffers:  # a reset may look at a weight that is yet to be drawn (spectral norm)
                if buffer.isnan().any() and not before.isnan().any():
                    buffer.copy_(before)
        self._check_drawn(wanted)
        return self.copy

    def numbers_like(self, parameters: Mapping[str, Tensor], seed: int) -> list[Tensor]:
        """What a network drawn anew under `seed` starts with, for each of these parameters by its name in the network."""
        drawn = dict(self.draw(seed, parameters).named_parameters())
        return [drawn[name].detach().to(parameter) for name, parameter in parameters.items()]

    def _check_drawn(self, wanted: Iterable[str] | None) -> None:
        names = None if wanted is None else set(wanted)
        for name, parameter in self.copy.named_parameters():
            if (names is None or name in names) and parameter.isnan().any():
                kind = type(self.copy.get_submodule(name.rpartition(".")[0])).__name__
                raise ValueError(
                    f"'{name}' ({kind}) cannot be drawn anew: no reset_parameters() writes it. Give init=, a function that "
                    f"is called with every module and initializes what it knows, or define {kind}.reset_parameters()"
                )


def children_first(model: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """Every module once, in the order in which constructors finish."""
    seen = set() if seen is None else seen
    if model not in seen:
        seen.add(model)
        for child in model.children():
            yield from children_first(child, seen)
        yield model


def _refuse_tied(model: nn.Module) -> None:
    names = {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules())
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    owners = Counter(map(id, names.values()))
    tied = [name for name, parameter in names.items() if owners[id(parameter)] > 1]
    if tied:
        raise ValueError(
            f"{', '.join(map(repr, tied))} are one tensor, and which of the modules is to draw it is not known: give init="
        )
