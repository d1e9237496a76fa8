"""What each method adds to a training step, beside torch's own weight decay.

    python benchmarks/methods.py [--networks mlp conv resnet] [--methods NAME ...] [--turns 15]

    mlp      784-100-100-100-10, batches of 32            conv     that of Continual ImageNet, 3x32x32 images, batches of 32
    resnet   ResNet-18 of the experiments, width 8, 3x32x32 images, batches of 32

Adam, one thread. A copy of the network for each method, and two plain ones, train side by side, taking turns of some steps.
Printed is the processor time of all turns / that of the plain copy, less 1; "plain again" is the noise. What takes the place of
Adam is compared with it. Methods that act every so many steps do so once per turn; their published periods are longer, so that
they cost less. Resets by a rate replace units in every turn: how many, of all groups, is printed too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from networks import convolutional, mlp
from torch import Tensor, nn

import pliant
from pliant.experiments.images.residual import ResidualNet

PLAIN = "plain"


@dataclass(frozen=True)
class Network:
    """A network, its inputs, and how many steps a turn has."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int
    warmup: int  # turns

    @property
    def rate(self) -> float:
        """At which a layer of 100 units loses one per turn."""
        return 0.01 / self.steps


NETWORKS = {
    "mlp": Network(lambda: mlp(784, 100, 100, 100, 10), (784,), steps=100, warmup=5),
    "conv": Network(lambda: convolutional(10), (3, 32, 32), steps=20, warmup=3),
    "resnet": Network(lambda: ResidualNet(classes=10, width=8), (3, 32, 32), steps=4, warmup=3),
}
Parameters = list[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {  # in the place of Adam
    "torch's L2": lambda p: torch.optim.Adam(p, lr=1e-4, weight_decay=1e-4),
    "torch's weight decay": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-2),
    "UPGD": lambda p: pliant.UPGD(p, lr=1e-4, seed=0),
    "ObGD": lambda p: pliant.ObGD(p),
    "TRAC of Adam": lambda p: pliant.TRAC(torch.optim.Adam(p, lr=1e-4)),
}
Attach = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Network], Any]


def resets(kind: Any, **settings: Any) -> Attach:
    """Of units, by a threshold: once per turn, if no other period is given."""
    return lambda m, o, x, network: kind(m, o, example_inputs=x, **{"period": network.steps, **settings})


def by_rate(kind: Any, **settings: Any) -> Attach:
    """Of units, by a rate, as soon as they are a turn old."""
    return lambda m, o, x, network: kind(
        m, o, example_inputs=x, replacement_rate=network.rate, maturity_threshold=network.steps, **settings
    )


def every_step(kind: Any, **settings: Any) -> Attach:
    return lambda m, o, x, network: kind(m, o, **settings)


def every_turn(kind: Any, **settings: Any) -> Attach:
    return lambda m, o, x, network: kind(m, o, period=network.steps, **settings)


def matrices(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1


METHODS: dict[str, Attach] = {
    "continual backprop": by_rate(pliant.ContinualBackprop),
    "... every 4th step": by_rate(pliant.ContinualBackprop, observe_every=4),
    "random replacement": by_rate(pliant.RandomReplacement),
    "ReDo": resets(pliant.ReDo),
    "GraMa": resets(pliant.GraMa),
    "GraMa by activity": resets(pliant.GraMa, of="activity"),
    "self-normalized resets": resets(pliant.SelfNormalizedResets, period=1),
    "partial resets": resets(pliant.PartialResets),
    "L2": every_step(pliant.L2, strength=1e-4),
    "L2 Init": every_step(pliant.L2, strength=1e-4, toward="initial"),
    "spectral": every_step(pliant.Spectral, strength=1e-4),
    "Parseval": every_step(pliant.Parseval, strength=1e-4, parameters=matrices),
    "shrink and perturb": every_step(pliant.ShrinkAndPerturb, shrink=1 - 1e-6, noise_std=1e-6, period=1),
    "weight clipping": every_step(pliant.WeightClipping, kappa=3.0, period=1),
    "normalize and project": every_step(pliant.NormalizeAndProject, parameters=matrices, period=1),
    "hare and tortoise": every_turn(pliant.HareAndTortoise),
    "selective reinit.": every_turn(pliant.SelectiveReinitialization),
    "FIRE": every_turn(pliant.FIRE),
}


class Contestant:
    """A copy of the network, its optimizer and a method."""

    def __init__(self, name: str, network: Network) -> None:
        torch.manual_seed(0)
        self.x, self.labels = torch.rand(32, *network.shape), torch.arange(32) % 10
        self.model = network.make()
        make = OPTIMIZERS.get(name, lambda p: torch.optim.Adam(p, lr=1e-4))
        self.optimizer = make([*self.model.parameters()])
        self.method = METHODS[name](self.model, self.optimizer, self.x, network) if name in METHODS else None

    def train(self, steps: int) -> float:
        """Processor seconds that so many steps take."""
        start = process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.labels).backward()
            self.optimizer.step()
        return process_time() - start

    def replaced(self) -> int | None:
        """Units of all groups; None where units are none of its business."""
        if not isinstance(self.method, pliant.UnitReset):
            return None
        return sum(group["replaced"][0] for group in self.method.stats().values())


def measure(network: Network, names: list[str], turns: int) -> None:
    contestants = {name: Contestant(name, network) for name in (PLAIN, "plain again", *names)}
    for each in contestants.values():
        each.train(network.warmup * network.steps)
    before = {name: each.replaced() for name, each in contestants.items()}
    seconds = dict.fromkeys(contestants, 0.0)
    for turn in range(turns):
        for name in list(contestants) if turn % 2 else reversed(contestants):
            seconds[name] += contestants[name].train(network.steps)
    print(f"  a plain step: {seconds[PLAIN] / turns / network.steps * 1e3:.2f} ms")
    for name in [*contestants][1:]:
        now, then = contestants[name].replaced(), before[name]
        replaced = "" if now is None or then is None else f"   {(now - then) / turns:.1f} units per turn"
        print(f"  {name:<23} {100 * (seconds[name] / seconds[PLAIN] - 1):+7.1f}%{replaced}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[*NETWORKS], choices=NETWORKS)
    parser.add_argument("--methods", nargs="*", default=[*OPTIMIZERS, *METHODS], choices=[*OPTIMIZERS, *METHODS])
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.networks:
        print(f"{name}, turns of {NETWORKS[name].steps} steps", flush=True)
        measure(NETWORKS[name], given.methods, given.turns)


if __name__ == "__main__":
    main()
