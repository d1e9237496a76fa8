"""How long a learner-step takes: plain PyTorch beside `pliant.online`, one thread, in one run.

    python benchmarks/regression.py

For each network, optimizer and method: both are first taken through the same examples in float64 and their losses and
weights compared, replacements included; only then is anything timed, in float32, the contestants taking turns.
Tiny networks run as 1,000 learners (a study), the large one alone, with its sums of |w| logged at every step.
Median over rounds, in microseconds per step of one learner. "Of limit" is the share of what this machine could do:
the time that the arithmetic (at the rate of a large matrix product) or the reading and writing of weights
(at the rate measured in the same cache) would take by itself, whichever is longer, over the time taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from plain import MATURITY, Adam, Layers, Replacement, autograd_loop, by_hand_loop

from pliant.base.initial import uniform_bound
from pliant.online import OnlineEnsemble, fresh_weights

RATE, ROUNDS, SEED = 1e-3, 5, 0
FIRST_LEVEL_CACHE = 32 * 1024  # bytes; what fits there is limited by arithmetic


@dataclass(frozen=True)
class Network:
    sizes: tuple[int, ...]
    learners: int
    plain_steps: int  # in each round
    our_steps: int
    kernels: tuple[str, ...]

    @property
    def labels(self) -> bool:
        return self.sizes[-1] > 1

    def examples(self, n: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Bits and a target that depends on them; or 784 pixels, 19% of them not zero as in MNIST, and a label."""
        rng = np.random.default_rng(1)
        shape = (1, n, self.sizes[0])
        if self.labels:
            return (rng.random(shape) * (rng.random(shape) < 0.19)).astype(dtype), rng.integers(0, 10, (1, n))
        X = (rng.random(shape) < 0.5).astype(dtype)
        return X, np.sin(X @ rng.normal(size=(self.sizes[0], 1))).astype(dtype)


NETWORKS = (
    Network((20, 5, 1), 1000, 1200, 4000, ("lanes", "rows")),
    Network((20, 64, 64, 1), 64, 600, 1000, ("rows", "lanes")),
    Network((784, 100, 100, 100, 10), 1, 300, 2000, ("rows",)),
)


def ours(net: Network, optimizer: str, replaces: bool, kernel: str, learners: int, dtype: Any) -> OnlineEnsemble:
    return OnlineEnsemble(
        inputs=net.sizes[0], hidden=net.sizes[1:-1], outputs=net.sizes[-1], learners=learners, seed=SEED,
        loss="cross_entropy" if net.labels else "squared_error", optimizer=optimizer, step_size=step_size(optimizer),
        replacement_rate=RATE if replaces else None, maturity_threshold=MATURITY, kernel=kernel, dtype=dtype,
    )  # fmt: skip


def step_size(optimizer: str) -> float:
    return 0.003 if optimizer == "sgd" else 0.0003


Loop = Callable[[torch.Tensor, torch.Tensor], list[float]]


def plain(net: Network, loop: Any, optimizer: str, replaces: bool, dtype: Any) -> tuple[Loop, Layers, list[int]]:
    """A loop over examples, its weights, and its counts of replacements; it starts as our learner 0 does."""
    start = ours(net, optimizer, False, "auto", 1, np.float64)
    kind = torch.float64 if dtype == np.float64 else torch.float32
    layers = range(len(net.sizes) - 1)
    weights = [
        (torch.tensor(start.weights(i)[0].T.copy(), dtype=kind), torch.tensor(start.biases(i)[0], dtype=kind))
        for i in layers
    ]

    def fresh(layer: int, number: int) -> torch.Tensor:
        m, n = net.sizes[layer : layer + 2]
        return torch.tensor(fresh_weights(SEED, layer, number, m, uniform_bound("kaiming", m, n, 2**0.5)), dtype=kind)

    replacement = Replacement(weights, RATE, fresh) if replaces else None
    adam = Adam(weights, step_size(optimizer)) if optimizer == "adam" else None
    counts = replacement.replaced if replacement else []
    log = [] if net.labels else None
    return lambda X, y: loop(weights, X, y, step_size(optimizer), adam, replacement, log), weights, counts


def compare(net: Network, loop: Any, optimizer: str, replaces: bool, kernel: str) -> None:
    """Same losses and weights, in float64, or an error."""
    X, y = net.examples(400, np.float64)
    run, weights, _ = plain(net, loop, optimizer, replaces, np.float64)
    losses = run(torch.from_numpy(X[0]), torch.from_numpy(y[0]))
    learner = ours(net, optimizer, replaces, kernel, 1, np.float64)
    np.testing.assert_allclose(learner.partial_fit(X, y).loss[0], losses, rtol=0, atol=1e-7)
    for layer, (W, b) in enumerate(weights):
        np.testing.assert_allclose(learner.weights(layer)[0].T, W.detach(), rtol=0, atol=1e-7)
        np.testing.assert_allclose(learner.biases(layer)[0], b.detach(), rtol=0, atol=1e-7)


