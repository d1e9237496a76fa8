"""Which steps of an optimizer were taken. A step that a GradScaler skipped counts for no method.

A GradScaler skips a step whose gradients overflowed. Most optimizers are then not called, and none of their hooks runs. A fused
optimizer is called nevertheless, and its kernel reads `optimizer.found_inf` on the device. (A step in which no parameter has a
gradient counts: it was asked for.)

A flag on the CPU is read at once. Reading one on CUDA would make the host wait for the device at every step, so there the host
learns of a step when the next one ends, from a copy that was started in time (`Pending`).
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

Outcome: TypeAlias = bool | Tensor  # whether a step was taken; a boolean scalar where only the device knows


def will_be_taken(optimizer: Optimizer) -> Outcome:
    """Whether a GradScaler lets a step of `optimizer` happen that has begun, or has just ended."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return True
    flag = found_inf.reshape(()) == 0
    return bool(flag) if known_at_once(flag) else flag


def known_at_once(flag: Tensor) -> bool:
    """Whether the host reads it without waiting for a queue of work, or has no way but to wait."""
    return flag.device.type != "cuda"


class Pending:
    """A boolean scalar on its way to the host, which waits for it no sooner than it must."""

    def __init__(self, flag: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if flag.is_cuda:
            with torch.cuda.device(flag.device):
                self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
                self._host.copy_(flag, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()
        else:
            self._host = flag.clone()

    def wait(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host)


class Clock:
    """What became of an optimizer's steps since they were last asked about. `after` is called when one ends.

    Who steps by hand after steps that no hook saw (a replayed CUDA graph, an optimizer that is none of PyTorch's) is taken at
    their word; once hooks do see steps, a call that no step came before is no step.
    """

    def __init__(self) -> None:
        self._sees = False  # hooks run
        self._replayed = False  # a CUDA graph holds a step: replaying it runs no hook
        self._outcome: Outcome = False

    def after(self, optimizer: Optimizer) -> None:
        self._sees = True
        self._outcome = _either(self._outcome, will_be_taken(optimizer))

    def recorded(self) -> None:
        """A step was recorded, to be replayed."""
        self._replayed = True

    def ask(self) -> Outcome:
        if self._replayed or not self._sees:
            return True
        outcome, self._outcome = self._outcome, False
        return outcome


def _either(first: Outcome, second: Outcome) -> Outcome:
    if first is False or second is False:
        return second if first is False else first
    return first | second if isinstance(first, Tensor) and isinstance(second, Tensor) else True


Key = TypeVar("Key")
Item = TypeVar("Item")


class LateSteps(Generic[Key, Item]):
    """Steps of which only the device knows so far whether they were taken, and what is owed to those that were.

    For each key, such as an optimizer, the items that made such a step.
    """

    def __init__(self) -> None:
        self._pending: dict[Key, tuple[Pending, list[Item]]] = {}
        self._owed: dict[Key, list[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._pending or self._owed)

    def add(self, key: Key, taken: Tensor, items: list[Item]) -> None:
        """Items made a step of which `taken`, a boolean scalar, will say whether it was one."""
        self._pending[key] = Pending(taken), items

    def settle(self) -> list[tuple[Key, list[Item]]]:
        """Wait until it is known of all, and return what made a step that was taken; it is owed from here on."""
        found: list[tuple[Key, list[Item]]] = []
        while self._pending:
            key, (taken, items) = self._pending.popitem()
            if taken.wait():
                self.owe(key, items)
                found.append((key, items))
        return found

    def owe(self, key: Key, items: list[Item]) -> None:
        """From here on something is owed to them too."""
        if items:
            self._owed.setdefault(key, []).extend(items)

    def pop(self, key: Key) -> list[Item]:
        """What is owed, which is then owed no more."""
        return self._owed.pop(key, [])

    @property
    def owed(self) -> dict[Key, list[Item]]:
        return self._owed

    def clear(self, owed: dict[Key, list[Item]] | None = None) -> None:
        """Nothing is pending, and what is given is owed."""
        self._pending, self._owed = {}, owed or {}
