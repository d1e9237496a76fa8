"""What the best of N fresh units adds to a step of `pliant.online`, one thread.

    python benchmarks/candidates.py

Two networks learn one example at a time in float32, with SGD and continual backpropagation (replacement rate 1e-4 and 1e-3,
maturity 100): 784-300-150-10 on permuted MNIST, 20-5-1 on 20 random bits. The contestants, of N candidates each (0: plain fresh
units; "none": no replacement), take turns of as many examples as a fifth of a second allows. Median over turns of processor time
per step, in microseconds; units replaced per 1,000 steps.

Plain units of tiny networks are stepped by the kernel for many learners at once where there are many; here all use the other one,
which takes the one learner of each contestant.
"""

from __future__ import annotations

from statistics import median
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.data import load
from pliant.online import OnlineEnsemble

TURNS = 25
WARMUP = 5  # turns that are not counted: 256 examples are remembered then, and units have been replaced
CANDIDATES = (0, 1, 32)
RATES = (1e-4, 1e-3)


def mnist(steps: int) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
    """Settings, inputs (1, steps, 784) and labels (1, steps)."""
    data, draw = load("mnist").train, np.random.default_rng(0)
    which = draw.integers(0, len(data.labels), steps)
    pixels = data.pixels.reshape(len(data.labels), -1)[which][:, draw.permutation(784)]
    shape = {"inputs": 784, "hidden": (300, 150), "outputs": 10, "loss": "cross_entropy", "step_size": 0.003}
    return shape, np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)[None], data.labels[which][None]


def bits(steps: int) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
    """Settings, inputs (1, steps, 20) and targets (1, steps)."""
    draw = np.random.default_rng(0)
    X = (draw.random((1, steps, 20)) < 0.5).astype(np.float32)
    return (
        {"inputs": 20, "hidden": (5,), "outputs": 1, "step_size": 0.01},
        X,
        np.sin(X @ draw.normal(size=20)).astype(np.float32),
    )


def main() -> None:
    print("| network | rate | replaced per 1,000 steps | none | " + " | ".join(f"N = {n}" for n in CANDIDATES) + " |")
    print("|---|---|---|---|" + "---|" * len(CANDIDATES))
    for make, steps in ((mnist, 4_000), (bits, 400_000)):
        shape, X, y = make(steps)
        name = "-".join(str(size) for size in (shape["inputs"], *shape["hidden"], shape["outputs"]))
        for rate in RATES:
            common = {**shape, "learners": 1, "seed": 0, "kernel": "rows"}
            each = {n: OnlineEnsemble(**common, replacement_rate=rate, candidates=n) for n in CANDIDATES}
            contestants = {-1: OnlineEnsemble(**common), **each}
            times: dict[int, list[float]] = {n: [] for n in contestants}
            for _ in range(TURNS):
                for n, learners in contestants.items():
                    begin = process_time()
                    learners.partial_fit(X, y)
                    times[n].append((process_time() - begin) / steps * 1e6)
            taken = {n: median(each[WARMUP:]) for n, each in times.items()}
            replaced = {int(learners.replacements.sum()) for learners in each.values()}
            assert len(replaced) == 1
            assert replaced.pop() >= 20
            per_thousand = 1000 * each[0].replacements.sum() / each[0].steps
            print(f"| {name} | {rate:g} | {per_thousand:.1f} | " + " | ".join(f"{taken[n]:.3g}" for n in taken) + " |")


if __name__ == "__main__":
    main()