def seconds(call: Callable[[], Any]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def time_all(net: Network, optimizer: str, replaces: bool) -> dict[str, float]:
    """Microseconds per learner-step of every contestant, median of interleaved rounds."""
    X, y = net.examples(max(net.plain_steps, net.our_steps), np.float32)
    few = torch.from_numpy(X[0, : net.plain_steps]), torch.from_numpy(y[0, : net.plain_steps])
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    counts: list[Callable[[], Any]] = []
    for name, loop in (("autograd", autograd_loop), ("by hand", by_hand_loop)):
        run, _, replaced = plain(net, loop, optimizer, replaces, np.float32)
        calls[name] = lambda run=run: run(*few), net.plain_steps
        counts.append(lambda replaced=replaced: replaced)
    more = X[:, : net.our_steps], y[:, : net.our_steps]
    for kernel in net.kernels:
        learners = ours(net, optimizer, replaces, kernel, net.learners, np.float32)
        take = partial(learners.partial_fit, *more, log_weights=net.labels)
        calls[kernel] = take, net.our_steps * net.learners
        counts.append(lambda learners=learners: learners.replacements)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (call, steps) in calls.items():
            taken[name].append(seconds(call) / steps * 1e6)
    if replaces:
        assert all(np.min(count()) >= 20 for count in counts), "fewer than 20 replacements in a layer"
    return {name: median(times) for name, times in taken.items()}


def limit(net: Network, optimizer: str, kernel: str) -> tuple[float, str]:
    """Least microseconds of a learner-step, and by what: rows of zero inputs are free, about half the hidden units are on."""
    on = [0.19 if net.labels else 0.5, *(0.5 for _ in net.sizes[1:-1])]
    pairs = list(pairwise(net.sizes))
    every = sum(m * n for m, n in pairs)
    touched = sum(share * m * n for share, (m, n) in zip(on, pairs, strict=True))
    back = sum(share * m * n for share, (m, n) in zip(on[1:], pairs[1:], strict=True))
    if optimizer == "sgd":
        operations, numbers = 4 * touched + 2 * back, 3 * touched  # read in the forward pass, read and written backward
    else:  # moments and step of every weight: 12 operations, square root and division counted as one each
        operations, numbers = 2 * touched + 2 * back + 12 * every, touched + 6 * every
    floats = every * (3 if optimizer == "adam" else 1) * (16 if kernel == "lanes" else 1)  # at work at a time
    arithmetic = operations * seconds_per_operation()
    memory = numbers * seconds_per_number(floats) if 4 * floats > FIRST_LEVEL_CACHE else 0.0
    return max((arithmetic * 1e6, "arithmetic"), (memory * 1e6, "memory"))


@cache
def seconds_per_operation() -> float:
    """Of the multiplications and additions of a matrix product."""
    matrix = torch.rand(768, 768)
    return min(seconds(lambda: matrix @ matrix) for _ in range(20)) / (2 * 768**3)


@cache
def seconds_per_number(floats: int) -> float:
    """Of reading or writing one float32 of so many that are passed over again and again."""
    state = torch.rand(floats)
    passes = max(1, 2_000_000 // floats)
    return min(seconds(lambda: [state.mul_(1.0) for _ in range(passes)]) for _ in range(7)) / (2 * floats * passes)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'network':22}{'optimizer':10}{'method':7}{'autograd':>10}{'by hand':>9}  {'ours':>8} {'kernel':7}"
          f"{'ratio':>8}{'by hand':>9}  of limit")  # fmt: skip
    for net in NETWORKS:
        for optimizer in ("sgd", "adam"):
            for replaces in (False, True):
                for loop in (autograd_loop, by_hand_loop):
                    for kernel in net.kernels:
                        compare(net, loop, optimizer, replaces, kernel)
                times = time_all(net, optimizer, replaces)
                for kernel in net.kernels:
                    took, (least, by) = times[kernel], limit(net, optimizer, kernel)
                    print(
                        f"{'-'.join(map(str, net.sizes)):22}{optimizer:10}{'cbp' if replaces else 'bp':7}"
                        f"{times['autograd']:10.1f}{times['by hand']:9.1f}  {took:8.4f} {kernel:7}"
                        f"{times['autograd'] / took:8.0f}{times['by hand'] / took:9.0f}  {least / took:.0%} {by}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
