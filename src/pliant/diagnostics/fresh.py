"""Networks as a model was before it trained: the caller's, or built where that is sure.

    fresh=        a function that builds one; or an untrained network, which is copied
    config        Hugging Face: `type(model)(model.config)`
    resets        every layer by its own `reset_parameters()`, as it was built (`pliant.engine.fresh_copy`); sure only where no
                  class of the model draws weights by code of its own, which is read in its source

What does not train is no part of the question: frozen parameters, the buffers beside them, and parameters that no optimizer
steps, are those of the model in the fresh network too.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import called_with, is_a, shown
from pliant.base.process import other_random_states, random_state
from pliant.engine.fresh_copy import FreshCopy
from pliant.units.models import copied, unwrapped

Fresh = Callable[[], nn.Module] | nn.Module

_OTHERS = ("torch", "pliant", "builtins", "lightning", "pytorch_lightning", "lightning_fabric")


class FreshNetworks:
    """Fresh networks like `model`, one for each seed.

    Args:
        model: the network; wrappers (DistributedDataParallel, `torch.compile`) are looked through.
        fresh: a function that builds one, or an untrained network; None builds one where that is sure.
        trained: the parameters of `model` that train; None: those that are not frozen.

    Raises `ValueError` or `TypeError` where there is no sure way, or `fresh` gives another network, the model itself, or one
    with the very weights that the model has now.
    """

    def __init__(self, model: nn.Module, fresh: Fresh | None = None, trained: Sequence[Tensor] | None = None) -> None:
        self._model = unwrapped(model)
        ids = None if trained is None else {id(each) for each in trained}
        self._held = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not parameter.requires_grad or (ids is not None and id(parameter) not in ids)
        }
        self._buffers = dict(_beside(self._model, set(self._held)))
        self._build = self._way(fresh)
        self._last: tuple[int, nn.Module] | None = None
        self._refuse_trained([self.draw(0), self.draw(1)])

    def draw(self, seed: int) -> nn.Module:
        """A network drawn under `seed`, in the model's modes, on its device. Global random states stay as they were."""
        if self._last is None or self._last[0] != seed:
            self._last = seed, self._drawn(seed)
        return copied(self._last[1])

    def _drawn(self, seed: int) -> nn.Module:
        devices = {each.device for each in self._model.parameters() if each.device.type == "cuda"}
        with random_state(devices=devices), other_random_states():
            torch.manual_seed(seed)
            found = self._build(seed)
        self._refuse_other(found)
        like = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                mine = like[name]
                parameter.data = parameter.data.to(mine.device, mine.dtype)
                parameter.requires_grad_(mine.requires_grad)
                parameter.grad = None
                if name in self._held:
                    parameter.copy_(mine)
            buffers = dict(self._model.named_buffers())
            for name, buffer in found.named_buffers():
                mine = buffers.get(name)
                if mine is not None and buffer.shape == mine.shape:
                    buffer.data = buffer.data.to(mine.device, mine.dtype)
                if name in self._buffers:
                    buffer.copy_(self._buffers[name])
        modes = {path: module.training for path, module in _modules(self._model)}
        for path, module in _modules(found):
            module.training = modes.get(path, module.training)
        return found

    def _way(self, fresh: Fresh | None) -> Callable[[int], nn.Module]:
        if is_a(fresh, nn.Module):
            untrained = unwrapped(cast(nn.Module, fresh))
            if untrained is self._model:
                raise ValueError("fresh is the model itself: give an untrained one, or a function that builds one")
            return lambda seed: copied(untrained)
        if fresh is not None:
            if not callable(fresh):
                raise TypeError(f"fresh is a function that builds an untrained network, got {shown(fresh)}")
            function = cast(Callable[[], Any], called_with("fresh", fresh))
            return lambda seed: self._built(function)
        config = getattr(self._model, "config", None)
        if config is not None and hasattr(type(self._model), "config_class"):
            return lambda seed: self._built(lambda: type(self._model)(deepcopy(config)))
        why = next(_own_code(self._model), None)
        if why is not None:
            raise ValueError(f"a fresh copy cannot be built surely: {why}. Give fresh=, a function that builds one")
        try:
            copy = FreshCopy(self._model)
            copy.draw(0)
        except ValueError as error:
            raise ValueError(
                f"a fresh copy cannot be built surely: {error}. Give fresh=, a function that builds one"
            ) from None
        return lambda seed: copied(copy.draw(seed))

    def _built(self, function: Callable[[], Any]) -> nn.Module:
        found = function()
        if not isinstance(found, nn.Module):
            raise TypeError(f"fresh() gave {shown(found)}, not a torch.nn.Module")
        return unwrapped(found)

    def _refuse_other(self, found: nn.Module) -> None:
        """Raise `ValueError` unless it has the model's parameters, and none of them is the model's own."""
        mine, theirs = dict(self._model.named_parameters()), dict(found.named_parameters())
        for name in mine.keys() ^ theirs.keys():
            where = "the model has no" if name in theirs else "it has no"
            raise ValueError(f"fresh() gives another network: {where} '{name}'")
        for name, parameter in theirs.items():
            if parameter is mine[name]:
                raise ValueError(f"fresh() gives a network that shares '{name}' with the model: build a new one")
            if parameter.shape != mine[name].shape:
                raise ValueError(
                    f"fresh() gives another network: '{name}' has the shape {tuple(parameter.shape)}, "
                    f"in the model {tuple(mine[name].shape)}"
                )

    def _refuse_trained(self, found: Sequence[nn.Module]) -> None:
        """Raise `ValueError` if networks of several seeds all have the weights of the model: it was copied, not built."""
        mine = dict(self._model.named_parameters())
        free = [
            [(name, p) for name, p in each.named_parameters() if name not in self._held and p.dim() > 1]
            for each in found
        ]
        if all(free) and all(torch.equal(parameter, mine[name]) for each in free for name, parameter in each):
            raise ValueError("fresh() gives the very weights that the model has now: build it untrained")


