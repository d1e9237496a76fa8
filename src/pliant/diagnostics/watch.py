"""What hidden units answer in one run of a model, seen at the taps where reset methods read them.

`pliant.units.hooks` sums activity for a method while the network trains; here the activity itself is kept, in any mode.
"""

# pyright: reportPrivateUsage=false
# `WatchProducts` is the package's own.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pliant.diagnostics.activations import Activation, Activations
from pliant.diagnostics.features import features
from pliant.diagnostics.undisturbed import undisturbed
from pliant.units.activity import Reader
from pliant.units.bound import Names
from pliant.units.forwards import Forwards, Mask
from pliant.units.hooks import WatchProducts
from pliant.units.map import Tap
from pliant.units.models import arguments, unwrapped

Loss = Callable[[Any], Tensor]


@dataclass
class Sight:
    """What passed a tap: the tensors of all calls with their real positions (None: all), and which activations wrote them."""

    tap: Tap
    axis: int  # of the tap at its module
    tensors: list[tuple[Tensor, Tensor | None]] = field(default_factory=list[tuple[Tensor, Tensor | None]])
    activations: set[Activation | None] = field(default_factory=set[Activation | None])

    def by_entry(self, runs: int | None) -> Tensor | None:
        """(runs, n, entries) over all calls, one run for a network that is no stack; None if the tap's module never ran."""
        leading = 0 if runs is None else 1
        place = self.axis if self.axis < 0 else self.axis + leading
        found = [(features(tensor, place, leading=leading), real) for tensor, real in self.tensors if tensor.numel()]
        matrices = [h if real is None else h[real.flatten()] for h, real in found if real is None or bool(real.any())]
        if not matrices:
            return None
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=-2)
        return joined if leading else joined.unsqueeze(0)


@dataclass
class Seen:
    """One or more runs: what passed each tap, and the gradient of each parameter, by name (None: it has none)."""

    sights: Mapping[Tap, Sight]
    gradients: Mapping[str, Tensor | None]


def watch(
    model: nn.Module,
    examples: Sequence[Any],
    taps: Iterable[Tap],
    loss: Loss | None,
    mask: Mask | Sequence[Tensor] | None = None,
) -> Seen:
    """Run the model, as it is, on each example; `mask` as a method takes it, or one for each.

    Gradients are those of `loss(output)`, without one those that `.grad` holds. Raises `ValueError` if a tap shows no tensor, or
    the loss is not one number.
    """
    names, root = Names(model), unwrapped(model)
    forwards = Forwards(root, None if isinstance(mask, Sequence) and not isinstance(mask, str) else mask)
    sights = {tap: Sight(tap, tap.axis_at(names.module(tap.module, "diagnose"))) for tap in taps}
    gradients = {name: parameter.grad for name, parameter in names.parameters.items()}
    with (
        undisturbed(model),
        torch.set_grad_enabled(loss is not None),
        Activations() as activations,
        ExitStack() as stack,
    ):
        for tap, sight in sights.items():
            _attach(stack, names, tap, _Eye(sight, activations, names.module(tap.module, "diagnose"), forwards))
        for number, example in enumerate(examples):
            args, kwargs = arguments(example)
            if forwards.masked or mask is None:
                forwards.begin(args, kwargs)
            else:
                forwards.start(cast(Sequence[Tensor], mask)[number])
            output = root(*args, **kwargs)
            forwards.end()
            if loss is not None:
                gradients = _gradients(loss(output), names.parameters)
    return Seen(sights, gradients)


def _gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """Of every parameter, beside its `.grad`, which stays."""
    if loss.numel() != 1:
        raise ValueError(f"diagnose: loss(output) must be one number, got a tensor of shape {tuple(loss.shape)}")
    trained = {name: each for name, each in parameters.items() if each.requires_grad}
    found = torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True)
    return {**dict.fromkeys(parameters), **dict(zip(trained, cast(Sequence[Tensor | None], found), strict=True))}


class _Eye(Reader):
    """Keeps what passes a tap."""

    def __init__(self, sight: Sight, activations: Activations, module: nn.Module, forwards: Forwards) -> None:
        super().__init__(sight.tap, module, None, runs=None)
        self.sight, self.activations, self.forwards = sight, activations, forwards
        forwards.readers.append(self)

    def observe(self, values: Any, *, packed: bool = False) -> None:
        packed = isinstance(values, PackedSequence)
        tensor = values.data if packed else values
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"diagnose: the {self.sight.tap} (argument {self.sight.tap.argument!r}) is a {type(values).__name__}, not a "
                f"tensor: name the one to read with Tap(argument=...)"
            )
        self.sight.tap.check_dims(tensor.shape)
        self.sight.activations.add(self.activations.of(tensor))
        positions = tensor.movedim(self.axis, -1).shape[:-1] if -tensor.dim() <= self.axis < tensor.dim() else ()
        real = None if packed or self.forwards is None else self.forwards.real(self, positions)
        self.sight.tensors.append((tensor.detach().clone(), real))  # a copy: the model may go on to write in it


def _attach(stack: ExitStack, names: Names, tap: Tap, eye: _Eye) -> None:
    """Watch a tap until the stack is closed."""
    module, forwards = eye.module, cast(Forwards, eye.forwards)
    if tap.at == "operand":
        eye.parameter = names.parameter(cast(str, tap.parameter), "diagnose")
        watches: list[WatchProducts | None] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            watches.append(WatchProducts(eye).__enter__() if forwards.shows(eye, True) else None)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            watch = watches.pop()
            if watch is not None:
                watch.__exit__(None, None, None)

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)
    elif tap.at == "input":

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if forwards.shows(eye, True):
                eye.observe(_given(tap, args, kwargs))

        stack.callback(module.register_forward_pre_hook(given, with_kwargs=True).remove)
    else:

        def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not forwards.shows(eye, True):
                return
            several = isinstance(output, Mapping) or (
                isinstance(output, tuple) and not isinstance(output, PackedSequence)
            )
            eye.observe(cast(Any, output)[tap.argument] if several else output)

        stack.callback(module.register_forward_hook(returned).remove)


def _given(tap: Tap, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that the tap names."""
    if isinstance(tap.argument, int) and tap.argument < len(args):
        return args[tap.argument]
    if tap.argument in kwargs:
        return kwargs[tap.argument]
    if tap.argument == 0 and len(kwargs) == 1:
        return next(iter(kwargs.values()))
    raise ValueError(f"diagnose: '{tap.module}' was called without argument {tap.argument!r}, where activity is read")
