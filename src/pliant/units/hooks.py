"""Hooks that give a recorder the tensors at its tap, for methods, diagnostics and the verifier.

`Recorder` says who records, `When`, a function of the tapped module, in which state of the module: in training (methods), or
always.

A copy or a pickle of a model has `InertHook`s instead, which record nothing and hold no reference.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from pliant.units.forwards import Forwards, Recorder

When = Callable[[nn.Module], bool]


class _Recording(local):
    """Whether methods record in this thread: not while it traces or diagnoses a model."""

    enabled = True


_recording = _Recording()


@contextmanager
def recording_paused() -> Generator[None]:
    """Inside, no method records forwards of this thread: for forwards in training mode, with gradients, that are no examples.

    >>> layer = nn.Linear(2, 1)
    >>> with recording_paused():
    ...     probe = layer(torch.eye(2))
    """
    before, _recording.enabled = _recording.enabled, False
    try:
        yield
    finally:
        _recording.enabled = before


def while_training(module: nn.Module) -> bool:
    """In training mode, with gradients, and not paused: when methods record."""
    return module.training and torch.is_grad_enabled() and _recording.enabled


def always(module: nn.Module) -> bool:
    return True


def attach(recorder: Recorder, when: When = while_training) -> RemovableHandle:
    """Give the recorder the tensors at its tap from now on; the handle removes the hook."""
    if recorder.tap.at == "input":
        return recorder.module.register_forward_pre_hook(InputHook(recorder, when), with_kwargs=True)
    if recorder.tap.at == "output":
        return recorder.module.register_forward_hook(OutputHook(recorder, when))
    return OperandHandle(recorder, when)


def follow(forwards: Forwards) -> Iterator[RemovableHandle]:
    """Tell `forwards` when each forward begins, before any recording hook, and when it ends, after them."""
    yield forwards.root.register_forward_pre_hook(BeginHook(forwards), prepend=True, with_kwargs=True)
    yield forwards.root.register_forward_hook(EndHook(forwards))


class InertHook:
    """In place of a hook in a copy of a model: it records nothing."""

    def __call__(self, module: nn.Module, *args: Any) -> None: ...


class _Hook:
    def __init__(self, recorder: Recorder, when: When) -> None:
        self.recorder, self.when = recorder, when

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def _shows(self, module: nn.Module) -> bool:
        now, forwards = self.when(module), self.recorder.forwards
        return now if forwards is None else forwards.shows(self.recorder, now)

    def _observe(self, values: Any) -> None:
        if isinstance(values, Tensor):
            self.recorder.observe(values)
        elif isinstance(values, PackedSequence):
            self.recorder.observe(values.data, packed=True)
        else:
            tap = self.recorder.tap
            raise ValueError(
                f"the {tap} (argument {tap.argument!r}) is a {type(values).__name__}, not a tensor: name the one to read with "
                f"Tap(argument=...)"
            )


class BeginHook:
    def __init__(self, forwards: Forwards) -> None:
        self.forwards = forwards

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _recording.enabled:
            self.forwards.begin(args, kwargs)


class EndHook(BeginHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.forwards.running and _recording.enabled:
            self.forwards.end()


class InputHook(_Hook):
    """Records an input of a module."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._shows(module):
            return
        argument = self.recorder.tap.argument
        if isinstance(argument, int) and argument < len(args):
            self._observe(args[argument])
        elif argument in kwargs:
            self._observe(kwargs[argument])
        elif argument == 0 and len(kwargs) == 1:
            self._observe(next(iter(kwargs.values())))
        else:
            raise ValueError(
                f"'{self.recorder.tap.module}' was called without argument {argument!r}, where activity is read: name a keyword "
                f"argument with Tap(argument='...')"
            )


