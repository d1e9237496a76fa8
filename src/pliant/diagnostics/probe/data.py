"""The examples that a probe learns from: inputs of the forward, and targets of the loss, along one first axis.

x                   inputs alone
(x, y)              inputs and targets; x a tensor, a tuple (arguments of the forward) or a mapping (its keyword arguments)
{"labels": y, ...}  keyword arguments with targets among them, for a model that returns its loss, as Hugging Face's do
a DataLoader        or another iterable of any of these: the first of its batches, joined
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from pliant.base.arguments import shown

LABELS = ("labels", "label")  # of a mapping, in the words of Hugging Face


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


def examples(data: Any, most: int) -> Examples:
    """At most the first `most` of what is given. Raises `TypeError` or `ValueError` for no data, or of unequal lengths."""
    batches: list[Examples] = []
    if isinstance(data, Tensor | tuple | Mapping):
        batches = [_batch(cast(Any, data))]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        with undrawn(data):
            for batch in islice(cast(Iterable[Any], data), most):
                batches.append(_batch(list_as_tuple(batch)))
                if sum(each.count for each in batches) >= most:
                    break
    else:
        raise TypeError(f"data is a tensor, (inputs, targets), a mapping or a DataLoader, got {shown(data)}")
    if not batches or not sum(each.count for each in batches):
        raise ValueError("data holds no example: give some inputs, or (inputs, targets)")
    return _joined(batches).at(torch.arange(min(most, sum(each.count for each in batches))))


def list_as_tuple(batch: Any) -> Any:
    """A batch as loaders give it: a list of inputs and targets."""
    return tuple(cast(list[Any], batch)) if isinstance(batch, list) else batch


@contextmanager
def undrawn(data: Any) -> Generator[None]:
    """The generators of a loader are put back after it was read."""
    loader = cast(Any, data) if isinstance(data, DataLoader) else None
    sampler = getattr(loader, "sampler", None)
    held = [
        each for each in (getattr(loader, "generator", None), getattr(sampler, "generator", None)) if each is not None
    ]
    states = [(each, each.get_state()) for each in held]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _batch(data: Any) -> Examples:
    if isinstance(data, tuple):
        if len(cast(tuple[Any, ...], data)) == 1:
            return _checked(Examples(data[0]))
        if len(cast(tuple[Any, ...], data)) != 2:
            raise ValueError(
                f"data is a tuple of {len(cast(tuple[Any, ...], data))}; give (inputs, targets), with several inputs of the "
                f"forward as a tuple of their own: ((a, b), targets)"
            )
        return _checked(Examples(*cast(tuple[Any, Any], data)))
    if isinstance(data, Mapping):
        inputs = dict(cast(Mapping[str, Any], data))
        inner = next((name for name in LABELS if isinstance(inputs.get(name), Tensor)), None)
        return _checked(Examples(inputs, None, inner))
    if isinstance(data, Tensor):
        return _checked(Examples(data))
    raise TypeError(f"data holds a batch that is {shown(data)}; give tensors, (inputs, targets) or mappings")


def _checked(batch: Examples) -> Examples:
    lengths = {each.shape[0] if each.dim() else None for each in batch.tensors}
    if not lengths or None in lengths:
        raise ValueError("data holds a tensor without an axis of examples, or no tensor at all")
    if len(lengths) > 1:
        raise ValueError(
            f"data holds tensors of {' and '.join(map(str, sorted(cast(set[int], lengths))))} examples: inputs and targets have "
            f"the same first axis"
        )
    return batch


def _joined(batches: list[Examples]) -> Examples:
    if len(batches) == 1:
        return batches[0]

    def joined(*parts: Any) -> Any:
        if not isinstance(parts[0], Tensor):
            return parts[0]
        if len({each.shape[1:] for each in parts}) > 1:
            raise ValueError(
                f"data holds batches of unequal shapes, {tuple(parts[0].shape)} and others: pad them to one length"
            )
        return torch.cat(parts)

    first = batches[0]
    inputs = tree_map(joined, first.inputs, *(each.inputs for each in batches[1:]))
    targets = tree_map(joined, first.targets, *(each.targets for each in batches[1:]))
    return replace(first, inputs=inputs, targets=targets)
