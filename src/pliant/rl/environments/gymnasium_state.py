"""What an environment of gymnasium remembers, as plain data: read and put back attribute by attribute, wrappers included.

Nothing is pickled, so nothing is executed when it is read. What an attribute holds

    plain data                      is saved: numbers, texts, arrays, lists, mappings, random generators, MuJoCo's arrays
    an object with a state_dict()   is asked for it
    an object written in Python     is saved attribute by attribute
    ... with get_state, set_state   is asked for it, where an attribute cannot be saved
    what stays the same             is left as it is: functions, classes, what draws; and large arrays, and what cannot be saved,
                                    where they are as in a newly made environment, such as a table of data

and anything else cannot be saved. It is put back into an environment that was made in the same way. Whether that is exact is
tried, not assumed: see `GymnasiumBatch`.
"""

from __future__ import annotations

import builtins
import pickle
import sys
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from enum import Enum
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from pliant.base.choices import shortened

Plain: TypeAlias = Any  # lists and mappings of numbers, texts, arrays and tensors

ASKED = (("state_dict", "load_state_dict"), ("get_state", "set_state"), ("getstate", "setstate"))
CONSTANTS = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, np.dtype)
DRAWING = ("pygame", "matplotlib", "PIL", "glfw", "cv2", "moviepy")  # packages whose objects draw
LARGE = 10_000  # numbers of an array
NAMES = {  # of attributes that no step changes
    "metadata", "_metadata", "spec", "_cached_spec", "render_mode",
    "observation_space", "_observation_space", "single_observation_space", "single_action_space",
}  # fmt: skip
BITS = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
ROWS: Mapping[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class NotSaved(Exception):
    """What an environment remembers cannot be saved; says which attribute, and why."""


def read(value: Any, where: str, fresh: Mapping[str, bytes] | None = None) -> Plain:
    """`value` as plain data. Raises `NotSaved`, naming the attribute, where that is not possible.

    `fresh` are the digests of a newly made environment: large arrays, and what cannot be saved, are left out where they are as
    in that one.

    >>> read({"age": 3, "at": (0.5, 1.5)}, "env")
    {'items': [['age', 3], ['at', {'tuple': [0.5, 1.5]}]]}
    """
    return _Reading(fresh or {}).read(value, where)


def digests(value: Any, where: str) -> dict[str, bytes]:
    """Of large arrays, and of what can be pickled and not be saved: those that may well stay the same, such as tables."""
    reading = _Reading({}, learns=True)
    reading.read(value, where)
    return reading.found


class _Reading:
    """Reads one object, with all that it holds."""

    def __init__(self, fresh: Mapping[str, bytes], learns: bool = False) -> None:
        self.fresh, self.learns = fresh, learns
        self.found: dict[str, bytes] = {}  # digests, by attribute
        self.objects: dict[int, Any] = {}  # kept, so that no other takes the place of one in memory

    def read(self, value: Any, where: str) -> Plain:
        kind = type(value).__name__
        if value is None or type(value) in (bool, float, str):
            return value
        if type(value) is int:
            return value if value.bit_length() < 63 else {"int": str(value)}
        if isinstance(value, np.ndarray | np.generic):
            return self.array(cast(Any, value), where)
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, bytes):
            return {"bytes": np.frombuffer(value, np.uint8).copy()}
        if isinstance(value, Enum):
            return {"member": value.name}
        if isinstance(value, np.random.Generator):
            return {"generator": self.read(value.bit_generator.state, where)}
        if _draws(value):
            return {"same": None}
        if isinstance(value, CONSTANTS) or id(value) in self.objects:
            return {"same": kind}
        if isinstance(value, deque):
            return {"deque": [self.read(each, f"{where}[{n}]") for n, each in enumerate(cast(Any, value))]}
        if kind in ROWS and type(value) is getattr(builtins, kind):
            return {kind: [self.read(each, f"{where}[{n}]") for n, each in enumerate(value)]}
        if isinstance(value, tuple) and hasattr(cast(Any, value), "_make"):
            return {
                "named": [self.read(each, f"{where}[{n}]") for n, each in enumerate(cast(Any, value))],
                "class": kind,
            }
        if isinstance(value, dict):
            items = cast(dict[Any, Any], value).items()
            return {"items": [[self.read(key, where), self.read(each, f"{where}[{key!r}]")] for key, each in items]}
        self.objects[id(cast(Any, value))] = value
        return self.object(value, where)

    def array(self, value: Any, where: str) -> Plain:
        if value.dtype.kind not in "biufcSUmM":
            return self.as_new(value, where, f"{where} is an array of {value.dtype}")
        if value.size > LARGE and self.is_as_new(value.tobytes(), where):
            return {"same": "ndarray"}
        if value.dtype.kind in "biuf" and value.dtype.isnative:
            return value.copy()
        numbers = np.frombuffer(np.asarray(value).tobytes(), np.uint8).copy()
        return {"array": numbers, "dtype": value.dtype.str, "shape": list(value.shape)}

    def object(self, value: Any, where: str) -> Plain:
        held: dict[str, Any] | None = getattr(value, "__dict__", None)
        asked, package = _asked(value), type(value).__module__.partition(".")[0]
        if _is_space(value):
            random = held and held.get("_np_random")
            found = {"_np_random": self.read(random, where)} if random else {}
            return {"attributes": found, "class": type(value).__name__}
        if package == "mujoco":
            return {"mujoco": _mujoco_arrays(value, where)}
        if asked is not None and asked == ASKED[0]:
            return {"asked": self.read(getattr(value, asked[0])(), where)}
        try:
            if held is None or package in sys.stdlib_module_names:
                raise NotSaved(f"{where} is a {type(value).__name__}")
            found = {name: self.read(held[name], f"{where}.{name}") for name in sorted(held.keys() - NAMES)}
            return {"attributes": found, "class": type(value).__name__}
        except NotSaved as error:
            if asked is None:
                return self.as_new(value, where, str(error))
        # gymnasium keeps the random numbers of an environment, which may not tell of them
        kept = {name: self.read(each, where) for name, each in (held or {}).items() if name.startswith("_np_random")}
        return {
            "attributes": kept,
            "class": type(value).__name__,
            "asked": self.read(getattr(value, asked[0])(), where),
        }

    def as_new(self, value: Any, where: str, why: str) -> Plain:
        """What cannot be saved, where it is as in a newly made environment."""
        try:
            pickled = pickle.dumps(value)  # to compare: nothing is ever loaded from it
        except Exception as error:  # objects refuse to be pickled in any way they like
            raise NotSaved(why) from error
        if self.is_as_new(pickled, where):
            return {"same": type(value).__name__}
        raise NotSaved(why)

    def is_as_new(self, held: bytes, where: str) -> bool:
        digest = sha256(held).digest()
        if self.learns:
            self.found[where] = digest
        return self.learns or self.fresh.get(where) == digest


