"""Run a model without changing it: parameters, buffers, gradients, modes, hooks and the random state stay as they were."""

# pyright: reportPrivateUsage=false
# Buffers by name and an operation's schema have no public name in PyTorch.

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.base.process import random_state, visible_kernels
from pliant.units.hooks import recording_paused


@contextmanager
def undisturbed(model: nn.Module, written: Written | None = None) -> Generator[None]:
    """Restores the model afterwards, and keeps reset methods from recording what runs inside.

    `written` is the caller's dispatch mode, if it has one that copies parameters before they are written; else one is started.

    Inside, compiled models run eagerly and attention runs through its modules, not through a fused kernel that hides the
    products. The modes (training, evaluation) are the model's own. The model must not be used in another thread meanwhile; other
    models may, see `pliant.base.process`.
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    contents = [(buffer, buffer.clone()) for buffer in model.buffers()]
    attributes = [(module, key, value) for module in model.modules() for key, value in _plain_tensors(module)]
    devices = {each.device for each in model.parameters() if each.device.type == "cuda"}
    modes = {module: module.training for module in model.modules()}
    watch = _Watch(model) if written is None else None
    kept = written or watch
    try:
        with random_state(devices=devices), visible_kernels(model), recording_paused(), watch or nullcontext():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, names in buffers:
            module._buffers.clear()
            module._buffers.update(names)
        for module, key, value in attributes:
            vars(module)[key] = value
        with torch.no_grad():
            for tensor, value in [*contents, *(kept.before if kept else ())]:
                tensor.copy_(value)


def _plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Attributes that are neither parameters nor buffers: a weight that a hook computes, a state between calls."""
    return [(key, value) for key, value in vars(module).items() if isinstance(value, Tensor)]


class Written(Protocol):
    """Holds copies of tensors from before they were written."""

    before: list[tuple[Tensor, Tensor]]


class _Watch(TorchDispatchMode):
    """Copies each parameter before it is written."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.before: list[tuple[Tensor, Tensor]] = []
        self._parameters: dict[int, list[Tensor]] = {}
        for parameter in model.parameters():
            self._parameters.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and args and isinstance(args[0], Tensor) and args[0].layout is torch.strided:
            for parameter in self._parameters.pop(args[0].untyped_storage().data_ptr(), []):
                self.before.append((parameter, parameter.detach().clone()))
        return func(*args, **(kwargs or {}))
