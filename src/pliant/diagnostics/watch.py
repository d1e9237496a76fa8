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

from pliant.base.arguments import shown
from pliant.diagnostics.activations import Activation, Activations
from pliant.diagnostics.batches import size_of
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
    entered: list[Tensor | None] = field(default_factory=list[Tensor | None])
    """Moments of the pre-activations, (..., 3), of real positions, one or more for each call; None: not known."""

    def of_real(self, moments: Tensor, real: Tensor | None, forwards: Forwards | None) -> Tensor | None:
        """Moments of real positions, where they lie as the mask does; None where that is not known."""
        given = None if forwards is None else forwards.mask
        if real is None:
            return moments if given is None else None
        for mask in (real, given):
            if isinstance(mask, Tensor) and mask.shape == moments.shape[:-1]:
                return moments[mask]
        return None

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
    """One or more forwards: the record of each tap, and with a loss that and the gradient of each parameter, by name (None: it
    has none)."""

    records: Mapping[Tap, TapRecord]
    loss: float | None
    gradients: Mapping[str, Tensor | None]


def watch(
    model: nn.Module,
    examples: Sequence[Any],
    taps: Iterable[Tap],
    losses: Sequence[Loss] | None,
    mask: Mask | Sequence[Tensor] | None = None,
    prefix: str = "",
) -> ForwardRecord:
    """Run the model, as it is, on each example; `mask` as a method takes it, or one for each; `prefix` stands before its names in
    taps.

    The loss is that of each batch's output, their mean by the number of examples; without losses there are no gradients, whatever
    `.grad` holds. Raises `ValueError` if a tap shows no tensor, or a loss is not one number.
    """
    names, root = NamedModel(model, prefix=prefix), unwrapped(model)
    forwards = Forwards(root, None if isinstance(mask, Sequence) and not isinstance(mask, str) else mask)
    records = {tap: TapRecord(tap, tap.axis_at(names.module(tap.module, "diagnose"))) for tap in taps}
    gradients: dict[str, Tensor | None] = dict.fromkeys(names.parameters)
    total, sizes = None if losses is None else 0.0, [size_of(example) for example in examples]
    with (
        undisturbed(model),
        torch.set_grad_enabled(losses is not None),
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
            if losses is not None and total is not None:
                found, weight = one_number(losses[number](output)), sizes[number] / sum(sizes)
                total += float(found.detach()) * weight
                gradients = _sum(gradients, _gradients(found, names.parameters), weight)
    return ForwardRecord(records, total, gradients)


def one_number(loss: Tensor) -> Tensor:
    """A loss as a scalar. Raises `ValueError` if it is more, or no tensor that a gradient could come from."""
    if not isinstance(cast(object, loss), Tensor):
        raise ValueError(f"diagnose: loss must give a tensor of one number, got {shown(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"diagnose: loss(output) must be one number, got a tensor of shape {tuple(loss.shape)}")
    return loss.sum()


def _sum(
    before: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None], weight: float
) -> dict[str, Tensor | None]:
    """`before` plus `weight` times `found`."""
    if weight == 1.0:
        return dict(found)

    def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if second is None:
            return first
        return second * weight if first is None else first + second * weight

    return {name: added(before[name], found[name]) for name in before}


def _gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """The gradient of every parameter; `.grad` is not changed."""
    trained = {name: each for name, each in parameters.items() if each.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
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
        self.record.entered.extend(
            self.record.of_real(each, real, self.forwards) for each in self.activations.before(values)
        )
