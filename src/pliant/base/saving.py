"""A `state_dict()` in a file, written completely or not at all, and read without executing anything in it.

The format is PyTorch's (`torch.save`, `torch.load(weights_only=True)`), which holds tensors but no arrays: arrays are written as
tensors under a mark, and are read as arrays of the same dtype, shape and memory order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

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


def fill(tensor: Tensor, held: Tensor, name: str) -> None:
    """Write what is `held` in a state into `tensor`. Raises `ValueError` where it has another shape."""
    if held.shape != tensor.shape:
        raise ValueError(f"'{name}' of this state has shape {tuple(held.shape)}, here it is {tuple(tensor.shape)}")
    tensor.copy_(held)
