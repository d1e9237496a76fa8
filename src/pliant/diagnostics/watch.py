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
from pliant.units.bound import Names
from pliant.units.hooks import WatchProducts
from pliant.units.map import Tap
from pliant.units.models import arguments, unwrapped

Loss = Callable[[Any], Tensor]


@dataclass
class Sight:
    """What passed a tap: the tensors of all calls, and which activation functions wrote them."""

    tap: Tap
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    activations: set[Activation | None] = field(default_factory=set[Activation | None])

    def by_entry(self, runs: int | None) -> Tensor | None:
        """(runs, n, entries) over all calls, one run for a network that is no stack; None if the tap's module never ran."""
        axis, leading = self.tap.axis, 0 if runs is None else 1
        place = axis if axis < 0 else axis + leading
        matrices = [features(tensor, place, leading=leading) for tensor in self.tensors if tensor.numel()]
        if not matrices:
            return None
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=-2)
        return joined if leading else joined.unsqueeze(0)


@dataclass
class Seen:
    """One or more runs: what passed each tap, and the gradient of each parameter, by name (None: it has none)."""

    sights: Mapping[Tap, Sight]
    gradients: Mapping[str, Tensor | None]


def watch(model: nn.Module, examples: Sequence[Any], taps: Iterable[Tap], loss: Loss | None) -> Seen:
    """Run the model, as it is, on each example.

    Gradients are those of `loss(output)`, without one those that `.grad` holds. Raises `ValueError` if a tap shows no tensor, or
    the loss is not one number.
    """
    names, sights = Names(model), {tap: Sight(tap) for tap in taps}
    gradients = {name: parameter.grad for name, parameter in names.parameters.items()}
    with (
        undisturbed(model),
        torch.set_grad_enabled(loss is not None),
        Activations() as activations,
        ExitStack() as stack,
    ):
        for tap, sight in sights.items():
            _attach(stack, names, tap, _Eye(sight, activations))
        for example in examples:
            args, kwargs = arguments(example)
            output = unwrapped(model)(*args, **kwargs)
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


class _Eye:
    """Keeps what passes a tap. Has what `WatchProducts` needs of a reader."""

    def __init__(self, sight: Sight, activations: Activations) -> None:
        self.sight, self.activations = sight, activations
        self.parameter: Tensor | None = None

    def observe(self, values: Any) -> None:
        tensor = values.data if isinstance(values, PackedSequence) else values
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"diagnose: the {self.sight.tap} (argument {self.sight.tap.argument!r}) is a {type(values).__name__}, not a "
                f"tensor: name the one to read with Tap(argument=...)"
            )
        self.sight.activations.add(self.activations.of(tensor))
        self.sight.tensors.append(tensor.detach().clone())  # a copy: the model may go on to write in it


def _attach(stack: ExitStack, names: Names, tap: Tap, eye: _Eye) -> None:
    """Watch a tap until the stack is closed."""
    module = names.module(tap.module, "diagnose")
    if tap.at == "operand":
        eye.parameter = names.parameter(cast(str, tap.parameter), "diagnose")
        watches: list[WatchProducts] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            watches.append(WatchProducts(cast(Any, eye)).__enter__())

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            watches.pop().__exit__(None, None, None)

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)
    elif tap.at == "input":

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            eye.observe(_given(tap, args, kwargs))

        stack.callback(module.register_forward_pre_hook(given, with_kwargs=True).remove)
    else:

        def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
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
