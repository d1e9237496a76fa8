"""How long a step of online permuted MNIST takes: plain PyTorch beside `pliant.online`, one thread, in one run.

    python benchmarks/permuted_mnist.py [WIDTH ...] [--rounds 5] [--methods]

A 784-N-N-N-10 ReLU network learns from MNIST one image at a time, with the sum of |w| of every matrix logged at every
step, by backpropagation and by continual backpropagation (replacement rate 1e-4). Both sides first go through the same
images in float64, 30 units wide, and their losses, weights and logs are compared, replacements included; only then is
anything timed, in float32, the contestants taking turns. The plain loops are given their permuted images as floats;
ours permutes and scales bytes as it goes. Median over rounds, in microseconds of processor time per step (wall time
would count what else the machine does).

"Share" is what continual backpropagation adds to our own step: its time over that of backpropagation that starts each
round from its weights. (Against backpropagation's own weights it would be more, and for another reason: there fewer
units are on, and what is off costs nothing.)

A goal is a ratio to the autograd loop, which is what the released code of Dohare et al. (2024) does at each step; the
loop with gradients by hand is the best plain PyTorch we know, and no goal is judged against it.

`--methods` times every method of ours instead, at these widths.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch
from plain import MATURITY, Layers, Replacement, autograd_loop, by_hand_loop

from pliant.base.initial import uniform_bound
from pliant.data import load
from pliant.online import OnlineEnsemble, fresh_weights

STEP_SIZE, RATE, SEED, SCALE = 0.003, 1e-4, 0, 1 / 255
PLAIN_STEPS = {100: 1500, 1000: 150, 2000: 60}  # in each round, about a second
OUR_STEPS = {100: 20_000, 1000: 1000, 2000: 300}
GOALS = {(100, "bp"): 40, (100, "cbp"): 75, (2000, "bp"): 4, (2000, "cbp"): 10}  # autograd over ours
SHARE = 0.1  # goal, from 1,000 units on
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {},
    "continual backprop": {"replacement_rate": RATE},
    "L2": {"weight_decay": 1e-4},
    "shrink and perturb": {"weight_decay": 1e-4, "noise_std": 1e-5},
    "dropout": {"dropout": 0.1},
    "layer norm": {"normalization": "layer"},
    "online norm": {"normalization": "online"},
    "Adam": {"optimizer": "adam", "step_size": 1e-4},
}


@dataclass(frozen=True)
class Task:
    """One permutation of MNIST: bytes as they lie, and the order of rows and columns."""

    pixels: np.ndarray  # (1, 60000, 784)
    labels: np.ndarray  # (1, 60000)
    rows: np.ndarray  # (1, n)
    columns: np.ndarray  # (1, 784)

    def floats(self, n: int, dtype: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The first n images as the plain loops take them."""
        x = self.pixels[0][self.rows[0, :n]][:, self.columns[0]].astype(dtype) * dtype(SCALE)
        return torch.from_numpy(x), torch.from_numpy(self.labels[0, self.rows[0, :n]])


def mnist() -> Task:
    images, rng = load("mnist").train, np.random.default_rng(SEED)
    pixels = np.ascontiguousarray(images.pixels).reshape(1, -1, 784)
    return Task(pixels, images.labels[None], rng.permutation(pixels.shape[1])[None], rng.permutation(784)[None])


def ours(width: int, dtype: Any = np.float32, **method: Any) -> OnlineEnsemble:
    settings = {"step_size": STEP_SIZE, "maturity_threshold": MATURITY} | method
    return OnlineEnsemble(
        inputs=784,
        hidden=(width,) * 3,
        outputs=10,
        learners=1,
        seed=SEED,
        loss="cross_entropy",
        dtype=dtype,
        **settings,
    )


def learn(learner: OnlineEnsemble, task: Task, n: int) -> Any:
    rows = task.rows[:, :n]
    return learner.partial_fit(task.pixels, task.labels, rows=rows, columns=task.columns, scale=SCALE, log_weights=True)


Loop = Callable[..., list[float]]
Calls = dict[str, tuple[Callable[[], Any], int]]


def plain(width: int, loop: Loop, rate: float, dtype: Any) -> tuple[Callable[..., Any], Layers, list[int]]:
    """A loop that returns losses and log, its weights, and its counts of replacements; it starts as our learner does."""
    start, sizes = ours(width, dtype), (784, width, width, width, 10)
    net = [(torch.tensor(start.weights(i)[0].T.copy()), torch.tensor(start.biases(i)[0])) for i in range(4)]

    def fresh(layer: int, number: int) -> torch.Tensor:
        m, n = sizes[layer : layer + 2]
        drawn = fresh_weights(SEED, layer, number, m, uniform_bound("kaiming", m, n, 2**0.5))
        return torch.tensor(drawn.astype(dtype))

    replacement = Replacement(net, rate, fresh) if rate else None

    def run(X: torch.Tensor, y: torch.Tensor) -> tuple[list[float], list[list[torch.Tensor]]]:
        log: list[list[torch.Tensor]] = []
        return loop(net, X, y, STEP_SIZE, None, replacement, log), log

    return run, net, replacement.replaced if replacement else []


