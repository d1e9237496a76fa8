"""The state that a forward changes, restored after each forward.

    tensors     buffers, plain tensors in attributes and containers, arrays; also parameters that a forward writes (`max_norm`)
    Python      attributes, lists, dictionaries, sets, cells of closures: a counter, a state between calls, a cache
    generators  of random numbers that the model draws from by itself

It is found by walking through the model once. Writes between two forwards, by the verifier, stay. Not found: globals, attributes
of classes, files.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], object]
_ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, torch.dtype, torch.device)


class ModelState:
    """Everything that can change in a model, as it is now."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.written: list[Tensor] = []  # parameters that a pass was seen to write
        self.tensors: list[Tensor] = []
        self.restores: list[Restore] = []
        for value in _reachable(model):
            if not isinstance(value, Tensor):
                self.restores += _restores(value)
            elif not (isinstance(value, nn.Parameter) or value.is_inference()):
                self.tensors.append(value)
        self.kept = [_kept(tensor) for tensor in self.tensors]

    @contextmanager
    def put_back(self) -> Generator[None]:
        """Afterwards all is as it was on entry, and Python's part as it was at construction."""
        self.kept = [
            each if each[1] == _version(tensor) else _kept(tensor)
            for tensor, each in zip(self.tensors, self.kept, strict=True)
        ]
        marks = [mark(parameter) for parameter in self.parameters]
        before = [(parameter, parameter.detach().clone()) for parameter in self.written]
        try:
            yield
        finally:
            for restore in self.restores:
                restore()
            moved = zip(self.parameters, marks, strict=True)
            new = [parameter for parameter, before_it in moved if mark(parameter) != before_it]
            with torch.no_grad():
                for tensor, (value, version) in zip(self.tensors, self.kept, strict=True):
                    if _version(tensor) != version or not _equal(tensor, value):  # `.data` has no version
                        tensor.copy_(value)
                for parameter, value in before:
                    parameter.copy_(value)
            self.kept = [(value, _version(tensor)) for tensor, (value, _) in zip(self.tensors, self.kept, strict=True)]
            known = {id(parameter) for parameter in self.written}
            self.written += [parameter for parameter in new if id(parameter) not in known]


def mark(tensor: Tensor) -> tuple[Any, ...]:
    """Differs once a tensor was written: its version, and some of its entries, as writes to `.data` keep the version."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    step = max(size // 64, 1)
    some = tensor.detach().as_strided((size // step,), (step,), 0)
    return tensor.untyped_storage().data_ptr(), _version(tensor), *cast(list[Any], some.tolist())


def _version(tensor: Tensor) -> int:
    return tensor._version  # pyright: ignore[reportPrivateUsage]  (it has no public name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.layout is not torch.strided or torch.equal(a, b)  # sparse tensors cannot be compared


def _kept(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach().clone(), _version(tensor)


def _reachable(model: nn.Module) -> Iterable[Any]:
    """Every object in it that is more than a number or a name, once each."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, _ATOMS) and id(value) not in seen:
            seen[id(value)] = value
            waiting += _inside(value)
    return seen.values()


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
    return _attributes(value).values()


def _restores(value: Any) -> list[Restore]:
    """What puts an object back to what it is now."""
    if isinstance(value, dict):
        return [_refill(cast(dict[Any, Any], value))]
    if isinstance(value, list):
        return [_rewrite(value, list(cast(list[Any], value)))]
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
        return [_rewrite(value, value.copy())] if value.flags.writeable else []
    named = getattr(value, "__dict__", None)
    slots = [_assign(value, name, each) for name, each in _attributes(value).items() if name not in (named or {})]
    return [*slots, _refill(cast(dict[Any, Any], named))] if isinstance(named, dict) else slots


def _attributes(value: Any) -> dict[str, Any]:
    """By name, slots too; without the hooks of a module, of which those who try the model hang in some."""
    found = {name: each for name, each in getattr(value, "__dict__", {}).items() if not _is_hooks(name)}
    for kind in type(value).__mro__:
        names: Any = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            with suppress(AttributeError):  # not set, or of a mangled name
                found.setdefault(name, getattr(value, name))
    return found


def _is_hooks(name: Any) -> bool:
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
        several.clear()
        several.update(before) if isinstance(several, set) else several.extend(before)

    return restore


def _rewrite(sequence: Any, before: Any) -> Restore:
    def restore() -> None:
        sequence[:] = before

    return restore if not isinstance(before, np.ndarray) else partial(np.copyto, sequence, before)


def _assign(holder: Any, name: str, value: Any) -> Restore:
    return partial(setattr, holder, name, value)
