"""One network learns one task: the training loss of each step, in training mode.

Runs are paired: under the same seed all networks see the same examples in the same order, and draw the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.process import other_random_states, random_state
from pliant.diagnostics.probe.comparison import Array
from pliant.diagnostics.probe.tasks import Task


def curve(
    network: nn.Module, optimizers: Iterable[Optimizer], task: Task, *, steps: int, batch_size: int, seed: int
) -> Array:
    """Losses before each of the steps, (steps,); infinite from where one is not finite. Changes the network."""
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
    return losses


def first_loss(network: nn.Module, task: Task, *, batch_size: int, seed: int) -> float:
    """The mean loss over all examples before any step, in training mode."""
    found: list[float] = []
    devices = {each.device for each in network.parameters() if each.device.type == "cuda"}
    with random_state(devices=devices), other_random_states(), torch.no_grad():
        torch.manual_seed(seed)
        for first in range(0, task.examples.count, batch_size):
            rows = torch.arange(first, min(first + batch_size, task.examples.count))
            batch = task.examples.at(rows)
            found += [float(task.loss(called(network, batch.inputs), batch.targets))] * len(rows)
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
