"""Which activity of a forward counts as examples: positions that a mask calls real, and calls that depend on the model's inputs.

    mask    (batch, positions), True where real     a padded token trains nothing, so its activity is not recorded
    calls   of a tapped module, in their order      an identity matrix sent through it is no example (`Tap.calls`)

Both belong to one forward of the whole model, so hooks at the model tell recorders when a forward begins and ends. A method
without a mask and without auxiliary calls has neither these hooks nor a `Forwards`.

Activation checkpointing runs parts again in the backward; activity recorded in the forward is not recorded again. Its reentrant
form hides the forward itself (it runs without gradients): then the mask is that of the last forward, and must be the only one
since the last backward.
"""

# pyright: reportPrivateUsage=false
# Whether the autograd engine runs has no public name in PyTorch.

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pliant.base.choices import did_you_mean, shown
from pliant.units.groups import Tap
from pliant.units.models import arguments

Mask = str | Callable[..., Tensor | Sequence[Tensor] | None]


class Recorder(Protocol):
    """Records the tensors at a tap: `pliant.units.hooks` calls `observe`, and `Forwards` counts the calls of the module."""

    tap: Tap
    module: nn.Module
    parameter: Tensor | None  # of an operand
    forwards: Forwards | None  # where positions are masked, or calls auxiliary
    calls: int  # calls of the module in the current forward
    read: int  # of these, the recorded ones

    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        """One call's tensor; that of a packed sequence holds no padding."""
        ...


class Forwards:
    """Follows the forwards of one model, for its recorders.

    Args:
        root: the model inside its wrappers.
        mask: the name of an argument of its forward, or a function of all of them. Its value is boolean, True at real positions,
            or numbers 1 and 0; a tuple of masks, one per call, where a forward calls a module on several inputs
            (question and answer); None: all positions are real.

    Raises `ValueError` if the forward takes no such argument.
    """

    def __init__(self, root: nn.Module, mask: Mask | None) -> None:
        self.root, self.source = root, None if mask is None else _source(root, mask)
        self.masked = mask is not None
        self.recorders: list[Recorder] = []
        self.mask: Tensor | tuple[Tensor, ...] | None = None
        self.running = False
        self._understood = False  # numbers are known to be 1 and 0
        self._looked_back = True  # activity was recorded in a backward since the last forward began
        self._ambiguous = False  # forwards with other masks wait for the same backward

    # -- one forward -------------------------------------------------------------------------------------------------

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A forward with these arguments begins."""
        self.start(None if self.source is None else self.source(*args, **kwargs))

    def start(self, given: Tensor | Sequence[Tensor] | None) -> None:
        """A forward begins whose mask is known. Raises `TypeError` or `ValueError` if it is none."""
        mask = (
            self._booleans(given) if isinstance(given, Tensor) or given is None else tuple(map(self._booleans, given))
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._ambiguous = not self._looked_back and (self._ambiguous or mask is not self.mask)
            self._looked_back = False
        self.mask, self.running = mask, True
        for recorder in self.recorders:
            recorder.calls = recorder.read = 0

    def end(self) -> None:
        """The forward is over. Raises `RuntimeError` if a module with auxiliary calls was not called as often as when traced."""
        self.running = False
        for recorder in self.recorders:
            if recorder.read:
                self.check_calls(recorder.tap, recorder.calls)

    @staticmethod
    def check_calls(tap: Tap, calls: int) -> None:
        if tap.calls is not None and calls != len(tap.calls):
            raise RuntimeError(
                f"'{tap.module}' was called {calls} times in a forward, and {len(tap.calls)} times when it was traced. Some "
                f"calls are auxiliary: they do not depend on the model's inputs, and only their order says which. Exclude "
                f"its group, or make them in every forward, or outside of it under torch.no_grad()"
            )

    def shows(self, recorder: Recorder, reads: bool) -> bool:
        """Whether to record this call of a recorder's module, in training or not."""
        if not self.running:
            return reads and self._again(recorder)
        number, recorder.calls = recorder.calls, recorder.calls + 1
        calls = recorder.tap.calls
        if not reads or (calls is not None and number < len(calls) and not calls[number]):
            return False
        recorder.read += 1
        return True

    def _again(self, recorder: Recorder) -> bool:
        """A call outside of every forward: activation checkpointing, which runs parts again in the backward, or an error."""
        if recorder.read:
            return False
        tap, name = recorder.tap, type(self.root).__name__
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            what = "the mask" if tap.calls is None else "the order of its calls"
            raise RuntimeError(
                f"'{tap.module}' was called outside of the forward of {name}, which {what} belongs to. Call the model itself, or "
                f"keep this call from being read: torch.no_grad(), or pliant.recording_paused()"
            )
        if tap.calls is not None or self._ambiguous:
            why = (
                "several forwards with masks of their own wait for it"
                if tap.calls is None
                else "calls have no order there"
            )
            raise RuntimeError(
                f"'{tap.module}' runs in the backward only (reentrant checkpointing), and {why}: use checkpoint(..., "
                f"use_reentrant=False)"
            )
        self._looked_back = True
        return True

    # -- the mask ------------------------------------------------------------------------------------------------------

    def real(self, recorder: Recorder, shape: Sequence[int]) -> Tensor | None:
        """Which positions of activity of this shape (units left out) are real; None: all.

        Raises `ValueError` if the mask does not fit.
        """
        mask = self.mask
        if isinstance(mask, tuple):
            if not 0 < recorder.calls <= len(mask):
                raise ValueError(
                    f"mask: {len(mask)} masks, one for each call, and '{recorder.tap.module}' is called once more"
                )
            return fitted(mask[recorder.calls - 1], shape, recorder.tap, recorder.module)
        if mask is None:
            return None
        if recorder.read > 1 and len(shape) == 1 < mask.dim():
            raise ValueError(
                f"mask: the {recorder.tap} is read several times in one forward, one row per example (a loop over time?), and "
                f"shape {tuple(mask.shape)} does not say which position each of them is. Exclude the group, or give a mask with "
                f"one entry an example"
            )
        return fitted(mask, shape, recorder.tap, recorder.module)

    def _booleans(self, mask: Any) -> Any:
        """True where a position is real."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask: a tensor is needed, True at real positions, not a {type(mask).__name__}")
        if mask.dtype is torch.bool:
            return mask
        compiling = torch.compiler.is_compiling()
        if mask.is_complex() or (compiling and mask.is_floating_point()):
            raise TypeError(
                f"mask: booleans are needed{' in a compiled model' * compiling}, True at real positions, not {mask.dtype}"
            )
        ones = mask == 1
        if not (self._understood or compiling):
            if not bool((ones | (mask == 0)).all()):
                raise ValueError(
                    "mask: booleans, or 1 at real positions and 0 elsewhere; this one holds other numbers (additive, 0 at "
                    "real positions and -inf elsewhere? give mask == 0)"
                )
            self._understood = bool(ones.any())  # zeros alone may be an additive mask that hides nothing
        return ones


def fitted(mask: Tensor, shape: Sequence[int], tap: Tap, module: nn.Module) -> Tensor:
    """The mask, booleans, for activity of `shape` (units left out), in that shape.

        (batch, positions)           for (batch, positions, ...)     as it is: further axes share their position
        (batch, positions)           for (batch,), a pool, a head    an example counts if any of its positions is real
        (batch, positions)           for (batch x positions, ...)    rows, in this order

    Raises `ValueError` for any other shape.

    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> fitted(mask, (2,), Tap("head"), nn.Linear(1, 1)).tolist()
    [True, False]
    """
    shape = tuple(shape)
    rows = mask.numel() if mask.dim() > 1 and not isinstance(module, nn.MultiheadAttention) else None
    if tuple(mask.shape) == shape[: mask.dim()]:
        real = mask
    elif tuple(mask.shape[:1]) == shape:
        real = mask.flatten(1).any(1)
    elif shape[:1] == (rows,):  # the rows inside an `nn.MultiheadAttention` are in another order
        real = mask.flatten()
    else:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} does not fit the {tap}, which has {shape} and then its units. Give the axes in "
            f"the activity's own order, True at real positions, or exclude what is read there"
        )
    return real.view(*real.shape, *[1] * (len(shape) - real.dim())).expand(shape)


def _source(root: nn.Module, mask: Any) -> Callable[..., Tensor | Sequence[Tensor] | None]:
    """A function of the forward's arguments that gives the mask."""
    if callable(mask) and not isinstance(mask, Tensor | nn.Module):
        return cast(Callable[..., Any], mask)
    if not isinstance(mask, str):
        raise TypeError(
            f"mask: a method sees many batches; give the name of an argument of the model's forward, or a function of its "
            f"arguments, not a {type(mask).__name__}"
        )
    if mask.endswith("key_padding_mask"):
        raise ValueError(
            f"mask='{mask}': in torch it is True at padding, and here True is real; give mask=lambda ..., {mask}: ~{mask}"
        )
    parameters = inspect.signature(root.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if mask not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f"mask: the forward of {type(root).__name__} takes no {shown(mask)}{did_you_mean(mask, parameters)}, "
            f"but {', '.join(parameters)}; a function of these arguments serves as well"
        )
    return _Named(mask, list(parameters).index(mask) if mask in parameters else None)


