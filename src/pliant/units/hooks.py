"""Hooks that show a reader what passes its tap.

A copy or a pickle of a model carries `InertHook`s instead, which feed nothing and hold nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from pliant.units.activity import Reader
from pliant.units.forwards import Forwards


class _Reading(local):
    """Whether hooks read at all: not in the thread that traces or diagnoses a model, while it does."""

    on = True


_reading = _Reading()


@contextmanager
def recording_paused() -> Generator[None]:
    """No reader of any method sees what this thread runs inside: a forward in training mode, with gradients, of no example.

    >>> layer = nn.Linear(2, 1)
    >>> with recording_paused():
    ...     probe = layer(torch.eye(2))
    """
    before, _reading.on = _reading.on, False
    try:
        yield
    finally:
        _reading.on = before


def _reads(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled() and _reading.on


def attach(reader: Reader) -> RemovableHandle:
    """Start to read; the handle stops it."""
    if reader.tap.at == "input":
        return reader.module.register_forward_pre_hook(InputHook(reader), with_kwargs=True)
    if reader.tap.at == "output":
        return reader.module.register_forward_hook(OutputHook(reader))
    return OperandHandle(reader)


def follow(forwards: Forwards) -> list[RemovableHandle]:
    """Tell of each forward when it begins, before any hook that reads, and when it ends, behind them."""
    begin, end = BeginHook(forwards), EndHook(forwards)
    return [
        forwards.root.register_forward_pre_hook(begin, prepend=True, with_kwargs=True),
        forwards.root.register_forward_hook(end),
    ]


class InertHook:
    """What is left of a hook in a copy of a model: nothing is read."""

    def __call__(self, module: nn.Module, *args: Any) -> None: ...


class _Hook:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def _reads(self, module: nn.Module) -> bool:
        reads, forwards = _reads(module), self.reader.forwards
        return reads if forwards is None else forwards.shows(self.reader, reads)

    def _observe(self, values: Any) -> None:
        tap = self.reader.tap
        packed = isinstance(values, PackedSequence)
        if packed:
            values = values.data
        if not isinstance(values, Tensor):
            raise ValueError(
                f"the {tap} (argument {tap.argument!r}) is a {type(values).__name__}, not a tensor: name the one to read with "
                f"Tap(argument=...)"
            )
        self.reader.observe(values, packed=packed)


class BeginHook:
    def __init__(self, forwards: Forwards) -> None:
        self.forwards = forwards

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _Reading.on:
            self.forwards.begin(args, kwargs)


class EndHook(BeginHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.forwards.running and _Reading.on:
            self.forwards.end()


class InputHook(_Hook):
    """Reads what a module is given."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._reads(module):
            return
        argument = self.reader.tap.argument
        if isinstance(argument, int) and argument < len(args):
            self._observe(args[argument])
        elif argument in kwargs:
            self._observe(kwargs[argument])
        elif argument == 0 and len(kwargs) == 1:
            self._observe(next(iter(kwargs.values())))
        else:
            raise ValueError(
                f"'{self.reader.tap.module}' was called without argument {argument!r}, where activity is read: name a keyword "
                f"argument with Tap(argument='...')"
            )


class OutputHook(_Hook):
    """Reads what a module returns."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._reads(module):
            return
        argument = self.reader.tap.argument
        if isinstance(output, tuple) and not isinstance(output, PackedSequence):
            output = cast(tuple[Any, ...], output)[cast(int, argument)]
        elif isinstance(argument, str):
            output = cast(dict[str, Any], output)[argument]
        self._observe(output)


class OperandHandle(RemovableHandle):
    """Watches the matrix products of a module while it runs, from a hook before it to a hook after it."""

    def __init__(self, reader: Reader) -> None:
        hook = OperandHook(reader)
        self._handles = (
            reader.module.register_forward_pre_hook(hook),
            reader.module.register_forward_hook(hook.leave, always_call=True),
        )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class OperandHook(_Hook):
    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.watches: list[WatchProducts | None] = []
        self.leave = _LeaveHook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"the {self.reader.tap} can be read in eager mode only. Exclude its group, or compile a part of the model "
                f"that does not contain '{self.reader.tap.module}'"
            )
        reads = self._reads(module)
        self.watches.append(WatchProducts(self.reader) if reads else None)
        if reads:
            self.watches[-1].__enter__()  # pyright: ignore[reportOptionalMemberAccess]


class _LeaveHook(_Hook):
    def __init__(self, entered: OperandHook) -> None:
        super().__init__(entered.reader)
        self.entered = entered

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watch = self.entered.watches.pop() if self.entered.watches else None
        if watch is not None:
            watch.__exit__(None, None, None)


_PRODUCTS = {  # products of matrices: where the two factors are among the arguments
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.mv.default: (0, 1),
    torch.ops.aten.linear.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.baddbmm.default: (1, 2),
    torch.ops.aten.convolution.default: (0, 1),
}


class WatchProducts(TorchDispatchMode):
    """Reads the other factor of every product with the parameter, or with a cast or view of it."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.copies: list[
            Tensor
        ] = []  # casts made by autocast; held, so that no other tensor takes their place in memory

    def _is_the_parameter(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        storage = value.untyped_storage().data_ptr()
        held = (cast(Tensor, self.reader.parameter), *self.copies)
        return any(each.untyped_storage().data_ptr() == storage for each in held)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        factors = _PRODUCTS.get(func)
        if factors is not None:
            left, right = (args[place] for place in factors)
            if self._is_the_parameter(right):
                self.reader.observe(left)
            elif self._is_the_parameter(left):
                self.reader.observe(right)
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and self._is_the_parameter(args[0]):
            self.copies.append(result)
        return result
