"""One executed operation, the argument of a rule."""

# pyright: reportPrivateUsage=false
# An operation's schema has no public name in PyTorch.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pliant.units.models import operation_name, tensors_in
from pliant.units.trace.record import TraceRecord
from pliant.units.trace.shadows import Arrays


@dataclass
class Call:
    """An ATen operation with its arguments and result."""

    record: TraceRecord
    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    followed: bool = False  # the rule has seen to where sources go

    @cached_property
    def name(self) -> str:
        """Without namespace, overload and the underscore of in-place forms."""
        name = operation_name(self.op)
        return name if name.startswith("__") else name.rstrip("_")

    @property
    def overload(self) -> str:
        return self.op._overloadname

    @cached_property
    def every_tensor(self) -> list[Tensor]:
        """Operands and results, also sparse ones, which have no storage for labels."""
        return list(tensors_in((self.args, self.kwargs, self.result)))

    @cached_property
    def inputs(self) -> list[Tensor]:
        return [tensor for tensor in tensors_in((self.args, self.kwargs)) if tensor.layout is torch.strided]

    @cached_property
    def outputs(self) -> list[Tensor]:
        return [tensor for tensor in tensors_in(self.result) if tensor.layout is torch.strided]

    @property
    def output(self) -> Tensor:
        return self.outputs[0]

    @property
    def where(self) -> str:
        return self.record.labels.now

    @property
    def in_place(self) -> bool:
        return self.op._schema.is_mutable

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by the name it has in the schema, given or not."""
        for position, argument in enumerate(self.op._schema.arguments):
            if argument.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, argument.default_value if argument.has_default_value() else default)
        return default

    def write(self, arrays: Arrays) -> None:
        """Labels of every output."""
        for output in self.outputs:
            self.record.memory.write(output, arrays)

    def give_up(self, reason: str) -> None:
        """Leave alone the units of all operands, which can no longer be told apart, and the parameters among them."""
        self.record.unexplained(self.inputs)
        for tensor in self.inputs:
            self.record.kill(self.record.live(tensor), reason)
        self.write({})

    def lose_others(self, *followed: Tensor) -> None:
        """Only the units of `followed` go on; a mask or an affine that depends on others would hide them."""
        for tensor in self.inputs:
            if not any(tensor is other for other in followed):
                self.record.kill(self.record.live(tensor), f"no rule for this operand of {self.where}")

    def is_computed(self, tensor: Tensor) -> bool:
        """Whether the tensor is a function of parameters alone."""
        shadow = self.record.memory.shadow(tensor)
        return bool(shadow.computed_from) and not shadow.data and not self.record.live(tensor)
