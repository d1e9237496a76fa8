"""What attaching costs: training with continual backpropagation beside the same training without, one thread, in one run.

    python benchmarks/overhead.py [name ...]

Three copies of each network train side by side, taking turns of a few steps: two plain ones, whose ratio is the noise of
the measurement, and one attached. The attached one is first brought to the steady state, in which units are being
replaced all the time (every group at least 20 times while the clock runs) and, with Adam, reset entries of all ages
are about. A ratio is the median over turns of attached / plain time within the turn. Last come the
seconds that tracing takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, process_time

import torch
from networks import GPT, convolutional, mlp, resnet
from torch import Tensor, nn

from pliant import ContinualBackprop
from pliant.experiments.images.residual import ResidualNet
from pliant.units import trace


@dataclass(frozen=True)
class Workload:
    """`rate` and `maturity` are chosen so that every group loses 20 units while it is timed; 1e-4 and 1000 where that allows."""

    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    classes: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    goal: float  # attached / plain
    rate: float = 1e-4
    maturity: int = 1000
    warmup: int = 20_000  # steps of the attached one before the clock starts
    turns: int = 400
    steps: int = 20  # of each contestant in a turn


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4)


def digits() -> Tensor:
    return torch.rand(32, 784)


WORKLOADS = [
    Workload("784-100x3, SGD", lambda: mlp(784, 100, 100, 100, 10), digits, 10, plain_sgd, 1.30),
    Workload("784-100x3, Adam", lambda: mlp(784, 100, 100, 100, 10), digits, 10, adam, 1.15),
    Workload(
        *("conv net, SGD", convolutional, lambda: torch.rand(100, 3, 32, 32), 2, sgd, 1.05),
        rate=0.0008, maturity=100, warmup=150, turns=250, steps=4,
    ),
    Workload(
        *("ResNet-18, SGD", lambda: ResidualNet(100), lambda: torch.rand(32, 3, 32, 32), 100, sgd, 1.05),
        rate=0.01, maturity=5, warmup=8, turns=36, steps=1,
    ),
]  # fmt: skip


class Contestant:
    """A copy of the network, its optimizer, and maybe the method."""

    def __init__(self, workload: Workload, *, attached: bool) -> None:
        torch.manual_seed(0)
        self.x = workload.batch()
        self.labels = torch.arange(len(self.x)) % workload.classes
        self.model = workload.network()
        self.optimizer = workload.optimizer(self.model)
        self.method = None
        if attached:
            self.method = ContinualBackprop(
                *(self.model, self.optimizer),
                example_inputs=self.x[:2], replacement_rate=workload.rate, maturity_threshold=workload.maturity,
            )  # fmt: skip

    def train(self, steps: int) -> float:
        """Seconds that so many steps take."""
        start = perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.labels).backward()
            self.optimizer.step()
        return perf_counter() - start

    def replaced(self) -> int:
        """In the group that lost the fewest units."""
        return min(group["replaced"][0] for group in self.method.stats().values()) if self.method else 0


def measure(workload: Workload) -> None:
    plain, again, attached = (Contestant(workload, attached=each) for each in (False, False, True))
    attached.train(workload.warmup)
    before = attached.replaced()
    times = []
    for turn in range(workload.turns):
        order = [plain, again, attached] if turn % 2 else [attached, again, plain]
        taken = {id(each): each.train(workload.steps) for each in order}
        times.append([taken[id(each)] for each in (plain, again, attached)])
    least = attached.replaced() - before
    assert least >= 20, f"only {least} replacements in one group while the clock ran"
    noise = [a / b for a, b, _ in times]
    ratios = [2 * c / (a + b) for a, b, c in times]
    low, _, high = quantiles(noise, n=4)
    step = median(a for a, _, _ in times) / workload.steps
    print(
        f"{workload.name:<18} {step * 1e6:>10,.0f} {100 * (median(ratios) - 1):>+9.1f}% {100 * (workload.goal - 1):>+6.0f}%  "
        f"{100 * (median(noise) - 1):>+5.1f}% ({100 * (low - 1):+.1f}, {100 * (high - 1):+.1f})  {least:>7}",
        flush=True,
    )


def time_tracing() -> None:
    cases = {
        "transformer, 12 layers, 128 wide": (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 512, batch_first=True), 12),
            lambda: torch.rand(2, 8, 128),
        ),
        "ResNet-50, 2x3x64x64": (lambda: resnet((3, 4, 6, 3)), lambda: torch.rand(2, 3, 64, 64)),
        "GPT, 12 layers, 768 wide, 2x64": (GPT, lambda: torch.randint(0, 1000, (2, 64))),
    }
    print("\nprocessor seconds                  trace   trial   groups   units")
    for name, (network, batch) in cases.items():
        model, x = network(), batch()
        traced: list[float] = []
        with_trial: list[float] = []
        for _ in range(3):
            for seconds, trial in ((traced, False), (with_trial, True)):
                start = process_time()
                plan = trace(model, x, trial=trial)
                seconds.append(process_time() - start)
        units = sum(row.units for row in plan.rows)
        trial = median(with_trial) - median(traced)
        print(f"{name:<32} {median(traced):>7.2f} {trial:>7.2f} {len(plan.rows):>8} {units:>7}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    print("training step        plain, us  attached    goal  plain/plain (quartiles)  replaced, least group")
    for workload in WORKLOADS:
        if not wanted or any(each in workload.name for each in wanted):
            measure(workload)
    if not wanted or "tracing" in wanted:
        time_tracing()


if __name__ == "__main__":
    main()
