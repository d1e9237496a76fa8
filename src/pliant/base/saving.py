"""A `state_dict()` in a file, written completely or not at all, and read without executing anything in it.

The format is PyTorch's (`torch.save`, `torch.load(weights_only=True)`), which holds tensors but no arrays: arrays are written as
tensors under a mark, and are read as arrays of the same dtype, shape and memory order.

Below stands what a `load_state_dict` refuses with: in words, with nothing changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import MOST
from pliant.base.choices import shortened

StrPath: TypeAlias = str | os.PathLike[str]

_ARRAY, _NUMBER = "as a NumPy array", "as a NumPy number"  # the one key of the mapping that stands for it


def save_state(state: Mapping[str, Any], path: StrPath) -> None:
    """Write nested mappings, lists and tuples of tensors, arrays, numbers, strings and None.

    A half-written file never takes the place of `path`. Raises `TypeError`, naming the entry, for anything else in the state.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"mean": np.array([0.5, 2.0]), "steps": 3}, f"{folder}/state.pt")
    ...     load_state(f"{folder}/state.pt")
    {'mean': array([0.5, 2. ]), 'steps': 3}
    """
    packed, target = _packed(state, "state"), Path(path)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        torch.save(packed, unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_state(path: StrPath) -> dict[str, Any]:
    """The state that `save_state` wrote, tensors on the CPU. Raises `ValueError` if the file is no saved state or is damaged."""
    held = BytesIO(Path(path).read_bytes())
    try:
        state = _unpacked(torch.load(held, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file may raise nearly anything
        raise ValueError(f"{path} is damaged, or no saved state: {type(error).__name__} on reading it") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, and no saved state")
    return cast(dict[str, Any], state)


def _packed(value: Any, where: str) -> Any:
    """`value` as tensors, numbers, strings, lists, tuples and dictionaries alone."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()  # a view would be saved with its whole storage
    if isinstance(value, Mapping):
        return {
            _key(key, where): _packed(each, f"{where}[{key!r}]") for key, each in cast(Mapping[Any, Any], value).items()
        }
    if type(value) in (list, tuple):
        return type(value)(_packed(each, f"{where}[{number}]") for number, each in enumerate(value))
    if isinstance(value, np.ndarray | np.generic):
        return {_ARRAY if isinstance(value, np.ndarray) else _NUMBER: _as_tensor(cast(Any, value), where)}
    raise TypeError(
        f"{where} is a {type(value).__name__}: a state holds tensors, arrays, numbers, strings, lists, tuples, mappings"
    )


def _as_tensor(array: Any, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))  # a copy: a tensor can be neither read-only nor of negative stride
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} is an array of {array.dtype}, which cannot be saved: {error}") from None


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):  # torch optimizers number their parameters
        raise TypeError(f"{where} has the key {key!r}: keys are strings or integers")
    return key


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each) for each in cast(list[Any], value)]
    if isinstance(value, tuple):
        return tuple(_unpacked(each) for each in cast(tuple[Any, ...], value))
    if not isinstance(value, dict):
        return value
    held = cast(dict[Any, Any], value)
    if held.keys() == {_ARRAY}:
        return held[_ARRAY].numpy()
    if held.keys() == {_NUMBER}:
        return held[_NUMBER].numpy()[()]
    return {key: _unpacked(each) for key, each in held.items()}


# -- going on from a state ----------------------------------------------------------------------------------------------


def fill(tensor: Tensor, held: Tensor, name: str) -> None:
    """Write what is `held` in a state into `tensor`. Raises `ValueError` where it has another shape or kind of numbers."""
    if not isinstance(held, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"'{name}' of this state is {_kind(held)}, here it is {_kind(tensor)}")
    if held.is_complex() or held.is_floating_point() != tensor.is_floating_point():
        raise ValueError(f"'{name}' of this state holds {held.dtype}, here it is {tensor.dtype}")
    if held.shape != tensor.shape:
        raise ValueError(f"'{name}' of this state has shape {tuple(held.shape)}, here it is {tuple(tensor.shape)}")
    tensor.copy_(held)


