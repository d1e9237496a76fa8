"""What `observe_every` changes: which units continual backprop chooses on permuted MNIST, and what it adds to a step.

    python benchmarks/observe_every.py [--tasks 5] [--turns 40]

Choices: 784-100-100-100-10, SGD, step size 0.05, batches of 30, 2,000 steps per task, rate 1e-4, maturity 500. The run that
observes every step trains. Beside it stand methods that observe every k-th step of the same network, replace nothing, and start
over with each unit that it replaces. Printed is the share of its replaced units that they would not have chosen; "random" is
that of as many units drawn from the mature ones.

Cost: added to a step of the network of `small_networks.py`, as measured there, at rate 1e-4.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
import torch
from permuted_mnist_batches import STEP_SIZE, network, task_accuracy
from small_networks import OPTIMIZERS, WARMUP, Contestant, side_by_side

from pliant import ContinualBackprop
from pliant.data import load
from pliant.engine.replacement import Replacement, least_useful
from pliant.streams import generator
from pliant.units.entries import SelectedUnits

EVERY = (1, 2, 4, 8, 16)
MATURITY, RATE = 500, 1e-4


class Choices:
    """Methods that observe every k-th step, beside the one that replaces, and what they would have chosen."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        optimizer.register_step_post_hook(lambda *step: self.observe())  # before the hook of the one that replaces
        settings = {"example_inputs": x, "maturity_threshold": MATURITY, "seed": 0}
        self.observers = {
            every: ContinualBackprop(
                model, optimizer, replacement_rate=0.0, observe_every=every, attach=False, **settings
            )
            for every in EVERY
        }
        ContinualBackprop(model, optimizer, replacement_rate=RATE, on_replace=self.compare, **settings)
        self.replaced, self.by_chance = 0, 0.0
        self.others = dict.fromkeys(EVERY, 0)

    def observe(self) -> None:
        for each in self.observers.values():
            each.step()

    def compare(self, replacement: Replacement) -> None:
        """The units of one group that were replaced in a step."""
        count, chosen = len(replacement.units), {*replacement.units.tolist()}
        self.replaced += count
        for every, observer in self.observers.items():
            utility, age = (found()[replacement.group] for found in (observer.utilities, observer.ages))
            own = {*least_useful(utility, age, count, MATURITY)[0].tolist()}
            self.others[every] += len(chosen - own)
            if every == 1:
                self.by_chance += count * (1.0 - count / int((age > MATURITY).sum()))
            group = next(each for each in observer.groups if each.name == replacement.group)
            units = SelectedUnits(
                replacement.runs, replacement.units, torch.ones(count), [count], all_at_full_strength=True
            )
            observer.score.forget(group, units)
            observer.all_statistics[0].renew(group, units)


def choices(tasks: int) -> None:
    images = load("mnist").train
    pixels = torch.from_numpy(images.pixels.reshape(len(images), -1).astype(np.float32) / 255)
    labels = torch.from_numpy(images.labels)
    model = network(0)
    found = Choices(model, torch.optim.SGD(model.parameters(), lr=STEP_SIZE), pixels[:2])
    optimizer = found.observers[1].optimizers[0]
    for task in range(tasks):
        order = torch.from_numpy(generator(0, "images", task).permutation(len(images)))
        place = torch.from_numpy(generator(0, "pixels", task).permutation(784))
        task_accuracy(model, optimizer, pixels[order][:, place], labels[order])
    shares = "".join(f"   every {every}: {100 * other / found.replaced:.1f}%" for every, other in found.others.items())
    print(f"of {found.replaced} units replaced, others chosen{shares}", end="")
    print(f"   random: {100 * found.by_chance / found.replaced:.1f}%", flush=True)


def cost(turns: int) -> None:
    kinds = [(kind, every) for kind in ("eager", "compiled") for every in EVERY]
    for optimizer in OPTIMIZERS:
        contestants = [Contestant(optimizer, RATE, "plain")]
        contestants += [Contestant(optimizer, RATE, kind, observe_every=every) for kind, every in kinds]
        for each in contestants:
            each.train(WARMUP if each.method else 100)
        times = side_by_side(contestants, turns)
        for place, (kind, every) in enumerate(kinds, start=1):
            added = 100 * (median(row[place] / row[0] for row in times) - 1)
            print(f"{optimizer:<5} {kind:<9} every {every:<3} {added:+6.1f}%", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5, help="of permuted MNIST; 0 leaves the choices out")
    parser.add_argument("--turns", type=int, default=40, help="of the clock; 0 leaves the cost out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.tasks:
        choices(given.tasks)
    if given.turns:
        cost(given.turns)


if __name__ == "__main__":
    main()