def compare(task: Task, loop: Loop, rate: float, width: int = 30, n: int = 400) -> None:
    """Same losses, weights and logs, in float64, or an error. At this width the rate is higher, so that units go."""
    rate *= 100
    run, net, counts = plain(width, loop, rate, np.float64)
    losses, log = run(*task.floats(n, np.float64))
    learner = ours(width, np.float64, replacement_rate=rate)
    progress = learn(learner, task, n)
    assert not rate or min(counts) >= 20, "fewer than 20 replacements in a layer"
    np.testing.assert_allclose(progress.loss[0], losses, rtol=0, atol=1e-7)
    np.testing.assert_allclose(progress.weight_sums[0], torch.tensor(log), rtol=1e-7)
    for layer, (W, b) in enumerate(net):
        np.testing.assert_allclose(learner.weights(layer)[0].T, W.detach(), rtol=0, atol=1e-7)
        np.testing.assert_allclose(learner.biases(layer)[0], b.detach(), rtol=0, atol=1e-7)


def take_turns(calls: Calls, rounds: int, prepare: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds per step, median over rounds; each first runs once, unmeasured, as does what prepares it."""
    for call, _ in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, steps) in calls.items():
            prepare.get(name, lambda: None)()
            begin = process_time()
            call()
            taken[name].append((process_time() - begin) / steps * 1e6)
    return {name: median(times) for name, times in taken.items()}


def time_against_plain(task: Task, width: int, rounds: int) -> None:
    few, many = PLAIN_STEPS[width], OUR_STEPS[width]
    X, y = task.floats(few, np.float32)
    calls: Calls = {}
    counts: list[Callable[[], Any]] = []
    for name, rate in (("bp", 0.0), ("cbp", RATE)):
        for label, loop in (("autograd", autograd_loop), ("by hand", by_hand_loop)):
            run, _, replaced = plain(width, loop, rate, np.float32)
            calls[f"{name} {label}"] = (lambda run=run: run(X, y)), few
            counts += [lambda replaced=replaced: min(replaced)] if rate else []
        learner = ours(width, replacement_rate=rate)
        calls[f"{name} ours"] = (lambda learner=learner: learn(learner, task, many)), many
        counts += [lambda learner=learner: learner.replacements.min()] if rate else []
    beside = ours(width)  # the last `learner` is the one that replaces
    same = "bp on cbp's weights"
    calls[same] = (lambda: learn(beside, task, many)), many
    calls["cbp ours"] = calls.pop("cbp ours")  # after it, from the same weights
    prepare = {same: lambda: beside.load_state_dict(learner.state_dict())}
    took = take_turns(calls, rounds, prepare)
    assert all(count() >= 20 for count in counts), f"fewer than 20 replacements in a layer: {[c() for c in counts]}"
    for name in ("bp", "cbp"):
        own, auto, hand = took[f"{name} ours"], took[f"{name} autograd"], took[f"{name} by hand"]
        share = f"{took['cbp ours'] / took[same] - 1:.1%}" if name == "cbp" else ""
        goal = f"autograd/ours {GOALS[width, name]}" if (width, name) in GOALS else ""
        goal += f"{', ' if goal else ''}share {SHARE:.0%}" if share and width >= 1000 else ""
        print(
            f"{width:6}  {name:4}{auto:11.1f}{hand:11.1f}{own:11.2f}{auto / own:15.1f}{hand / own:14.1f}{share:>8}  {goal}",
            flush=True,
        )


def time_methods(task: Task, width: int, rounds: int) -> None:
    n = OUR_STEPS[width]
    learners = {name: ours(width, **method) for name, method in METHODS.items()}
    took = take_turns({name: ((lambda own=own: learn(own, task, n)), n) for name, own in learners.items()}, rounds, {})
    for name, time in took.items():
        print(f"{width:6}  {name:20}{time:10.2f}{time / took['backprop']:8.2f}", flush=True)


def main() -> None:
    parser = ArgumentParser(description="Microseconds of processor time per step of online permuted MNIST.")
    parser.add_argument("widths", nargs="*", type=int, metavar="WIDTH", help=f"of {', '.join(map(str, OUR_STEPS))}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", action="store_true", help="our own methods instead of plain PyTorch and ours")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = mnist()
    if asked.methods:
        print(f"{'width':>6}  {'method':20}{'us/step':>10}{'of bp':>8}")
    else:
        for loop in (autograd_loop, by_hand_loop):
            for rate in (0.0, RATE):
                compare(task, loop, rate)
        print(
            f"{'width':>6}  {'':4}{'autograd':>11}{'by hand':>11}{'ours':>11}{'autograd/ours':>15}{'by hand/ours':>14}"
            f"{'share':>8}  goal"
        )
    for width in asked.widths or OUR_STEPS:
        (time_methods if asked.methods else time_against_plain)(task, width, asked.rounds)


if __name__ == "__main__":
    main()
