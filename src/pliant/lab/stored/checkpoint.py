"""A state as bytes: arrays and tensors in the safetensors format, the rest as JSON in its header.

A state is a nested mapping of arrays, tensors, numbers, strings, lists and tuples. Reading one back
gives the same types, dtypes, shapes, memory order and bits, and runs no code: nothing is pickled.
Tensors come back on the CPU; `load_state_dict` moves them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np

State: TypeAlias = Mapping[str, Any]
Outline: TypeAlias = Any  # the state as JSON: {"array": name, ...} stands where an array was

_STORABLE = "biuf"  # dtype kinds: bool, int, unsigned, float


def to_bytes(state: State) -> bytes:
    """The state as one safetensors file. Raises TypeError, naming the entry, on what cannot be stored exactly."""
    leaves: dict[str, Any] = {}
    outline = _outline(state, "state", leaves)
    header = {"outline": json.dumps(outline)}
    if any(_is_tensor(leaf) for leaf in leaves.values()):
        import torch
        from safetensors.torch import save

        tensors = {name: leaf if _is_tensor(leaf) else torch.as_tensor(leaf) for name, leaf in leaves.items()}
        return save(tensors, header)
    from safetensors.numpy import save as save_arrays

    return save_arrays(leaves, header)


def from_bytes(data: bytes) -> dict[str, Any]:
    """The state that `to_bytes` wrote."""
    size = int.from_bytes(data[:8], "little")
    outline = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["outline"])
    return _rebuild(outline, _load(data, '"tensor": "' in json.dumps(outline)))


def _load(data: bytes, with_tensors: bool) -> dict[str, Any]:
    if with_tensors:
        from safetensors.torch import load

        return cast(dict[str, Any], load(data))
    from safetensors.numpy import load as load_arrays

    return cast(dict[str, Any], load_arrays(data))


def _outline(value: Any, where: str, leaves: dict[str, Any]) -> Outline:
    """`value` as JSON; its arrays and tensors go to `leaves`, named by where they stand."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value).items()
        return {"dict": [[_key(key, where), _outline(item, f"{where}.{key}", leaves)] for key, item in entries]}
    if type(value) in (list, tuple):
        items = [_outline(item, f"{where}.{i}", leaves) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if _is_tensor(value):
        return _leaf("tensor", value.detach().cpu(), value.stride(), where, leaves)
    if _is_numeric(value):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return _leaf(kind, np.asarray(cast(Any, value)), value.strides, where, leaves)
    what = f"{type(value).__name__} {getattr(value, 'dtype', '')}".strip()
    raise TypeError(f"{where} is a {what}: a state holds arrays, tensors, numbers, strings, lists, tuples, mappings")


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):  # torch optimizers number their parameters
        raise TypeError(f"{where} has the key {key!r}: keys are strings or integers")
    return key


def _leaf(kind: str, leaf: Any, strides: tuple[int, ...], where: str, leaves: dict[str, Any]) -> Outline:
    """Stores a leaf with its axes from the widest stride to the narrowest, under a name of its own: {"a.b": x} and
    {"a": {"b": y}} stand at one place.

    The format knows only C order, but a product of matrices may sum in another order, and so
    round differently, where the memory is laid out differently.
    """
    axes = sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))
    name = where
    while name in leaves:
        name += "'"
    if kind == "tensor":
        leaves[name] = leaf.permute(axes).contiguous().clone()  # cloned: the format refuses shared memory
    else:
        leaves[name] = np.array(leaf.transpose(axes), order="C")
    return {kind: name, "axes": axes}


def _rebuild(outline: Outline, leaves: dict[str, Any]) -> Any:
    if isinstance(outline, list):
        return [_rebuild(item, leaves) for item in cast(list[Outline], outline)]
    if not isinstance(outline, dict):
        return outline
    kind, content = next(iter(cast(dict[str, Any], outline).items()))
    if kind == "dict":
        return {key: _rebuild(item, leaves) for key, item in content}
    if kind == "tuple":
        return tuple(_rebuild(item, leaves) for item in content)
    axes = cast(list[int], outline["axes"])
    back = sorted(range(len(axes)), key=axes.__getitem__)
    if kind == "tensor":
        return leaves[content].permute(back)
    leaf = leaves[content].numpy() if _is_tensor(leaves[content]) else leaves[content]
    array = np.array(leaf).transpose(back)  # copied: what is read from bytes cannot be written to
    return array[()] if kind == "scalar" else array


def _is_numeric(value: Any) -> bool:
    dtype = cast(Any, value).dtype if isinstance(value, np.ndarray | np.generic) else None
    return dtype is not None and dtype.kind in _STORABLE and dtype.isnative


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a state can hold tensors only where torch is imported already
    return torch is not None and isinstance(value, torch.Tensor)
