"""The examples that a probe learns from: inputs of the forward and targets of the loss, joined along one first axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pliant.base.choices import shown
from pliant.diagnostics.batches import batches_of
from pliant.diagnostics.single_examples import LABELS


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, nested tensors with one first axis; `inner` names the targets that are among the inputs."""

    inputs: Any
    targets: Any = None
    inner: str | None = None

    @property
    def count(self) -> int:
        return len(self.tensors[0])

    @property
    def tensors(self) -> list[Tensor]:
        return [each for each in tree_leaves((self.inputs, self.targets)) if isinstance(each, Tensor)]

    @property
    def has_targets(self) -> bool:
        return self.targets is not None or self.inner is not None

    def at(self, rows: Tensor) -> Examples:
        """Those in these rows."""

        def taken(each: Tensor) -> Tensor:
            return each[rows.to(each.device)]

        return self._mapped(taken)

    def to(self, device: torch.device) -> Examples:
        """Copies there."""

        def moved(each: Tensor) -> Tensor:
            return each.detach().clone().to(device)

        return self._mapped(moved)

    def with_shuffled_targets(self, order: Tensor) -> Examples:
        """Each example with the targets of another."""

        def shuffled(each: Any) -> Any:
            return each[order.to(each.device)] if isinstance(each, Tensor) else each

        if self.inner is not None:
            return replace(self, inputs={**self.inputs, self.inner: shuffled(self.inputs[self.inner])})
        return replace(self, targets=tree_map(shuffled, self.targets))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Examples:
        def each_of(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, inputs=tree_map(each_of, self.inputs), targets=tree_map(each_of, self.targets))


def examples(model: nn.Module, x: Any, y: Any, most: int) -> Examples:
    """At most the first `most` of what `pliant.diagnose` takes as `x` and `y`.

    Raises `TypeError` or `ValueError` for no data, unequal lengths, or a pair (x, y) in the place of x.
    """
    batches = batches_of(model, x, y, most)
    targets = [None] * len(batches.examples) if batches.targets is None else batches.targets
    found = _joined([_checked(each, target) for each, target in zip(batches.examples, targets, strict=True)])
    return found.at(torch.arange(min(most, found.count)))


def _checked(inputs: Any, targets: Any) -> Examples:
    inner = None
    if isinstance(inputs, Mapping) and targets is None:
        inner = next((name for name in LABELS if isinstance(inputs.get(name), Tensor)), None)  # pyright: ignore[reportUnknownMemberType]
    if targets is not None and not any(isinstance(each, Tensor) for each in tree_leaves(targets)):
        raise TypeError(f"y must be a tensor, or hold tensors, got {shown(targets)}")
    batch = Examples(inputs, targets, inner)
    lengths = {each.shape[0] if each.dim() else None for each in batch.tensors}
    if not lengths or None in lengths:
        raise ValueError("x or y holds a tensor without an axis of examples, or no tensor at all")
    if len(lengths) > 1:
        counts = " and ".join(str(each) for each in sorted(each for each in lengths if each is not None))
        raise ValueError(f"x and y hold tensors of {counts} examples: all have the same first axis")
    return batch


def _joined(batches: list[Examples]) -> Examples:
    if len(batches) == 1:
        return batches[0]

    def joined(*parts: Any) -> Any:
        if not isinstance(parts[0], Tensor):
            return parts[0]
        if len({each.shape[1:] for each in parts}) > 1:
            raise ValueError(
                f"x holds batches of unequal shapes, {tuple(parts[0].shape)} and others: pad them to one length"
            )
        return torch.cat(parts)

    first, rest = batches[0], batches[1:]
    inputs = tree_map(joined, first.inputs, *(each.inputs for each in rest))
    targets = tree_map(joined, first.targets, *(each.targets for each in rest))
    return replace(first, inputs=inputs, targets=targets)
