"""Hare and tortoise: a slow average follows the network, which at times starts over from it.

    tortoise <- μ tortoise + (1 - μ) hare        after every step; the hare is the network that trains
    hare <- tortoise                             every `period` steps

μ is `decay_rate`. The tortoise is what is evaluated: `tortoise()`. Buffers of real numbers, such as a batch norm's statistics,
are averaged and put back with the parameters. It aims at lost generalization; it revives no dead unit.

Source: Lee et al., ICML 2024 (arXiv 2406.02596), and the released code, which averages the buffers too; μ 0.999 and 10 epochs in
FIRE's baseline. The optimizer's state stays as it is, as there. In half precision the average is kept in single. Of several
ranks, rank 0's buffers count, as in DistributedDataParallel itself, which hands them on before each forward. The hare may
become the tortoise in the middle of a burst of large gradients: `pliant.reset_optimizer` forgets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pliant.base.arguments import number
from pliant.base.saving import fill
from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.whole_parameters import Place
from pliant.units.models import unwrapped


class HareAndTortoise(AfterStep):
    """Average the parameters of `model`, and set them to their average every `period` optimizer steps, or when `apply()` says so.

    Args:
        model, optimizer: the network and what steps it, or several.
        decay_rate: μ, in [0, 1).
        period: optimizer steps, or None; also `parameters`, `attach` and the rest of `pliant.engine.after_step.AfterStep`; it
            draws nothing. Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> slow = HareAndTortoise(model, optimizer, decay_rate=0.75, period=2)
    >>> for _ in range(2):  # the hare at 3, the tortoise at 0.75 · 1 + 0.25 · 3 = 1.5; then at 5 and 0.75 · 1.5 + 0.25 · 5
    ...     optimizer.zero_grad()
    ...     (-2.0 * model.weight.sum()).backward()
    ...     optimizer.step()
    >>> model.weight.item()
    2.375
    """

    draws = "hare"

    def __init__(
        self, model: nn.Module, optimizer: Optimizers, *, decay_rate: float = 0.999, **period: Unpack[Period]
    ) -> None:
        self.decay_rate = number("decay_rate", decay_rate, 0.0, 1.0, below=True)
        if optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError("HareAndTortoise follows every step, so it needs the optimizer that makes them")
        period.setdefault("period", 10_000)
        super().__init__(model, optimizer, **period)
        floats = {name: each for name, each in unwrapped(model).named_buffers() if each.is_floating_point()}
        self._network, self._buffers = unwrapped(model), list(floats)
        self.restart()
        if self.period is None:
            with self._or_nothing_left():
                self._follow_steps()

    @torch.no_grad()
    def restart(self) -> None:
        """The tortoise is where the hare is now."""
        self._slow = {place.path: _wide(place.parameter) for place in self.places}
        self._slow_buffers = {name: _wide(self._network.get_buffer(name)) for name in self._buffers}

    def tortoise(self) -> dict[str, Tensor]:
        """Copies of the averages by name, in the network's dtype, for `torch.func.functional_call` or `load_state_dict`."""
        hare = {**dict(self._network.named_parameters()), **dict(self._network.named_buffers())}
        return {name: slow.to(hare[name], copy=True) for name, slow in {**self._slow, **self._slow_buffers}.items()}

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        for place in places:
            if place.parameter.requires_grad:
                place.parameter.copy_(self._slow[place.path])
        if any(place.optimizer == 0 for place in places):
            for name, slow in self._slow_buffers.items():
                self._network.get_buffer(name).copy_(slow)

    def _count(self, number: int) -> None:
        self._follow(number)
        super()._count(number)

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """One step of the tortoise, of the parameters of an optimizer; buffers move with the first."""
        pairs = [(self._slow, place.path, place.parameter) for place in self.places if place.optimizer == number]
        if number == 0:
            pairs += [(self._slow_buffers, name, self._network.get_buffer(name)) for name in self._buffers]
        for slow, name, fast in pairs:
            slow[name] = slow[name].to(fast.device)
            slow[name].lerp_(fast.to(slow[name].dtype), 1.0 - self.decay_rate)

    def state_dict(self) -> dict[str, Any]:
        slow = [self._slow[place.path].clone() for place in self.places]
        return {
            **super().state_dict(),
            "targets": slow,
            "buffers": [each.clone() for each in self._slow_buffers.values()],
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        for kept, held in ((self._slow, state["targets"]), (self._slow_buffers, state["buffers"])):
            for (name, slow), each in zip(kept.items(), held, strict=True):
                fill(slow, each, name)


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in single precision at least: an average moves by small steps."""
    copy = tensor.detach().clone()
    return copy if copy.dtype.itemsize >= 4 else copy.float()
