"""A saved state put into a copy of a model: from a file, or a state dictionary, wherever in it the model's numbers lie.

    a state dictionary            {"0.weight": tensor, ...}
    nested, as codes save it      {"model": ..., "optimizer": ...}, Lightning's {"state_dict": {"net.0.weight": tensor}}
    a file                        of `torch.save`, of safetensors, or a folder that holds one, as Hugging Face's do

Names may have a prefix, and those that DistributedDataParallel and `torch.compile` add. Files are read with
`weights_only=True`: no code in them runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import is_a, shown
from pliant.base.choices import shortened
from pliant.base.tables import needed
from pliant.units.groups import some
from pliant.units.models import copied, plain_name, unwrapped

State = str | PathLike[str] | Mapping[str, Any]

_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth", "checkpoint.pt")  # of a folder
_DEPTH = 3  # of nested dictionaries in a checkpoint


def with_state(model: nn.Module, state: State, name: str = "state") -> nn.Module:
    """A copy of the network inside `model`'s wrappers, with the numbers of a saved state; `model` stays as it is.

    Raises `TypeError` or `ValueError`, which begin with `name`, for what is no state, or one of another network.

    >>> model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> saved = {"epoch": 3, "state_dict": {f"net.{name}": value for name, value in other.state_dict().items()}}
    >>> bool((with_state(model, saved).weight == other.weight).all())
    True
    """
    network = unwrapped(model)
    found = _of(network.state_dict(), _read(state, name), name)
    twin = copied(network)
    twin.load_state_dict(found)
    return twin


def _read(state: State, name: str) -> Mapping[str, Any]:
    """The dictionary that was saved."""
    if is_a(state, Mapping):
        return cast(Mapping[str, Any], state)
    if not is_a(state, (str, PathLike)):
        raise TypeError(f"{name} must be a file or a state dictionary, got {shown(state)}")
    path = _file(Path(fspath(cast(str, state))), name)
    if path.suffix == ".safetensors":
        return cast(Mapping[str, Any], needed("safetensors.torch", "a .safetensors file").load_file(path))
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(
            f"{name}: {_said(path)} holds objects beside tensors and plain values, which may run code when they are loaded. If "
            f"you trust it, load it yourself and give the state dictionary: {name}=torch.load(path, weights_only=False)[...]"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: {_said(path)} cannot be read: {shortened(error)}") from None
    if not is_a(saved, Mapping):
        raise ValueError(f"{name}: {_said(path)} holds {shown(saved)}, not a state dictionary: save model.state_dict()")
    return saved


def _file(path: Path, name: str) -> Path:
    """The file at `path`, or in the folder there."""
    try:
        if path.is_dir():
            inside = [path / each for each in _FILES if (path / each).is_file()]
            if not inside:
                raise ValueError(f"{name}: the folder {_said(path)} holds none of {', '.join(_FILES)}: give the file")
            return inside[0]
        if path.is_file():
            return path
    except OSError:  # no name that a file could have
        pass
    raise ValueError(f"{name}: there is no file {_said(path)}")


def _said(path: Path) -> str:
    return f"'{shortened(path)}'"


def _of(mine: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries of `saved` that are those of the network's own state, by its names."""
    held = list(_states_in(saved, "", _DEPTH))
    if not held:
        keys = some([repr(str(key)) for key in saved]) or "nothing"
        raise ValueError(
            f"{name} holds no tensors by name, but {shortened(keys)}: give what model.state_dict() returned"
        )
    ours = {plain_name(key): key for key in mine}
    fitting: dict[str, dict[str, Any]] = {}
    why = ""
    for place, state in held:
        for prefix in _prefixes(state, ours):
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            wrong = _wrong(mine, ours, inside)
            if not wrong:
                fitting[f"{place}{prefix}"] = {ours[key]: inside[key] for key in ours}
            elif not why or len(inside) > 1:
                why = why or wrong
    if not fitting:
        why = why or f"it has {some(list(held[0][1]))}, the model {some(list(ours))}"
        raise ValueError(f"{name} is of another model: {why}")
    if len(fitting) > 1:
        raise ValueError(
            f"{name} holds several states of this model, at {', '.join(map(repr, fitting))}: give one of them, "
            f"{name}=torch.load(path)[...]"
        )
    return fitting.popitem()[1]


def _states_in(saved: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where tensors lie by name in nested dictionaries, with plain names."""
    named = {plain_name(key): value for key, value in saved.items() if is_a(key, str) and is_a(value, Tensor)}
    if named:
        yield place, named
    for key, value in saved.items() if depth else ():
        if is_a(value, Mapping):
            yield from _states_in(value, f"{place}{key}/", depth - 1)


def _prefixes(state: Mapping[str, Any], ours: Mapping[str, str]) -> list[str]:
    """What may stand before the network's own names."""
    first = next(iter(ours), "")
    ends = [key for key in state if key == first or key.endswith(f".{first}")]
    return [key.removesuffix(first) for key in ends]


def _wrong(mine: Mapping[str, Any], ours: Mapping[str, str], inside: Mapping[str, Any]) -> str:
    """Why a state is not the network's; empty if it is."""
    for key, own in ours.items():
        if key not in inside and is_a(mine[own], Tensor):
            missing = [each for each in ours if each not in inside]
            return f"it lacks {some(missing)}"
        if is_a(mine[own], Tensor) and inside[key].shape != mine[own].shape:
            return f"'{key}' has shape {tuple(inside[key].shape)} there, {tuple(mine[own].shape)} here"
    more = [key for key in inside if key not in ours]
    return f"it has {some(more)}, which the model has not" if more else ""