def check_mask(mask: object, example: Any) -> None:
    """Raise `TypeError` for a function that does not take the arguments of a forward."""
    if callable(mask) and not isinstance(mask, Tensor | nn.Module):
        args, kwargs = arguments(example)
        try:
            inspect.signature(mask).bind(*args, **kwargs)
        except TypeError:
            given = ", ".join(["one tensor" if len(args) == 1 else f"{len(args)} positional", *map(repr, kwargs)])
            raise TypeError(
                f"mask: a function is called with the arguments of the model's forward ({given}), which "
                f"{getattr(mask, '__name__', type(mask).__name__)} does not take"
            ) from None
        except ValueError:  # a builtin that does not tell
            pass


class _Named:
    """The argument of a name, and of a position if it may be given by one. Left out, it is None, if the forward knows it."""

    def __init__(self, name: str, position: int | None) -> None:
        self.name, self.position = name, position

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in kwargs:
            return kwargs[self.name]
        if self.position is None:
            raise RuntimeError(f"mask: the model was called without '{self.name}=', which says what positions are real")
        return args[self.position] if self.position < len(args) else None


def told(root: nn.Module, mask: Mask | None, recorders: Iterable[Recorder]) -> Forwards | None:
    """What these recorders have to know of forwards; None if they need not: nothing is masked, and no call is auxiliary."""
    forwards = Forwards(root, mask)
    forwards.recorders = [each for each in recorders if forwards.masked or each.tap.calls is not None]
    for recorder in forwards.recorders:
        recorder.forwards = forwards
    return forwards if forwards.recorders else None
