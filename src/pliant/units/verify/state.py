"""The state that a forward changes, restored after each forward of many.

    tensors     buffers, plain tensors in attributes and containers; also parameters that a forward writes (`max_norm`)
    the rest    `PythonState`

Writes between two forwards, by the verifier, stay.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.units.python_state import Layout, PythonState


class ModelState:
    """Everything that can change in a model, as it is now."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.written: list[Tensor] = []  # parameters that a pass was seen to write
        self.python = PythonState(model)
        self.tensors = self.python.tensors
        self.kept = [_kept(tensor) for tensor in self.tensors]

    @contextmanager
    def put_back(self) -> Generator[None]:
        """Afterwards all is as it was on entry, and Python's part as it was at construction."""
        self.kept = [
            each if each[1] == _version(tensor) else _kept(tensor)
            for tensor, each in zip(self.tensors, self.kept, strict=True)
        ]
        layouts = [Layout(tensor) for tensor in self.tensors]
        marks = [mark(parameter) for parameter in self.parameters]
        before = [(parameter, parameter.detach().clone()) for parameter in self.written]
        try:
            yield
        finally:
            self.python.restore()
            for layout in layouts:
                layout.restore()
            moved = zip(self.parameters, marks, strict=True)
            new = [parameter for parameter, before_it in moved if mark(parameter) != before_it]
            with torch.no_grad():
                for tensor, (value, version) in zip(self.tensors, self.kept, strict=True):
                    if _version(tensor) != version or not _equal(tensor, value):  # `.data` has no version
                        tensor.copy_(value)
                for parameter, value in before:
                    parameter.copy_(value)
            self.kept = [(value, _version(tensor)) for tensor, (value, _) in zip(self.tensors, self.kept, strict=True)]
            known = {id(parameter) for parameter in self.written}
            self.written += [parameter for parameter in new if id(parameter) not in known]


def mark(tensor: Tensor) -> tuple[Any, ...]:
    """Differs once a tensor was written: its version, and some of its entries, as writes to `.data` keep the version."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    step = max(size // 64, 1)
    some = tensor.detach().as_strided((size // step,), (step,), 0)
    return tensor.untyped_storage().data_ptr(), _version(tensor), *cast(list[Any], some.tolist())


def _version(tensor: Tensor) -> int:
    return tensor._version  # pyright: ignore[reportPrivateUsage]  (it has no public name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.layout is not torch.strided or torch.equal(a, b)  # sparse tensors cannot be compared


def _kept(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach().clone(), _version(tensor)
