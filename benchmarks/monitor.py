"""What a Monitor costs: training steps with one beside steps without, one thread, in one run, processor time.

    python benchmarks/monitor.py

Two copies of each network train side by side, one step each in turn, in changing order: a plain one beside one whose Monitor
waits (it only counts), then a plain one beside one whose Monitor measures every step (apart, because a measurement leaves cold
caches to whoever comes next). The cost at every=1000 is

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


def differences(workload: Workload, every: int) -> tuple[float, list[float], Contestant]:
    """Median seconds of a plain step, those that a step of the other one takes more in each turn, and that one."""
    plain, other = Contestant(workload, None), Contestant(workload, every)
    for each in (plain, other, plain, other):
        each.step()  # the first step of a Monitor is measured
    times: list[tuple[float, float]] = []
    for turn in range(workload.turns):
        first, second = (plain, other) if turn % 2 else (other, plain)
        taken = {id(first): first.step()}
        taken[id(second)] = second.step()
        times.append((taken[id(plain)], taken[id(other)]))
    return median(a for a, _ in times), [b - a for a, b in times], other


def measure(workload: Workload) -> None:
    plain, waits, _ = differences(workload, 10**9)
    again, measures, other = differences(workload, 1)
    assert other.monitor is not None
    assert len({row["step"] for row in other.monitor.rows}) == workload.turns + 2
    low, waiting, high = quantiles([each / plain for each in waits], n=4)
    measuring = median(measures)
    print(
        f"{workload.name:<28} {len(other.monitor.groups):>6} {plain * 1e3:>9.2f} {waiting:>+8.1%} ({low:+.1%}, {high:+.1%}) "
        f"{measuring * 1e3:>9.0f} {measuring / again / EVERY:>+10.2%} {waiting + measuring / again / EVERY:>+10.2%}",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(1)
    print("network                      groups   step ms  waiting (quartiles)   measured, ms more   /1000    together")
    for workload in WORKLOADS:
        measure(workload)


if __name__ == "__main__":
    main()
