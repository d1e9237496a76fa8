"""What a model is shown: one batch, a list of batches, or the first examples of a DataLoader, a dataset or a list of single
examples, with or without targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from pliant.base.arguments import called_with, is_a, shown
from pliant.base.process import other_random_states, random_state
from pliant.diagnostics.single_examples import loader_of, names_taken, takes
from pliant.units.models import arguments, check_examples, tensors_in, unwrapped


@dataclass(frozen=True)
class Batches:
    """Examples as `pliant.units.models.arguments` takes them, and the target of each batch, where there are any."""

    examples: list[Any]
    targets: list[Any] | None
    several: bool  # given as a list, or from a loader

    def losses(self, loss: Callable[..., Tensor] | None) -> list[Callable[[Any], Tensor]] | None:
        """The loss of each batch's output."""
        if loss is None:
            return None
        if self.targets is None:
            try:
                called_with("loss", loss, "the model's output")
            except TypeError as error:
                raise TypeError(
                    f"{error}; where it takes a target too, give that: diagnose(model, x, y, loss=...)"
                ) from None
            return [loss] * len(self.examples)
        called_with("loss", loss, "the model's output", "the target")
        return [partial(_with_target, loss, target) for target in self.targets]


def _with_target(loss: Callable[..., Tensor], target: Any, output: Any) -> Tensor:
    return loss(output, target)


def batches_of(model: nn.Module, x: Any, y: Any, count: int) -> Batches:
    """What was given as `x` and `y`; of a DataLoader the first `count` examples.

    Raises `TypeError` or `ValueError` for an empty list, a target for each of another number of batches, a loader's batch of
    unknown parts, a tuple that the forward does not take.
    """
    if is_a(x, (str, bytes, PathLike)):
        raise TypeError(f"x is {shown(x)}: give inputs of the model; a checkpoint's file goes to state=")
    if _is_loader(x):
        if y is not None:
            raise ValueError("y is in the batches (x, y) of a DataLoader: leave it out")
        return _of_loader(model, x, count)
    singles = loader_of(model, x, y, count)
    if singles is not None:
        return replace(_of_loader(model, singles, count), several=False)
    several = isinstance(x, list)
    examples = cast(list[Any], x) if several else [x]
    if not examples:
        raise ValueError("diagnose: x is an empty list; give at least one batch")
    _refuse_pairs(model, examples, several=several)
    check_examples("x", x)
    if y is None:
        return Batches(examples, None, several)
    targets = cast(list[Any], y) if several and is_a(y, list) else [y]
    if len(targets) != len(examples):
        raise ValueError(
            f"y holds {len(targets)} targets for the {len(examples)} batches of x: give a list, one for each"
        )
    return Batches(examples, targets, several)


def _refuse_pairs(model: nn.Module, examples: Sequence[Any], *, several: bool) -> None:
    for each in examples:
        if isinstance(each, tuple) and not takes(model, cast(tuple[Any, ...], each)):
            name = type(unwrapped(model)).__name__
            of = f"a tuple of {len(cast(tuple[Any, ...], each))}"
            what = f"x holds {of}, the arguments of a" if several else f"x is {of}, the arguments of the"
            instead = ", or the DataLoader or dataset itself" if several else ""
            raise ValueError(
                f"{what} forward, which {name} does not take: give inputs and targets one after the other, (model, x, y){instead}"
            )


def _is_loader(x: Any) -> bool:
    """A DataLoader, or another source of batches that can be read again and again."""
    if is_a(x, (Tensor, list, tuple, Mapping, str, bytes, Dataset)) or not is_a(x, Iterable):
        return False
    if is_a(x, Iterator):
        raise TypeError(
            f"x is a {type(x).__name__}, which is used up by being read: give the DataLoader itself, or a batch"
        )
    return hasattr(x, "dataset") or hasattr(x, "batch_size")


def _of_loader(model: nn.Module, loader: Any, count: int) -> Batches:
    examples: list[Any] = []
    targets: list[Any] = []
    held = 0
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with _untouched(loader):
        for batch in loader:
            example, target = _parts(model, _mapped(batch, lambda tensor: tensor.to(device)))
            size = size_of(example)
            if held + size > count:
                example, target = part(example, 0, count - held), part(target, 0, count - held)
            examples.append(example)
            targets.append(target)
            held += size
            if held >= count:
                break
    if not examples:
        raise ValueError("x is a DataLoader without a batch: give one with examples")
    check_examples("x", examples)
    return Batches(examples, None if any(each is None for each in targets) else targets, True)


def _parts(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """What the forward takes of a loader's batch, and the target, if it has one."""
    if is_a(batch, Mapping):
        return _taken(model, batch), None
    if not is_a(batch, (list, tuple)):
        return batch, None
    parts = cast(Sequence[Any], batch)
    if len(parts) == 1:
        return parts[0], None
    if len(parts) == 2:
        return parts[0], parts[1]
    raise ValueError(
        f"x: its batches have {len(parts)} parts, and which of them the model takes is not known: give x as one "
        f"batch, a tuple of the forward's arguments, or a list of those"
    )


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the forward takes by name."""
    taken = {name: batch[name] for name in names_taken(model, list(batch))}
    if not taken:
        parameters = inspect.signature(unwrapped(model).forward).parameters
        raise ValueError(
            f"x: its batches are {', '.join(map(str, batch))}, and the forward of {type(unwrapped(model)).__name__} "
            f"takes {', '.join(parameters)}: give x as one batch"
        )
    return taken


@contextmanager
def _untouched(loader: Any) -> Generator[None]:
    """The random states that reading a loader draws from are as before afterwards."""
    samplers = [
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    ]
    found = [getattr(each, "generator", None) for each in samplers]
    generators = {id(each): each for each in found if isinstance(each, torch.Generator)}
    with ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(other_random_states())
        for each in generators.values():
            stack.callback(each.set_state, each.get_state())
        yield


def size_of(example: Any) -> int:
    """The number of examples: the length of the first tensor's first axis."""
    return next((len(each) for each in tensors_in(arguments(example)) if each.dim()), 1)


def part(example: Any, start: int, stop: int) -> Any:
    """Examples `start` to `stop` of a batch: of every tensor that has as many entries along its first axis as the batch."""
    size = size_of(example)
    return _mapped(example, lambda tensor: tensor[start:stop] if tensor.dim() and len(tensor) == size else tensor)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor changed, in nested containers."""

    def changed(leaf: object) -> object:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(changed, value)
