"""Permuted MNIST in batches of 30: three methods beside published numbers.

    784-100-100-100-10, SGD, step size 0.05; a task is 60,000 images under one order of the pixels, 2,000 steps
    accuracy   share predicted before the update, mean over a task, then over tasks

    python benchmarks/permuted_mnist_batches.py --tasks 1000 --seeds 0 --out rows.parquet

Published for 1,000 tasks (Hernandez-Garcia et al., CoLLAs 2025, arXiv 2508.00212): selective re-initialization 92.79, ReDo (every
16 steps, τ 1e-4) 92.49, continual backpropagation (maturity 500, rate 1e-4) 92.43. Departure: ours hands the mean over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor, nn

import pliant
from pliant.data import load
from pliant.streams import generator, stream_key

BATCH, STEP_SIZE = 30, 0.05
METHODS: Mapping[str, Callable[..., Any]] = {
    "bp": lambda model, optimizer, x: None,
    "selective": lambda model, optimizer, x: pliant.SelectiveReinitialization(model, optimizer, seed=0),
    "redo": lambda model, optimizer, x: pliant.ReDo(model, optimizer, example_inputs=x, period=16, tau=1e-4, seed=0),
    "cbp": lambda model, optimizer, x: pliant.ContinualBackprop(
        model, optimizer, example_inputs=x, replacement_rate=1e-4, maturity_threshold=500, seed=0
    ),
}


def network(seed: int) -> nn.Sequential:
    """Kaiming's uniform weights, biases of 0."""
    torch.manual_seed(stream_key(seed, "weights") >> 1)
    sizes = (784, 100, 100, 100, 10)
    layers: list[nn.Module] = []
    for m, n in pairwise(sizes):
        linear = nn.Linear(m, n)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu" if n != sizes[-1] else "linear")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def task_accuracy(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Learn from the images of a task once, in this order; share predicted before the updates."""
    hits = torch.zeros(())
    for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        logits = model(inputs)
        hits += (logits.detach().argmax(1) == labels).sum()
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    return float(hits) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=METHODS)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--data", type=Path, help="folder of data sets; $PLIANT_DATA if not given")
    parser.add_argument("--out", type=Path, help="a Parquet file for the rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load("mnist", given.data).train
    pixels = torch.from_numpy(images.pixels.reshape(len(images), -1).astype(np.float32) / 255)
    labels, rows = torch.from_numpy(images.labels), list[dict[str, Any]]()
    for seed in given.seeds:
        for name in given.methods:
            model = network(seed)
            optimizer = torch.optim.SGD(model.parameters(), lr=STEP_SIZE)
            METHODS[name](model, optimizer, pixels[:2])
            began = time.process_time()
            for task in range(given.tasks):
                order = torch.from_numpy(generator(seed, "images", task).permutation(len(images)))
                place = torch.from_numpy(generator(seed, "pixels", task).permutation(784))
                accuracy = task_accuracy(model, optimizer, pixels[order][:, place], labels[order])
                rows.append({"method": name, "seed": seed, "task": task + 1, "accuracy": accuracy})
            table = pandas.DataFrame(rows)
            own = table[(table["method"] == name) & (table["seed"] == seed)]["accuracy"]
            means = f"mean {100 * own.mean():.2f}%   last 20 tasks {100 * own[-20:].mean():.2f}%"
            print(f"{name:10} seed {seed}   {means}   {time.process_time() - began:.0f} s", flush=True)
            if given.out:
                table.to_parquet(given.out)


if __name__ == "__main__":
    main()