Undo: TypeAlias = list[Callable[[], None]]


def put_back(plain: Plain, there: Any) -> None:
    """Write what `read` gave of an object, or of a list of objects, into another that was made in the same way.

    Raises `ValueError`, with nothing changed, where it has other parts.
    """
    undo: Undo = []
    try:
        found = _put(plain, there, undo)
        if found is not there and [*map(id, found)] != [*map(id, there)]:
            raise ValueError(f"there is a {type(there).__name__} where it had another")
    except Exception as error:  # a damaged state may raise nearly anything
        for back in reversed(undo):
            back()
        raise ValueError(
            f"this state does not fit the environment: {shortened(error) or type(error).__name__}"
        ) from error


def _put(plain: Plain, there: Any, undo: Undo) -> Any:
    held = cast(Mapping[str, Any], plain if isinstance(plain, Mapping) else {})
    kind = next(iter(held), "")
    if kind in ("attributes", "asked", "mujoco"):
        return _into_object(held, there, undo)
    if kind != "same" and not isinstance(there, type) and hasattr(there, "reset") and hasattr(there, "step"):
        raise ValueError(f"there is a {type(there).__name__} where it had none")
    if not isinstance(plain, Mapping):
        if isinstance(plain, torch.Tensor):
            return plain.to(there.device if isinstance(there, torch.Tensor) else "cpu", copy=True)
        return cast(Any, plain).copy() if isinstance(plain, np.ndarray) else plain
    return _REBUILT[kind](held[kind], there, held, undo)


