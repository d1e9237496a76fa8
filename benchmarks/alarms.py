"""How often a Monitor warns, of runs that are healthy and of runs that lose plasticity.

    python benchmarks/alarms.py [--out results/monitor-alarms.parquet]

Networks, optimizers and data are those of the experiments, in plain PyTorch loops. A run is called healthy by what it achieves
alone: one task ends as well as it can be told from its length (these are stationary), a stream of tasks has lost nothing if the
mean accuracy of its last fifth is at least 95% of that of its best fifth. Each run is measured `MEASUREMENTS` times.

The file holds one row per run and alarm that was raised, and one without an alarm for each run.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from networks import GPT, convolutional
from torch import Tensor, nn
from torch.nn import functional as F

from pliant import ContinualBackprop, Monitor, data
from pliant.experiments.images.residual import ResidualNet

MEASUREMENTS = 50
HEALTHY = 0.95  # of the best accuracy

Stream = Iterator[tuple[Tensor, Tensor, int]]  # inputs, targets, task
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "SGD 0.05": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "SGD 0.01, momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "SGD 0.001, momentum, decay": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4
    ),
    "Adam 0.003": lambda model: torch.optim.Adam(model.parameters(), lr=0.003),
    "Adam 0.001": lambda model: torch.optim.Adam(model.parameters(), lr=0.001),
    "Adam 0.0001": lambda model: torch.optim.Adam(model.parameters(), lr=1e-4),
    "AdamW 0.0003": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-4),
}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@dataclass(frozen=True)
class Run:
    name: str
    problem: str
    network: Callable[[], nn.Module]
    stream: Callable[[torch.Generator], Stream]
    steps: int
    optimizer: str
    tasks: int = 1
    cbp: float | None = None  # replacement rate of continual backpropagation


def perceptron(activation: str, hidden: int = 2) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs in (784, *[100] * (hidden - 1)):
            layers += [nn.Linear(inputs, 100), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers, nn.Linear(100, 10))

    return build


# -- streams ----------------------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    train = data.load("mnist").train
    return torch.as_tensor(train.pixels[:]).flatten(1), torch.as_tensor(train.labels[:]).long()


def one_task(x: Tensor, y: Tensor, size: int) -> Callable[[torch.Generator], Stream]:
    def stream(generator: torch.Generator) -> Stream:
        while True:
            for batch in torch.randperm(len(x), generator=generator).split(size):
                yield x[batch].float() / 255, y[batch], 0

    return stream


def permuted(examples: int, size: int) -> Callable[[torch.Generator], Stream]:
    """Another permutation of the pixels for each task, every example seen once."""

    def stream(generator: torch.Generator) -> Stream:
        x, y = digits()
        task = 0
        while True:
            pixels = torch.randperm(784, generator=generator)
            for batch in torch.randperm(len(x), generator=generator)[:examples].split(size):
                yield x[batch][:, pixels].float() / 255, y[batch], task
            task += 1

    return stream


def random_labels(examples: int, epochs: int, size: int = 32) -> Callable[[torch.Generator], Stream]:
    """Other images and other labels, drawn, for each task."""

    def stream(generator: torch.Generator) -> Stream:
        x, _ = digits()
        task = 0
        while True:
            images = x[torch.randint(len(x), (examples,), generator=generator)].float() / 255
            labels = torch.randint(10, (examples,), generator=generator)
            for _ in range(epochs):
                for batch in torch.randperm(examples, generator=generator).split(size):
                    yield images[batch], labels[batch], task
            task += 1

    return stream


def photographs(classes: int, size: int) -> Callable[[torch.Generator], Stream]:
    def stream(generator: torch.Generator) -> Stream:
        train = data.load("tiny-imagenet-32").train
        labels = torch.as_tensor(train.labels[:]).long()
        chosen = (labels < classes).nonzero().flatten()
        x = torch.as_tensor(train.pixels[chosen.numpy()]).movedim(-1, 1)
        return one_task(x, labels[chosen], size)(generator)

    return stream


def markov_chain(states: int = 50, time: int = 32, size: int = 16) -> Callable[[torch.Generator], Stream]:
    """The next state of a chain whose transition matrix is drawn once."""

    def stream(generator: torch.Generator) -> Stream:
        transitions = torch.randn(states, states, generator=generator).mul(2.0).softmax(-1)
        while True:
            tokens = [torch.randint(states, (size,), generator=generator)]
            for _ in range(time):
                tokens.append(torch.multinomial(transitions[tokens[-1]], 1, generator=generator).flatten())
            whole = torch.stack(tokens, dim=1)
            yield whole[:, :-1], whole[:, 1:], 0

    return stream


def runs() -> Iterator[Run]:
    x, y = digits()
    for activation in ACTIVATIONS:
        for optimizer in ("SGD 0.05", "SGD 0.01, momentum", "Adam 0.001", "AdamW 0.0003"):
            name = f"{activation}, {optimizer}"
            yield Run(name, "MNIST, one task", perceptron(activation), one_task(x, y, 32), 3000, optimizer)
    for activation in ("relu", "tanh"):
        for optimizer in ("SGD 0.05", "Adam 0.001"):
            name, stream = f"{activation}, {optimizer}", permuted(10_000, 20)
            yield Run(name, "permuted MNIST", perceptron(activation, 3), stream, 5000, optimizer, tasks=10)
    chain = "GPT, 2 blocks of 64, Adam 0.001"
    yield Run(chain, "Markov chain", lambda: GPT(50, 64, 4, 2, 32), markov_chain(), 1500, "Adam 0.001")
    for optimizer in ("SGD 0.01, momentum", "Adam 0.001"):
        name, stream = f"conv net, {optimizer}", photographs(10, 50)
        yield Run(name, "Tiny ImageNet, 10 classes", lambda: convolutional(10), stream, 600, optimizer)
    for activation in ("relu", "tanh"):
        for optimizer, cbp in (("Adam 0.0001", None), ("Adam 0.001", None), ("Adam 0.001", 1e-3), ("Adam 0.003", None)):
            name, stream = f"{activation}, {optimizer}{', cbp' if cbp else ''}", random_labels(500, 20)
            yield Run(name, "random labels", perceptron(activation), stream, 30 * 320, optimizer, tasks=30, cbp=cbp)
    residual, stream = "SGD 0.001, momentum, decay", photographs(100, 16)
    yield Run("ResNet-18", "Tiny ImageNet, 100 classes", lambda: ResidualNet(100), stream, 150, residual)


# -- one run ----------------------------------------------------------------------------------------------------------


def train(run: Run, seed: int) -> tuple[Monitor, list[float]]:
    """The Monitor at the end, and the mean accuracy of each task (of each fifth, if there is one)."""
    torch.manual_seed(seed)
    model = run.network()
    optimizer = OPTIMIZERS[run.optimizer](model)
    batches = run.stream(torch.Generator().manual_seed(seed))
    example = next(batches)[0]
    if run.cbp is not None:
        ContinualBackprop(
            model, optimizer, example_inputs=example[:2], replacement_rate=run.cbp, maturity_threshold=100
        )
    monitor = Monitor(model, optimizer, example[:2], every=max(run.steps // MEASUREMENTS, 1))
    hits: dict[int, list[float]] = {}
    for step in range(run.steps):
        x, y, task = next(batches)
        output = model(x)
        optimizer.zero_grad()
        F.cross_entropy(output.flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        part = task if run.tasks > 1 else 5 * step // run.steps
        hits.setdefault(part, []).append(float((output.argmax(-1) == y).float().mean()))
    ends = {part: each[-len(each) // 4 :] if "labels" in run.problem else each for part, each in hits.items()}
    return monitor, [sum(each) / len(each) for _, each in sorted(ends.items())][: run.tasks if run.tasks > 1 else 5]


def fifths(accuracies: list[float]) -> list[float]:
    size = max(len(accuracies) // 5, 1)
    parts = [accuracies[first : first + size] for first in range(0, len(accuracies), size)]
    return [sum(each) / len(each) for each in parts]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10, help="the thresholds were chosen on 0, 1 and 2")
    parser.add_argument("--only", default="", help="part of a problem's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pliant").setLevel(logging.ERROR)
    rows: list[dict[str, object]] = []
    for run in (run for run in runs() if given.only in run.problem):
        seeds = given.seeds if "ResNet" not in run.name else 1
        for seed in range(given.first_seed, given.first_seed + seeds):
            monitor, accuracies = train(run, seed)
            parts = fifths(accuracies)
            best, last = max(parts), parts[-1]
            found = {"problem": run.problem, "run": run.name, "seed": seed, "healthy": last >= HEALTHY * best}
            found |= {"best": best, "last": last}
            told = [(group, measure) for group, _, measure in monitor.state_dict()["told"]] or [(None, None)]
            rows += [{**found, "group": group, "measure": measure} for group, measure in told]
            said = ", ".join(f"{group}: {measure}" for group, measure in told if measure)
            state = "healthy" if found["healthy"] else "LOST"
            print(f"{run.problem:<28} {run.name:<34} {seed}  {best:.3f} -> {last:.3f}  {state:<8} {said}", flush=True)
            if given.out is not None:
                pandas.DataFrame(rows).to_parquet(given.out)
    frame = pandas.DataFrame(rows)
    for healthy, some in frame.groupby("healthy"):
        each = some.groupby(["problem", "run", "seed"])["measure"].apply(lambda found: set(found.dropna()))
        counts = Counter(measure for measures in each for measure in measures)
        print(
            f"\n{'healthy' if healthy else 'lost plasticity'}: {len(each)} runs, {sum(map(bool, each))} warned; {dict(counts)}"
        )


if __name__ == "__main__":
    main()
