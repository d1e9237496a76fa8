"""Models without their wrappers, copies of models, arguments of a forward, and the tensors in a result."""

# pyright: reportPrivateUsage=false
# An operation's schema has no public name in PyTorch.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from math import prod
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pliant.base.arguments import is_a, shown


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, `torch.compile` and Lightning Fabric."""
    return wrappers_of(model)[-1][1]


def prefix_of(model: nn.Module) -> str:
    """The prefix that those wrappers add to the names of its parameters.

    >>> prefix_of(nn.DataParallel(nn.Linear(2, 2)))
    'module.'
    """
    return "".join(f"{leaf}." for leaf, _ in wrappers_of(model)[1:])


def plain_name(name: str) -> str:
    """A parameter's name, or a line of several, without the prefixes of wrappers of the model or of a part of it.

    >>> plain_name("module._orig_mod.0.weight"), plain_name("head._orig_mod.bias"), plain_name("my_module.bias")
    ('0.weight', 'head.bias', 'my_module.bias')
    """
    return _WRAPPERS.sub("", name)


_WRAPPERS = re.compile(r"(?<!\w)(?:module|_orig_mod|_forward_module)\.")


def wrappers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model and what each wrapper holds, from outside inwards, with the name that it has there.

    >>> inside = nn.Linear(2, 2)
    >>> [(name, held is inside) for name, held in wrappers_of(nn.DataParallel(inside))]
    [('', False), ('module', True)]
    """
    found = [("", model)]
    while (leaf := held_by(found[-1][1])) is not None:
        found.append((leaf, cast(nn.Module, getattr(found[-1][1], leaf))))
    return found


def held_by(wrapper: nn.Module) -> str | None:
    """The attribute in which a wrapper holds the model whose forward it calls; None for any other module."""
    if isinstance(wrapper, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    held = vars(wrapper).get("_modules", {})  # Fabric's passes other attributes on to what it holds
    if "_forward_module" in held and "_original_module" in held:
        return "_forward_module"
    return "_orig_mod" if "_orig_mod" in held else None


def checked(model: nn.Module, name: str = "model") -> nn.Module:
    """`model`, if it is a module whose parameters have shapes. Raises `TypeError` or `ValueError` where it is not.

    >>> from torch.optim import SGD
    >>> checked(SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    Traceback (most recent call last):
    TypeError: model must be a torch.nn.Module, got a SGD (first the model, then the optimizer)
    """
    if not is_a(model, nn.Module):
        hint = " (first the model, then the optimizer)" if hasattr(model, "param_groups") else ""
        raise TypeError(f"{name} must be a torch.nn.Module, got {shown(model)}{hint}")
    lazy = next((each for each, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise ValueError(f"{name} has no shapes yet, as '{lazy}' is lazy: run one forward first")
    return model


def is_norm(module: nn.Module) -> bool:
    """One of torch's norms, or one by its name that holds nothing but vectors."""
    vectors = all(held.squeeze().dim() <= 1 for held in module.parameters(recurse=False))
    return isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and vectors)


_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy. A tensor with a history, which `deepcopy` refuses (a weight that a hook computes, features that the last
    forward left behind), is copied without it.

    Raises `ValueError` where there can be no copy, or it would run the model itself.

    >>> layer = nn.Linear(2, 2)
    >>> layer.last = layer.weight * 2
    >>> copied(layer).last.requires_grad
    False
    """
    try:
        with _WithoutHistory():
            copy = deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied: {error}") from error
    _refuse_functions_of(model)
    return copy


def _refuse_functions_of(model: nn.Module) -> None:
    """Raise `ValueError` for a function among a module's attributes that holds a module of the model, as in
    `old = model.forward; model.forward = lambda x: old(x.float())`: a copy has the same function, which calls the model's."""
    own = set(model.modules())
    for path, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules()):
        for name, value in vars(module).items():
            for cell in value.__closure__ or () if isinstance(value, FunctionType) else ():
                held = _content(cell)
                held = getattr(held, "__self__", held)
                if isinstance(held, nn.Module) and held in own:
                    raise ValueError(
                        f"{type(model).__name__} cannot be copied: '{f'{path}.{name}'.lstrip('.')}' is a function that holds the "
                        f"model itself, which a copy would run: define it as a method, or in a module around the model"
                    )


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is bound later
        return None


class _WithoutHistory(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward: from a tuple, a mapping, or the one argument itself."""
    if isinstance(example, Mapping):
        return (), tree_map(_normal, dict(cast(Mapping[str, Any], example)))
    return tree_map(_normal, cast(tuple[Any, ...], example) if isinstance(example, tuple) else (example,)), {}


def _normal(value: Any) -> Any:
    """A copy of a tensor of inference mode, which has no version and no gradients; any other value as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def check_examples(name: str, example: Any) -> None:
    """Raise `ValueError` where all tensors of an example, or of a list of these, are empty: nothing would run."""
    for one in cast(list[Any], example) if isinstance(example, list) else [example]:
        shapes = [tuple(each.shape) for each in tensors_in(arguments(one))]
        if shapes and not any(prod(shape) for shape in shapes):
            raise ValueError(f"{name} holds no example, its shape is {shapes[0]}: give at least one")


def first(count: int, example: Any) -> Any:
    """The first `count` examples, if all tensors have the same number along their first axis; else all."""
    args, kwargs = arguments(example)
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    lengths = {each.shape[0] if each.dim() else None for each in tensors}
    if len(lengths) != 1 or None in lengths or len(tensors) != len(args) + len(kwargs):
        return example
    if isinstance(example, Mapping):
        return {name: each[:count] for name, each in kwargs.items()}
    few = tuple(each[:count] for each in args)
    return few if isinstance(example, tuple) else few[0]


def operation_name(op: OpOverload) -> str:
    return op._schema.name.rpartition("::")[2]


def is_plain(value: Any) -> bool:
    """Whether it is a tensor with a storage of its own: not a sparse one, nor one under `torch.func` (vmap, grad)."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not is_functorch_wrapped_tensor(value)


def tensors_in(value: Any, depth: int = 8) -> Iterator[Tensor]:
    """Every tensor in nested containers, dataclasses and plain objects (distributions, model outputs)."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in cast(Mapping[Any, Any], value).values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in cast(Sequence[Any], value):
            yield from tensors_in(item, depth - 1)
    elif depth and is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        yield from tensors_in(vars(value), depth - 1)
