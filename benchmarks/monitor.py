"""What a Monitor costs: training steps with one beside steps without, one thread, in one run, processor time.

    python benchmarks/monitor.py

Three copies of each network train side by side, one step each in turn, in changing order: a plain one, one whose Monitor waits
(it only counts), and one whose Monitor measures every step. The cost at every=1000 is

    (waiting - plain) + (measuring - plain) / 1000        over plain

with medians over turns of the differences within a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from time import process_time

import torch
from networks import GPT, mlp
from torch import Tensor, nn

from pliant import Monitor
from pliant.experiments.images.residual import ResidualNet

EVERY = 1000


@dataclass(frozen=True)
class Workload:
    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    classes: int
    turns: int


WORKLOADS = [
    Workload("784-100x3, batch 32", lambda: mlp(784, 100, 100, 100, 10), lambda: torch.rand(32, 784), 10, 300),
    Workload("ResNet-18, batch 32", lambda: ResidualNet(100), lambda: torch.rand(32, 3, 32, 32), 100, 14),
    Workload("GPT 12 x 768, 2 x 64 tokens", GPT, lambda: torch.randint(0, 1000, (2, 64)), 1000, 14),
]


class Contestant:
    """A copy of the network, its optimizer, and maybe a Monitor."""

    def __init__(self, workload: Workload, every: int | None) -> None:
        torch.manual_seed(0)
        self.x = workload.batch()
        self.model = workload.network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        with torch.no_grad():
            shape = self.model(self.x).shape[:-1]
        self.labels = torch.arange(shape.numel()) % workload.classes
        self.monitor = None
        if every is not None:
            self.monitor = Monitor(self.model, self.optimizer, self.x[:2], every=every, warn=False)

    def step(self) -> float:
        """Processor seconds of a training step."""
        start = process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x).flatten(0, -2), self.labels).backward()
        self.optimizer.step()
        return process_time() - start


def measure(workload: Workload) -> None:
    contestants = [Contestant(workload, every) for every in (None, 10**9, 1)]
    for each in contestants:
        each.step()  # the first of each Monitor measures
        each.step()
    times: list[list[float]] = []
    for turn in range(workload.turns):
        order = contestants if turn % 2 else contestants[::-1]
        taken = {id(each): each.step() for each in order}
        times.append([taken[id(each)] for each in contestants])
    assert len({row["step"] for row in contestants[2].monitor.rows}) == workload.turns + 2
    plain = median(a for a, _, _ in times)
    waiting, measuring = median(b - a for a, b, _ in times), median(c - a for a, _, c in times)
    low, _, high = quantiles([(b - a) / plain for a, b, _ in times], n=4)
    cost = (waiting + measuring / EVERY) / plain
    groups = len(contestants[2].monitor.groups)
    print(
        f"{workload.name:<28} {groups:>6} {plain * 1e3:>9.1f} {waiting / plain:>+8.1%} ({low:+.1%}, {high:+.1%}) "
        f"{measuring * 1e3:>9.0f} {measuring / plain / EVERY:>+10.2%} {cost:>+10.2%}",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(1)
    print("network                      groups   step ms  waiting (quartiles)   measured, ms more   /1000    together")
    for workload in WORKLOADS:
        measure(workload)


if __name__ == "__main__":
    main()
