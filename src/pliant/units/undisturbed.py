"""Run a model without changing it: parameters, buffers, gradients, modes, hooks, its own state and the random state stay."""

# pyright: reportPrivateUsage=false
# A storage's identity and an operation's schema have no public name in PyTorch.

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from pliant.base.dispatch import DispatchMode
from pliant.base.process import other_random_states, random_state, visible_kernels
from pliant.units.hooks import recording_paused
from pliant.units.models import is_plain, tensors_in
from pliant.units.python_state import Layout, PythonState


@contextmanager
def undisturbed(model: nn.Module, writes: Writes | None = None) -> Generator[None]:
    """Restores the model afterwards, and keeps reset methods from recording what runs inside.

    Put back are the numbers of parameters, buffers and other tensors that the model holds, also where they got another size, and
    what `PythonState` finds: a state between calls in an attribute, a list, an object of its own.

    `writes` is told of each operation by the caller's own dispatch mode, if it has one; else a mode is started.

    Inside, compiled models run eagerly and attention runs through its modules, not through a fused kernel that hides the
    products. The modes (training, evaluation) are the model's own. The model must not be used in another thread meanwhile; other
    models may, see `pliant.base.process`.
    """
    state, buffers = PythonState(model), list(model.buffers())
    held = [*model.parameters(), *state.tensors]
    layouts = [Layout(tensor) for tensor in held]
    contents = [(buffer, buffer.clone()) for buffer in buffers]  # a kernel of one's own may write them unseen
    devices = {each.device for each in model.parameters() if each.device.type == "cuda"}
    modes = {
        each: each.training for each in model.modules() if hasattr(each, "training")
    }  # a frozen scripted one has none
    watch = nullcontext() if writes is not None else WritesMode(writes := Writes())
    writes.watch(held)
    try:
        with (
            random_state(devices=devices),
            other_random_states(),
            visible_kernels(model),
            recording_paused(),
            watch,
        ):
            yield
    finally:
        state.restore()
        for module, training in modes.items():
            if module.training is not training:
                module.training = training
        for layout in layouts:
            layout.restore()
        with torch.no_grad():
            for tensor, value in [*contents, *writes.before]:
                tensor.data.copy_(value)  # no new version: a backward pass through an earlier forward stays valid


class Writes:
    """Copies of tensors from before they were written."""

    def __init__(self) -> None:
        self.before: list[tuple[Tensor, Tensor]] = []
        self._watched: dict[int, list[Tensor]] = {}

    def watch(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if is_plain(tensor):
                self._watched.setdefault(_memory(tensor), []).append(tensor)

    def note(self, op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """To be called before the operation runs."""
        for written in _written(op, args, kwargs):
            if is_plain(written):
                for tensor in self._watched.pop(_memory(written), []):
                    self.before.append((tensor, tensor.detach().clone()))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # an empty tensor has no address


def _written(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The operands that an operation writes, by its schema; kernels of norms write running statistics without saying so."""
    for position, argument in enumerate(op._schema.arguments):
        said = argument.alias_info is not None and argument.alias_info.is_write
        if said or argument.name.startswith("running_"):
            yield from tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))


class WritesMode(DispatchMode):
    """Notes every operation."""

    def __init__(self, writes: Writes) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.writes = writes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.writes.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
