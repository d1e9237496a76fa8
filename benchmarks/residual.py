"""ResNet-18, batch 90: a plain PyTorch loop, ours, and ours with continual backpropagation, side by side in one run.

    python benchmarks/residual.py [--width 64] [--turns N] [--device cpu] [--precision float32]

Four contestants take turns of one step: a plain loop in either memory layout, ours, and ours with continual backpropagation,
first brought to where units are replaced all the time (every group 20 times while the clock runs). Before that, the losses
of the plain loops are compared with ours. A ratio is the median over turns: 12, or as many as these replacements take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import ceil
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pliant.experiments.class_incremental import Config
from pliant.experiments.images.residual import ResidualNet
from pliant.experiments.images.residual_learner import Learner
from pliant.experiments.methods import METHODS

BATCH, CLASSES = 90, 100
RATE, MATURITY, WARMUP = 0.04, 4, 8  # at width 64 the smallest group loses 2 units a step
REPLACED, TURNS = 20, 12  # at least
Step = Callable[[], Tensor]


def plain_loop(network: ResidualNet, x: Tensor, y: Tensor, precision: str) -> Step:
    """One step as anyone would write it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(x)
        loss = cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(learner: Learner, x: Tensor, y: Tensor) -> Step:
    return lambda: learner.learn(x, y, CLASSES)[0]


def turns_needed(width: int) -> int:
    """Until the smallest group, of `width` units, has lost REPLACED of them.

    With m mature units, a step replaces RATE m of them, and they are young for the next MATURITY + 1: so in the long run
    m (1 + RATE (MATURITY + 1)) = width. One turn more for the fraction of a unit that is owed.
    """
    mature = width / (1 + RATE * (MATURITY + 1))
    return 1 + ceil(REPLACED / (RATE * mature))


def seconds(step: Step, device: str) -> float:
    """Of one step, the device's work included."""
    began = perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return perf_counter() - began


def learner(width: int, device: str, precision: str, **own: object) -> Learner:
    config = Config(width=width, precision=precision, **own)
    return Learner(config, METHODS[config.method], CLASSES, 3, device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, help=f"default: {TURNS}, or more where the width is small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    a = parser.parse_args()
    needed = turns_needed(a.width)
    a.turns = a.turns or max(TURNS, needed)
    if a.turns < needed:
        parser.error(f"--turns {a.turns}: at width {a.width}, {REPLACED} replacements in every group take {needed}")
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=draw).to(a.device, memory_format=torch.channels_last)
    y = torch.randint(0, CLASSES, (BATCH,), generator=draw).to(a.device)

    bp = learner(a.width, a.device, a.precision)
    cbp = learner(*(a.width, a.device, a.precision), method="cbp", replacement_rate=RATE, maturity_threshold=MATURITY)
    steps: dict[str, Step] = {"ours": ours(bp, x, y), "ours, cbp": ours(cbp, x, y)}
    for name, layout in (("plain", torch.contiguous_format), ("plain, channels_last", torch.channels_last)):
        network = ResidualNet(CLASSES, a.width).to(a.device)
        network.load_state_dict(learner(a.width, a.device, a.precision).network.state_dict())
        steps[name] = plain_loop(network.to(memory_format=layout), x.contiguous(memory_format=layout), y, a.precision)

    losses = {name: torch.stack([step() for _ in range(2)]) for name, step in steps.items() if name != "ours, cbp"}
    for name, found in losses.items():
        torch.testing.assert_close(found, losses["ours"], rtol=2e-2 if a.precision == "bfloat16" else 1e-3, atol=0)
        print(f"{name:<22} first losses {found.tolist()}")
    for _ in range(WARMUP):
        steps["ours, cbp"]()
    before = {name: group["replaced"][0] for name, group in cbp.method.stats().items()}
    order = list(steps)
    turns = []
    for turn in range(a.turns):
        turns.append({name: seconds(steps[name], a.device) for name in (order if turn % 2 else order[::-1])})
    after = {name: group["replaced"][0] for name, group in cbp.method.stats().items()}
    least = min(after[name] - before[name] for name in after)
    assert least >= REPLACED, f"only {least} replacements in one group while the clock ran: give more --turns"

    def ratio(first: str, second: str) -> float:
        return median(turn[first] / turn[second] for turn in turns)

    print(
        f"\nwidth {a.width}, batch {BATCH}, {a.precision}, {a.device}; {a.turns} turns; {least} replaced, least group"
    )
    for name in order:
        print(f"{name:<22} {1e3 * median(turn[name] for turn in turns):>10,.1f} ms a step")
    print(f"plain / ours                   {ratio('plain', 'ours'):.2f}")
    print(f"plain, channels_last / ours    {ratio('plain, channels_last', 'ours'):.2f}")
    print(f"cbp's share                    {100 * (ratio('ours, cbp', 'ours') - 1):+.1f}%")


if __name__ == "__main__":
    main()
