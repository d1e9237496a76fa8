"""The state of a model that is no parameter: what a forward may change beside numbers in tensors, found and put back.

    Python      attributes, lists, dictionaries, sets, cells of closures: a counter, a state between calls, a cache
    arrays      of NumPy
    generators  of random numbers that the model draws from by itself
    tensors     are found, with `PythonState.tensors`; their numbers are put back by who asks

It is found by walking through the model once, nearest objects first, at most `MOST` of them. Not found: globals, attributes of
classes, files, iterators. Not entered: optimizers, data sets, and this library's own objects, which hang on a model by its hooks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pliant.units.models import is_plain

MOST = 100_000  # objects; a model that holds its trainer reaches the whole program
LARGEST = 2**26  # bytes of an array: a larger one is data, not a state

Restore = Callable[[], object]
_ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, torch.dtype, torch.device)
_ELSEWHERE = (torch.optim.Optimizer, Dataset, DataLoader)


class PythonState:
    """Everything in a model that a forward can change, as it is now; `restore` may be called many times."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[Tensor] = []  # without parameters
        self._restores: list[Restore] = []
        for value in _reachable(model):
            if not isinstance(value, Tensor):
                self._restores += _restores(value)
            elif not (isinstance(value, nn.Parameter) or value.is_inference()):
                self.tensors.append(value)

    def restore(self) -> None:
        for restore in self._restores:
            restore()


class Layout:
    """Where a tensor's numbers lie: an operation may give it another size (`resize_`), `.data = ` another memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.alias = tensor, tensor.detach()
        self.bytes = tensor.untyped_storage().nbytes() if is_plain(tensor) else None

    def restore(self) -> None:
        if self.bytes is None:
            return
        if _place(self.tensor) != _place(self.alias):
            self.tensor.data = self.alias.detach()
        if self.alias.untyped_storage().nbytes() != self.bytes:
            self.alias.untyped_storage().resize_(self.bytes)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    memory = tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  (an empty one has no address)
    return memory, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()


def _reachable(model: nn.Module) -> Iterable[Any]:
    """Every object in it that is more than a number or a name, once each."""
    seen: dict[int, Any] = {}
    waiting: deque[Any] = deque([model])
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if id(value) not in seen and not isinstance(value, (*_ATOMS, *_ELSEWHERE)) and not _is_ours(value):
            seen[id(value)] = value
            waiting += _inside(value)
    return seen.values()


def _is_ours(value: Any) -> bool:
    return type(value).__module__.startswith("pliant.") and not isinstance(value, nn.Module)


def _inside(value: Any) -> Iterable[Any]:
    """What an object holds."""
    if isinstance(value, dict):
        return cast(dict[Any, Any], value).values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return cast(list[Any], value)
    if isinstance(value, FunctionType):
        return value.__closure__ or ()
    if isinstance(value, CellType):
        with suppress(ValueError):  # an empty one
            return (value.cell_contents,)
        return ()
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, partial):
        found = cast(partial[Any], value)
        return (found.func, *found.args, *found.keywords.values())
    return _held(_attributes(value))


def _held(attributes: Mapping[str, Any]) -> Iterator[Any]:
    """What attributes hold, behind the hooks of a module too: their tables are not put back."""
    for name, each in attributes.items():
        if _is_hooks(name) and isinstance(each, dict):
            yield from cast(dict[Any, Any], each).values()
        else:
            yield each


def _restores(value: Any) -> list[Restore]:
    """What puts an object back to what it is now. Nothing is written that is not changed: it may be read-only."""
    if isinstance(value, dict):
        return [_refill(cast(dict[Any, Any], value))]
    if isinstance(value, list):
        return [_rewrite(cast(list[Any], value))]
    if isinstance(value, set | deque):
        return [_repopulate(cast(set[Any], value))]
    if isinstance(value, CellType):
        return [_assign(value, "cell_contents", each) for each in _inside(value)]
    if isinstance(value, torch.Generator):
        return [partial(value.set_state, value.get_state())]
    if isinstance(value, random.Random):
        return [partial(value.setstate, value.getstate())]
    if isinstance(value, np.random.RandomState):
        return [partial(value.set_state, value.get_state())]
    if isinstance(value, np.random.Generator):
        return [_assign(value.bit_generator, "state", value.bit_generator.state)]
    if isinstance(value, np.ndarray):
        held = value.flags.writeable and value.nbytes <= LARGEST
        return [partial(np.copyto, value, value.copy())] if held else []
    named = _named(value)
    slots = [_assign(value, name, each) for name, each in _attributes(value).items() if name not in named]
    return [*slots, _refill(named)]


def _named(value: Any) -> dict[str, Any]:
    """The attributes of an instance; a proxy is not asked."""
    try:
        found: Any = object.__getattribute__(value, "__dict__")
    except Exception:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _attributes(value: Any) -> dict[str, Any]:
    """By name, slots too."""
    found = dict(_named(value))
    for kind in type(value).__mro__:
        names: Any = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            with suppress(AttributeError):  # not set, or of a mangled name
                found.setdefault(name, object.__getattribute__(value, name))
    return found


def _is_hooks(name: Any) -> bool:
    """Who runs a model hangs hooks on it meanwhile."""
    return isinstance(name, str) and name.startswith("_") and "_hooks" in name


def _refill(mapping: MutableMapping[Any, Any]) -> Restore:
    before = {key: value for key, value in mapping.items() if not _is_hooks(key)}

    def restore() -> None:
        for key in [key for key in mapping if key not in before and not _is_hooks(key)]:
            del mapping[key]
        for key, value in before.items():
            if key not in mapping or mapping[key] is not value:
                mapping[key] = value

    return restore


def _repopulate(several: set[Any] | deque[Any]) -> Restore:
    before = list(several)

    def restore() -> None:
        if not _same(several, before):
            several.clear()
            several.update(before) if isinstance(several, set) else several.extend(before)

    return restore


def _rewrite(sequence: list[Any]) -> Restore:
    before = list(sequence)

    def restore() -> None:
        if not _same(sequence, before):
            sequence[:] = before

    return restore


def _same(several: Iterable[Any], before: list[Any]) -> bool:
    return list(map(id, several)) == list(map(id, before))


def _assign(holder: Any, name: str, value: Any) -> Restore:
    def restore() -> None:
        if getattr(holder, name, None) is not value:
            setattr(holder, name, value)

    return restore
