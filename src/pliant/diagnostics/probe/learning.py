"""One network learns one task: the training loss of each step, in training mode.

Runs are paired: under the same seed all networks see the same examples in the same order, and draw the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.process import other_random_states, random_state
from pliant.diagnostics.probe.comparison import Array
from pliant.diagnostics.probe.data import Examples
from pliant.diagnostics.probe.tasks import Task


class Learned(NamedTuple):
    losses: Array  # before each of the steps, (steps,); infinite from where one is not finite
    held_out: float  # afterwards, in evaluation mode; nan where nothing is held out


def learned(
    network: nn.Module, optimizers: Iterable[Optimizer], task: Task, *, steps: int, batch_size: int, seed: int
) -> Learned:
    """Train the network, in the mode that it is in."""
    losses = np.full(steps, np.inf)
    optimizers = list(optimizers)
    devices = {each.device for each in network.parameters() if each.device.type == "cuda"}
    with random_state(devices=devices), other_random_states(), torch.enable_grad():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (models draw from it too)
        batches = _batches(task.examples.count, batch_size, torch.Generator().manual_seed(seed))
        for step, rows in zip(range(steps), batches, strict=False):
            batch = task.examples.at(rows)
            loss: Tensor | None = None

            def closure() -> Tensor:
                nonlocal loss
                for each in optimizers:
                    each.zero_grad()
                found = task.loss(called(network, batch.inputs), batch.targets)  # noqa: B023
                found.backward()  # pyright: ignore[reportUnknownMemberType]
                if loss is None:
                    loss = found.detach()
                return found

            closure()
            first = float(loss)  # pyright: ignore[reportArgumentType]
            if not np.isfinite(first):
                break
            losses[step] = first
            for each in optimizers:
                each.step(cast(Any, closure)) if _searches(each) else each.step()
        if task.held_out is None:
            return Learned(losses, np.nan)
        network.eval()
        return Learned(losses, _mean_loss(network, task.held_out, task, batch_size))


def first_loss(network: nn.Module, task: Task, *, batch_size: int, seed: int) -> float:
    """The mean loss over all examples before any step, in training mode."""
    devices = {each.device for each in network.parameters() if each.device.type == "cuda"}
    with random_state(devices=devices), other_random_states():
        torch.manual_seed(seed)
        return _mean_loss(network, task.examples, task, batch_size)


@torch.no_grad()
def _mean_loss(network: nn.Module, examples: Examples, task: Task, batch_size: int) -> float:
    found: list[float] = []
    for first in range(0, examples.count, batch_size):
        batch = examples.at(torch.arange(first, min(first + batch_size, examples.count)))
        found += [float(task.loss(called(network, batch.inputs), batch.targets))] * batch.count
    return float(np.mean(found))


def called(network: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of batches, epoch after epoch; the last, smaller batch of an epoch is left out."""
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


def _searches(optimizer: Optimizer) -> bool:
    """Whether a step needs several forwards."""
    return isinstance(optimizer, torch.optim.LBFGS)