class OutputHook(_Hook):
    """Records an output of a module."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._shows(module):
            return
        argument = self.recorder.tap.argument
        several = isinstance(output, tuple | Mapping) and not isinstance(output, PackedSequence)
        self._observe(cast(Any, output)[argument] if several else output)


class OperandHandle(RemovableHandle):
    """Intercepts the matrix products of a module while it runs, from a hook before it to a hook after it."""

    def __init__(self, recorder: Recorder, when: When) -> None:
        hook = OperandHook(recorder, when)
        self._handles = (
            recorder.module.register_forward_pre_hook(hook),
            # the last to enter is the first to leave: torch pops the last mode, whichever leaves, and up to 2.10 a mode that
            # nobody else holds is freed too early
            recorder.module.register_forward_hook(hook.leave, prepend=True, always_call=True),
        )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class OperandHook(_Hook):
    def __init__(self, recorder: Recorder, when: When) -> None:
        super().__init__(recorder, when)
        self.watches: list[WatchProducts | None] = []
        self.leave = _LeaveHook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"the {self.recorder.tap} can be read in eager mode only. Exclude its group, or compile a part of the model "
                f"that does not contain '{self.recorder.tap.module}'"
            )
        self.watches.append(WatchProducts(self.recorder).__enter__() if self._shows(module) else None)


class _LeaveHook(_Hook):
    def __init__(self, entered: OperandHook) -> None:
        super().__init__(entered.recorder, entered.when)
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


_GROUPED_MM = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)  # torch 2.6 has none
_BATCHED = {torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default}


class WatchProducts(TorchDispatchMode):
    """Records the other factor of every product with the parameter, or the tap's part of it, or with a copy of those."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.parameter = cast(Tensor, recorder.parameter)
        self.wanted = recorder.tap.part or (0, self.parameter.numel())
        # with their first element; held, so that no other tensor takes their place in memory
        self.copies: list[tuple[Tensor, int]] = []

    def _first_element(self, value: Any) -> int | None:
        """Where a view of the parameter, or of a copy, begins in it; None for any other tensor."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return None
        if self._is_earlier_cast(base := value if value._base is None else value._base):
            self.copies.append((base, 0))
        storage = value.untyped_storage().data_ptr()
        for held, first in ((self.parameter, 0), *self.copies):
            if held.untyped_storage().data_ptr() == storage:
                return first + int(value.storage_offset()) - int(held.storage_offset())
        return None

    def _is_earlier_cast(self, tensor: Tensor) -> bool:
        """Whether it is the parameter as autocast keeps it from one forward to the next, cast once."""
        made_by = tensor.grad_fn
        if made_by is None or made_by.name() != "ToCopyBackward0" or any(tensor is held for held, _ in self.copies):
            return False
        return getattr(made_by.next_functions[0][0], "variable", None) is self.parameter

    def _is_wanted(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (self._first_element(value), value.numel()) == self.wanted

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        factors = _PRODUCTS.get(func)
        if factors is not None:
            left, right = (args[place] for place in factors)
            batched = func in _BATCHED
            if self._is_wanted(right):
                self.recorder.observe(by_example(left) if batched and len(right) > 1 else left)
            elif self._is_wanted(left):
                self.recorder.observe(by_example(right.mT) if batched and len(left) > 1 else right)
        elif func is _GROUPED_MM:
            self._observe_tokens(*args[:3], **({} if kwargs is None else kwargs))
        result = func(*args, **(kwargs or {}))
        if func in _COPIES:
            first = self._first_element(args[0])
            if first is not None:
                self.copies.append((result, first))
        return result

    def _observe_tokens(self, tokens: Tensor, weights: Tensor, offs: Tensor | None = None, **_: Any) -> None:
        """The tokens of the expert that is wanted, of one product for all; `offs` says where those of each end."""
        if offs is not None and weights.dim() == 3:
            for number, weight in enumerate(weights):
                if self._is_wanted(weight):
                    self.recorder.observe(tokens[int(offs[number - 1]) if number else 0 : int(offs[number])])


def by_example(operand: Tensor) -> Tensor:
    """The other factor of a batch of matrices, (batch, examples, units), as (examples, batch x units)."""
    return operand.transpose(0, 1).flatten(1)