def all_or_nothing(load: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Decorates a `load_state_dict`: a state that it refuses leaves the object as it was, and is refused by a `ValueError`."""

    @wraps(load)
    def load_state_dict(self: Any, state: Mapping[str, Any]) -> None:
        name = type(self).__name__
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a {type(state).__name__} is no state of {name}: load what its state_dict() gave")
        before = deepcopy(self.state_dict())
        try:
            load(self, state)
        except Exception as error:  # a damaged state may raise nearly anything
            load(self, before)
            if isinstance(error, ValueError):
                raise
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise ValueError(f"this state of {name} is not as it was saved: {shortened(reason, 300)}") from error

    return load_state_dict


def entry(state: Mapping[str, Any], name: str, like: Any) -> Any:
    """What a state holds under `name`, a copy. Raises `ValueError` unless it is of the kind of `like`, what is there now.

    An array or a tensor has the same shape and dtype, a number is one (a float may be NaN), a text is a text.

    >>> entry({"hits": np.zeros(3)}, "hits", np.zeros(2))
    Traceback (most recent call last):
    ValueError: 'hits' of this state is an array of float64, shape (3,), here it is an array of float64, shape (2,)
    """
    held = _held(state, name)
    ours, theirs = _kind(like), _kind(held)
    if ours == "a number" and theirs == "a whole number":
        theirs = ours
    if ours != theirs:
        raise ValueError(f"'{name}' of this state is {theirs}, here it is {ours}")
    return deepcopy(held)


def count_in(state: Mapping[str, Any], name: str, most: int | None = None) -> int:
    """The whole number that a state holds under `name`. Raises `ValueError` unless it is one, from 0 to `most`.

    >>> count_in({"steps": -5}, "steps")
    Traceback (most recent call last):
    ValueError: 'steps' of this state is -5: it is a whole number from 0 on
    """
    held = _held(state, name)
    if _kind(held) != "a whole number" or not 0 <= int(held) <= (MOST if most is None else most):
        end = "on" if most is None else f"to {most}"
        raise ValueError(f"'{name}' of this state is {shortened(repr(held))}: it is a whole number from 0 {end}")
    return int(held)


def counts_in(state: Mapping[str, Any], name: str, size: int) -> list[int]:
    """The whole numbers from 0 on that a state holds in a list under `name`. Raises `ValueError` unless it is `size` of them."""
    held = _held(state, name)
    if not isinstance(held, list | tuple) or len(cast(Any, held)) != size:
        raise ValueError(
            f"'{name}' of this state is {shortened(repr(cast(Any, held)))}: it is a list of {size} whole numbers"
        )
    return [count_in({name: each}, name) for each in cast(list[Any], held)]


def load_part(part: Any, state: Mapping[str, Any], name: str) -> None:
    """Have a network, an optimizer or anything else with `load_state_dict` go on from a copy of what a state holds under `name`.

    `part` may be None, which has none. Raises `ValueError` where the state is of another: torch's optimizers take tensors of
    any shape, and fail at their next step.
    """
    held = _held(state, name)
    if (part is None) != (held is None):
        ours, theirs = ("none" if each is None else "one" for each in (part, held))
        raise ValueError(f"'{name}' of this state: it was saved with {theirs}, here there is {ours}")
    if part is None:
        return
    held = deepcopy(held)  # torch's optimizers keep the tensors that they are given
    if isinstance(part, Optimizer):
        _check_optimizer(part, held, name)
    if isinstance(part, nn.Module):
        for key, mine in part.state_dict().items():
            entry(held, key, mine)
    part.load_state_dict(held)


def _check_optimizer(optimizer: Optimizer, held: Any, name: str) -> None:
    """Raise `ValueError` where what is held of a parameter is of another shape than it."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in _held(held, "param_groups") for number in group["params"]]
    for number, shape in zip(numbers, shapes, strict=False):  # their numbers are compared by the optimizer
        for key, value in _held(held, "state").get(number, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape != shape:
                saved, ours = tuple(value.shape), tuple(shape)
                raise ValueError(
                    f"'{name}' of this state: {key} of parameter {number} has shape {saved}, here it is {ours}"
                )


def _held(state: Mapping[str, Any], name: str) -> Any:
    if not isinstance(state, Mapping) or name not in state:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"this state lacks '{name}': load what state_dict() gave")
    return state[name]


def _kind(value: Any) -> str:
    """What a value is, in words, as far as that stays the same while something learns."""
    if isinstance(value, bool | np.bool_):
        return "true or false"
    if isinstance(value, Integral):
        return "a whole number"
    if isinstance(value, Real):
        return "a number"
    if isinstance(value, np.ndarray | Tensor):
        kind, array = "a tensor" if isinstance(value, Tensor) else "an array", cast(Any, value)
        return f"{kind} of {str(array.dtype).removeprefix('torch.')}, shape {tuple(array.shape)}"
    return "a text" if isinstance(value, str) else "nothing" if value is None else f"a {type(value).__name__}"
