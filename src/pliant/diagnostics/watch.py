"""The activity of hidden units in a forward, recorded at the taps of reset methods.

A method keeps sums of activity while the network trains; here the activity itself is kept, in any mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.diagnostics.activations import Activation, Activations
from pliant.diagnostics.features import features
from pliant.units.bound import NamedModel
from pliant.units.forwards import Forwards, Mask
from pliant.units.groups import Tap
from pliant.units.hooks import always, attach
from pliant.units.models import arguments, unwrapped
from pliant.units.undisturbed import undisturbed

Loss = Callable[[Any], Tensor]


@dataclass
class TapRecord:
    """The tensors of all calls at a tap, their real positions (None: all), and the activation functions that computed them."""

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
class ForwardRecord:
    """One or more forwards: the record of each tap, and the gradient of each parameter, by name (None: it has none)."""

    records: Mapping[Tap, TapRecord]
    gradients: Mapping[str, Tensor | None]


def watch(
    model: nn.Module,
    examples: Sequence[Any],
    taps: Iterable[Tap],
    loss: Loss | None,
    mask: Mask | Sequence[Tensor] | None = None,
) -> ForwardRecord:
    """Run the model, as it is, on each example; `mask` as a method takes it, or one for each.

    Gradients are those of `loss(output)`, without one those that `.grad` holds. Raises `ValueError` if a tap shows no tensor, or
    the loss is not one number.
    """
    names, root = NamedModel(model), unwrapped(model)
    forwards = Forwards(root, None if isinstance(mask, Sequence) and not isinstance(mask, str) else mask)
    records = {tap: TapRecord(tap, tap.axis_at(names.module(tap.module, "diagnose"))) for tap in taps}
    gradients = {name: parameter.grad for name, parameter in names.parameters.items()}
    with (
        undisturbed(model),
        torch.set_grad_enabled(loss is not None),
        Activations() as activations,
        ExitStack() as stack,
    ):
        for record in records.values():
            stack.callback(attach(_TapRecorder(record, activations, names, forwards), always).remove)
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
    return ForwardRecord(records, gradients)


def _gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """The gradient of every parameter; `.grad` is not changed."""
    if loss.numel() != 1:
        raise ValueError(f"diagnose: loss(output) must be one number, got a tensor of shape {tuple(loss.shape)}")
    trained = {name: each for name, each in parameters.items() if each.requires_grad}
    found = torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True)
    return {**dict.fromkeys(parameters), **dict(zip(trained, cast(Sequence[Tensor | None], found), strict=True))}


class _TapRecorder:
    """Records the tensors that pass a tap."""

    def __init__(self, record: TapRecord, activations: Activations, names: NamedModel, forwards: Forwards) -> None:
        self.record, self.activations, self.forwards = record, activations, cast(Forwards | None, forwards)
        self.tap = record.tap
        self.module = names.module(self.tap.module, "diagnose")
        self.parameter: Tensor | None = (
            None if self.tap.parameter is None else names.parameter(self.tap.parameter, "diagnose")
        )
        self.calls = self.read = 0
        forwards.recorders.append(self)

    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        self.tap.check_dims(values.shape)
        self.record.activations.add(self.activations.of(values))
        axis = self.record.axis
        positions = values.movedim(axis, -1).shape[:-1] if -values.dim() <= axis < values.dim() else ()
        real = None if packed or self.forwards is None else self.forwards.real(self, positions)
        self.record.tensors.append((values.detach().clone(), real))  # a copy: the model may write to it in place
