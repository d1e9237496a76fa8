"""What continual backprop adds to the step of a small network, beside what it costs when it is written out for that network.

    python benchmarks/small_networks.py [name ...]

784-100-100-100-10, batches of 32, one thread. The contestants train side by side, taking turns of 100 steps:

    plain       the training loop, twice: the ratio of the two is the noise of the measurement
    by hand     the same with `ByHand`: three hooks and the fewest calls of PyTorch that we could find
    eager       the same with `pliant.ContinualBackprop` without Numba (PLIANT_NO_NUMBA=1)
    compiled    ... with Numba

All but the plain ones have trained for `WARMUP` steps before, so that units are being replaced all the time, at least 20 in each
group while the clock runs: once or more in every turn. An added share is the median over turns of processor time / that of the
plain ones in the turn, less 1; "ratio" is what the eager `ContinualBackprop` adds / what `ByHand` adds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from math import floor
from statistics import median
from time import process_time
from typing import Any

import torch
from networks import mlp
from torch import Tensor, nn

from pliant import ContinualBackprop

TURNS, STEPS, WARMUP = 40, 100, 6_000
DECAY, MATURITY = 0.99, 1000
SIZES = (784, 100, 100, 100, 10)
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-4),
}


class ByHand:
    """Continual backprop for a chain of linear layers with ReLU, in one optimizer, float32 on the CPU, and for nothing else.

    No check, and nothing to save. With Adam, moments of replaced units are 0, and their entries count their own steps: before
    each step the moments move by the weight that the shared count leaves out (`pliant.engine.optimizer_state.young`).
    """

    def __init__(self, model: nn.Sequential, optimizer: torch.optim.Optimizer, rate: float) -> None:
        self.linear = [each for each in model if isinstance(each, nn.Linear)]
        self.optimizer, self.rate = optimizer, rate
        self.into, self.out_of = self.linear[:-1], self.linear[1:]
        widths = [each.in_features for each in self.out_of]
        self.averages = torch.zeros(2, sum(widths))  # utility, mean
        self.now = torch.zeros(2, sum(widths))
        self.utility, self.mean = (row.split(widths) for row in self.averages)
        self.sums = self.now[1].split(widths)
        self.sizes = [torch.empty_like(each.weight) for each in self.out_of]
        self.by_unit = [each.t() for each in self.sizes]
        self.weights = [each.weight.detach() for each in self.out_of]
        self.outgoing = self.now[0].split(widths)
        self.shares = [torch.full((each.out_features,), 1.0 / each.out_features) for each in self.out_of]
        self.ones = torch.full((32,), 1.0 / 32)
        self.born = [torch.zeros(width) for width in widths]
        self.step, self.mature, self.eligible = 0, [0] * len(widths), [0] * len(widths)
        self.replaced, self.arriving = [0] * len(widths), [{MATURITY + 1: width} for width in widths]
        for layer, total in zip(self.out_of, self.sums, strict=True):
            layer.register_forward_pre_hook(self.reads(total))
        optimizer.register_step_post_hook(self.after_step)
        self.renewed = torch.full((sum(widths),), -(2**40))  # at which step each unit was
        self.rows = self.renewed.split(widths)
        if isinstance(optimizer, torch.optim.Adam):
            optimizer.register_step_pre_hook(self.before_step)

    def reads(self, total: Tensor) -> Callable[[nn.Module, Any], None]:
        ones = self.ones

        def read(module: nn.Module, args: Any) -> None:
            with torch.no_grad():
                torch.mv(args[0].t(), ones, out=total)

        return read

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for weight, size, by_unit, share, line in zip(
            self.weights, self.sizes, self.by_unit, self.shares, self.outgoing, strict=True
        ):
            torch.abs(weight, out=size)
            torch.mv(by_unit, share, out=line)
        self.now[0].mul_(self.now[1])
        self.averages.lerp_(self.now, 1.0 - DECAY)
        self.step += 1
        due = [self.due(layer) for layer in range(len(self.into))]
        if any(due):
            self.replace(due)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.mature[0]:
            return  # nothing was replaced so far
        age = self.step - self.renewed + 1
        for key, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
            corrected = 1.0 - beta**self.step
            shared = (1.0 - beta) / (1.0 - beta ** (self.step + 1))
            missing = (((1.0 - beta) / (1.0 - beta**age) - shared) / (1.0 - shared)).clamp_(min=0.0)
            of_layer = missing.split([each.out_features for each in self.into])
            for layer, linear in enumerate(self.linear):
                rows = of_layer[layer].unsqueeze(1) if layer < len(of_layer) else None
                columns = of_layer[layer - 1] if layer else None
                share = rows if columns is None else columns if rows is None else torch.maximum(rows, columns)
                moved = [(linear.weight, share)] + ([] if rows is None else [(linear.bias, of_layer[layer])])
                for parameter, weight in moved:
                    gradient = parameter.grad
                    target = gradient * gradient if key == "exp_avg_sq" else gradient
                    if corrected < 1.0:
                        target = target * corrected
                    optimizer.state[parameter][key].lerp_(target, weight)

    def due(self, layer: int) -> int:
        self.mature[layer] += self.arriving[layer].pop(self.step, 0)
        self.eligible[layer] += self.mature[layer]
        due = min(floor(self.rate * self.eligible[layer]) - self.replaced[layer], self.mature[layer])
        if due:
            self.replaced[layer] += due
            self.mature[layer] -= due
            self.arriving[layer][self.step + MATURITY + 1] = due
        return due

    def replace(self, due: list[int]) -> None:
        chosen: list[tuple[int, Tensor]] = []
        for layer, count in enumerate(due):
            if count:
                age = self.step - self.born[layer]
                seen = 1.0 - DECAY**age
                score = torch.where(age > MATURITY, self.utility[layer] / seen, torch.inf)
                units = score.sort(stable=True).indices[:count]
                mean = self.mean[layer][units] / seen[units]
                self.out_of[layer].bias.addmv_(self.weights[layer].index_select(1, units), mean)
                chosen.append((layer, units))
        for layer, units in chosen:
            into = self.into[layer]
            bound = into.in_features**-0.5
            fresh = torch.empty(len(units), into.in_features).uniform_(-bound, bound)
            into.weight.index_copy_(0, units, fresh)
            into.bias.index_fill_(0, units, 0.0)
        for layer, units in chosen:
            self.out_of[layer].weight.index_fill_(1, units, 0.0)
            self.born[layer].index_fill_(0, units, self.step)
            self.rows[layer].index_fill_(0, units, self.step)
            self.utility[layer].index_fill_(0, units, 0.0)
            self.mean[layer].index_fill_(0, units, 0.0)
            into, out_of = self.into[layer], self.out_of[layer]
            for parameter, axis in ((into.weight, 0), (into.bias, 0), (out_of.weight, 1)):
                for kept in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                        kept.index_fill_(axis, units, 0.0)


class Contestant:
    """A copy of the network, its optimizer and, but for plain ones, a method."""

    def __init__(self, optimizer: str, rate: float, kind: str, **settings: Any) -> None:
        torch.manual_seed(0)
        self.x, self.labels = torch.rand(32, 784), torch.arange(32) % 10
        self.model = mlp(*SIZES)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.method: ByHand | ContinualBackprop | None = None
        if kind == "by hand":
            self.method = ByHand(self.model, self.optimizer, rate)
        elif kind != "plain":
            os.environ["PLIANT_NO_NUMBA"] = "1" if kind == "eager" else ""
            self.method = ContinualBackprop(
                self.model,
                self.optimizer,
                example_inputs=self.x,
                replacement_rate=rate,
                maturity_threshold=MATURITY,
                **settings,
            )

    def train(self, steps: int) -> float:
        """Processor seconds that so many steps take."""
        start = process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.labels).backward()
            self.optimizer.step()
        return process_time() - start

    def replaced(self) -> int:
        """In the group that lost the fewest units."""
        if isinstance(self.method, ByHand):
            return min(self.method.replaced)
        return min(group["replaced"][0] for group in self.method.stats().values()) if self.method else 0


def side_by_side(contestants: Sequence[Contestant], turns: int) -> list[list[float]]:
    """Processor seconds of each, in every turn."""
    times: list[list[float]] = []
    for turn in range(turns):
        order = contestants if turn % 2 else contestants[::-1]
        taken = {id(each): each.train(STEPS) for each in order}
        times.append([taken[id(each)] for each in contestants])
    return times


def measure(optimizer: str, rate: float) -> None:
    kinds = ("plain", "plain", "by hand", "eager", "compiled")
    contestants = [Contestant(optimizer, rate, kind) for kind in kinds]
    for each in contestants:
        each.train(WARMUP if each.method else 100)
    before = [each.replaced() for each in contestants]
    times = side_by_side(contestants, TURNS)
    plain = [(row[0] + row[1]) / 2 for row in times]
    noise = median(row[0] / row[1] for row in times) - 1
    added = [median(row[place] / base for row, base in zip(times, plain, strict=True)) - 1 for place in (2, 3, 4)]
    least = min(each.replaced() - then for each, then in zip(contestants[2:], before[2:], strict=True))
    assert least >= 20, f"only {least} replacements in one group while the clock ran"
    print(
        f"{optimizer:<5} {rate:>6g} {median(plain) / STEPS * 1e6:>10,.0f} {100 * noise:>+6.1f}% "
        f"{100 * added[0]:>+8.1f}% {100 * added[1]:>+8.1f}% {added[1] / added[0]:>8.2f} {100 * added[2]:>+8.1f}% {least:>9}",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    print("        rate  plain, us   noise   by hand     eager    ratio  compiled  replaced")
    for optimizer in OPTIMIZERS:
        for rate in (1e-4, 1e-3):
            if not wanted or any(each in f"{optimizer} {rate:g}" for each in wanted):
                measure(optimizer, rate)


if __name__ == "__main__":
    main()
