"""What each method adds to a training step: 784-100-100-100-10, batches of 32, Adam, one thread.

    python benchmarks/methods.py

One copy of the network per method and two plain ones train side by side, taking turns of 20 steps; a ratio is the median over
turns of processor time with the method / plain within the turn. Methods that reset units replace some all the time, at least
20 of each group while the clock runs; the others act at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import torch
from networks import mlp
from torch import nn

import pliant

TURNS, STEPS, WARMUP = 300, 20, 2000
METHODS: dict[str, Callable[[nn.Module, torch.optim.Optimizer, Any], Any]] = {
    "plain": lambda model, optimizer, x: None,
    "plain again": lambda model, optimizer, x: None,
    "continual backprop": lambda model, optimizer, x: pliant.ContinualBackprop(
        model, optimizer, example_inputs=x, replacement_rate=1e-4, maturity_threshold=1000
    ),
    "random replacement": lambda model, optimizer, x: pliant.RandomReplacement(
        model, optimizer, example_inputs=x, replacement_rate=1e-4, maturity_threshold=1000
    ),
    "ReDo": lambda model, optimizer, x: pliant.ReDo(model, optimizer, example_inputs=x, tau=0.5, period=1000),
    "L2": lambda model, optimizer, x: pliant.L2(model, optimizer, strength=1e-4),
    "L2 Init": lambda model, optimizer, x: pliant.L2(model, optimizer, strength=1e-4, toward="initial"),
    "shrink and perturb": lambda model, optimizer, x: pliant.ShrinkAndPerturb(
        model, optimizer, shrink=1 - 1e-6, noise_std=1e-6
    ),
}


class Contestant:
    """A copy of the network, its optimizer and a method."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.name, self.x, self.labels = name, torch.rand(32, 784), torch.arange(32) % 10
        self.model = mlp(784, 100, 100, 100, 10)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.method = METHODS[name](self.model, self.optimizer, self.x)

    def train(self, steps: int) -> float:
        """Processor seconds that so many steps take."""
        start = process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.labels).backward()
            self.optimizer.step()
        return process_time() - start

    def replaced(self) -> int | None:
        """In the group that lost the fewest units; None where units are none of its business."""
        if not isinstance(self.method, pliant.UnitReset):
            return None
        return min(group["replaced"][0] for group in self.method.stats().values())


def main() -> None:
    torch.set_num_threads(1)
    contestants = [Contestant(name) for name in METHODS]
    for each in contestants:
        each.train(WARMUP)
    before = [each.replaced() for each in contestants]
    times: list[list[float]] = []
    for turn in range(TURNS):
        order = contestants if turn % 2 else contestants[::-1]
        taken = {each.name: each.train(STEPS) for each in order}
        times.append([taken[each.name] for each in contestants])
    print(f"plain: {median(row[0] for row in times) / STEPS * 1e6:.0f} us per step")
    for place, each in enumerate(contestants[1:], start=1):
        ratio = median(row[place] / row[0] for row in times)
        now, then = each.replaced(), before[place]
        replaced = "" if now is None or then is None else f"   replaced, least group: {now - then}"
        print(f"{each.name:<20} {100 * (ratio - 1):+6.1f}%{replaced}", flush=True)


if __name__ == "__main__":
    main()