def _row(values: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    """A list or another row; objects in it are written into, which takes as many of them there."""
    kind = next(iter(held))
    ours: list[Any] = (
        list(there) if type(there).__name__ == kind and len(there) == len(values) else [None] * len(values)
    )
    rebuilt = [_put(each, mine, undo) for each, mine in zip(values, ours, strict=True)]
    if kind == "deque":
        return deque(rebuilt, maxlen=there.maxlen if isinstance(there, deque) else None)
    return ROWS[kind](rebuilt)


def _items(pairs: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    """A dictionary, of the class that is there."""
    ours = cast(dict[Any, Any], there if isinstance(there, dict) else {})
    keys = [(_put(key, None, undo), value) for key, value in pairs]
    rebuilt = copy(ours)
    rebuilt.clear()
    rebuilt.update({key: _put(value, ours.get(key), undo) for key, value in keys})
    return rebuilt


def _named(values: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    _check_class(held["class"], there)
    return cast(Any, type(there))._make([_put(each, mine, undo) for each, mine in zip(values, there, strict=True)])


def _check_class(name: str, there: Any) -> None:
    if type(there).__name__ != name:
        raise ValueError(f"there is a {type(there).__name__} where it had a {name}")


def _same(kind: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    if kind is not None:
        _check_class(kind, there)
    return there


def _member(name: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    if not isinstance(there, Enum):
        raise ValueError(f"there is a {type(there).__name__} where it had {name} of an Enum")
    return type(there)[name]


def _generator(state: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    state = _put(state, None, undo)
    bits: Any = {each.__name__: each for each in BITS}[state["bit_generator"]]()
    bits.state = state
    return np.random.Generator(bits)


def _array(numbers: Any, there: Any, held: Mapping[str, Any], undo: Undo) -> Any:
    return np.frombuffer(numbers.tobytes(), held["dtype"]).reshape(held["shape"]).copy()


_REBUILT: Mapping[str, Callable[[Any, Any, Mapping[str, Any], Undo], Any]] = {
    "int": lambda text, there, held, undo: int(text),
    "bytes": lambda numbers, there, held, undo: numbers.tobytes(),
    "array": _array,
    "generator": _generator,
    "member": _member,
    "named": _named,
    "same": _same,
    "items": _items,
    **dict.fromkeys((*ROWS, "deque"), _row),
}


def _restore(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    attributes.clear()
    attributes.update(before)


def _into_object(held: Mapping[str, Any], there: Any, undo: Undo) -> Any:
    attributes: Mapping[str, Any] = held.get("attributes", {})
    if "class" in held:
        _check_class(held["class"], there)
    if attributes:
        if getattr(getattr(there, "__dataclass_params__", None), "frozen", False):
            there = copy(there)  # others may hold it too
        ours: dict[str, Any] = there.__dict__
        undo.append(partial(_restore, ours, dict(ours)))
        for name, value in attributes.items():
            if name in ours or not (isinstance(value, Mapping) and "same" in value):
                ours[name] = _put(value, ours.get(name), undo)
    if "mujoco" in held:
        undo.append(partial(_write_mujoco, there, _mujoco_arrays(there, "it")))
        _write_mujoco(there, held["mujoco"])
    if "asked" in held:
        asked = _asked(there)
        if asked is None:
            raise ValueError(f"there is a {type(there).__name__} where it had an object with a state of its own")
        undo.append(partial(getattr(there, asked[1]), getattr(there, asked[0])()))
        getattr(there, asked[1])(_put(held["asked"], None, undo))
    return there


# -- kinds of objects ---------------------------------------------------------------------------------------------------


def _draws(value: Any) -> bool:
    module = type(value).__module__
    return module.partition(".")[0] in DRAWING or "render" in module.rpartition(".")[2]


def _is_space(value: Any) -> bool:
    gymnasium: Any = sys.modules.get("gymnasium")
    return gymnasium is not None and isinstance(value, gymnasium.Space)


def _asked(value: Any) -> tuple[str, str] | None:
    """The methods by which an object tells its state and takes it."""
    kind = cast(Any, type(value))
    return next((names for names in ASKED if all(callable(getattr(kind, name, None)) for name in names)), None)


def _mujoco_arrays(value: Any, where: str) -> dict[str, Any]:
    """All arrays of a simulation, and of its model those that may be changed as it runs: real numbers, such as frictions."""
    kind = type(value).__name__
    if kind not in ("MjData", "MjModel"):
        raise NotSaved(f"{where} is a {kind} of MuJoCo")
    found: dict[str, Any] = {"time": value.time} if kind == "MjData" else {}
    for name in dir(value):
        each = None if name.startswith("_") else getattr(value, name)
        if isinstance(each, np.ndarray) and each.size and each.dtype.kind in ("biuf" if kind == "MjData" else "f"):
            found[name] = each.copy()
    return found


def _write_mujoco(there: Any, held: Mapping[str, Any]) -> None:
    for name, value in held.items():
        if name == "time":
            there.time = value
        elif (
            getattr(there, name).shape == value.shape
        ):  # those of contacts have another, and are computed anew at each step
            getattr(there, name)[...] = value