def _beside(model: nn.Module, held: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Buffers of modules all of whose own parameters are held."""
    for path, module in _modules(model):
        own = [f"{path}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(recurse=False)]
        if own and held.issuperset(own):
            for leaf, buffer in module.named_buffers(recurse=False):
                yield f"{path}.{leaf}".lstrip("."), buffer


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast(Iterator[tuple[str, nn.Module]], model.named_modules())


def _own_code(model: nn.Module) -> Iterator[str]:
    """Why the resets of the layers may not repeat how the model was initialized: what its classes do to weights themselves."""
    for kind in dict.fromkeys(type(each) for each in model.modules()):
        for owner in kind.__mro__:
            if owner is nn.Module:
                break
            if owner.__module__.partition(".")[0] in _OTHERS:
                continue  # layers whose resets are known, and frameworks that draw no weights
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
            except (OSError, TypeError, SyntaxError):
                yield f"the source of {owner.__name__} cannot be read, which may initialize weights itself"
                continue
            for name in _drawing(tree):
                yield f"{owner.__name__} initializes weights itself ('{name}' in its code)"


def _drawing(tree: ast.AST) -> Iterator[str]:
    """Names in a class that say that weights are written, but for those in its `reset_parameters()` and `forward()`."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef) and node.name in ("reset_parameters", "_reset_parameters", "forward"):
            continue
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        in_place = name.endswith("_") and not name.endswith("__") and name not in ("_", "requires_grad_")
        if in_place or _INITIALIZES.match(name) or (name in ("data", "apply") and isinstance(node, ast.Attribute)):
            yield name
        stack.extend(ast.iter_child_nodes(node))


_INITIALIZES = re.compile(
    r"init$|_*(re)?init(iali[sz]e)?_*(all_)?(weight|param|bias|layer|embed|module|net)", re.IGNORECASE
)
