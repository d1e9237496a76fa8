"""How long a step of Continual ImageNet's network takes: a plain PyTorch loop beside the experiment, one thread, in one run.

    python benchmarks/convolutional.py

The full network, batches of 100 from the 1,200 images of a task (random bytes stand in for photographs). The plain loop
is what one would write by hand for images in memory: float tensors in torch's own layout (NCHW), no loader, no hooks. All
start from the same weights and see the same batches; after two epochs their weights are compared, and only then is anything
timed, the contestants taking turns of an epoch (12 steps). Times are of the processor, medians over turns; ratios are medians
of the ratios within a turn.

The goal of 1.25 is against that loop in NCHW, the layout that PyTorch gives who asks for none. Most of what is gained is the
layout: "plain, channels_last" is the same loop with network and images in the layout that our step uses, and against it
what remains is the pool before the ReLU and bytes in place of floats. No goal is judged against it.

Continual backpropagation is in its steady state: every layer loses at least 20 units meanwhile.
"""

from __future__ import annotations

from statistics import median, quantiles
from time import process_time

import numpy as np
import torch
from networks import convolutional
from torch.nn.functional import cross_entropy

from pliant.data import Images, ImageSet, image_set
from pliant.experiments.continual_imagenet import Config, Learners
from pliant.experiments.images.class_pairs import Pairs

TURNS, WARM_UP, STEP_SIZE = 30, 10, 0.01  # epochs, epochs; small enough that two epochs of rounding stay small
GOAL, SHARE = 1.25, 0.05


def random_pictures() -> ImageSet:
    """Two classes of 700; the second is a little brighter."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 700)
    pixels = draw.integers(0, 246, (1400, 32, 32, 3), dtype=np.uint8) + (10 * labels[:, None, None, None]).astype(
        np.uint8
    )
    return image_set("random", Images(pixels, labels, ("dark", "bright")), None)


class Plain:
    """As a user writes it; `layout` is that of the network's weights and of the images."""

    def __init__(self, pairs: Pairs, start: Learners, layout: torch.memory_format = torch.contiguous_format) -> None:
        self.net = convolutional()
        for parameter, ours in zip(self.net.parameters(), start.net.parameters(), strict=True):
            parameter.data.copy_(ours[0].detach())
        self.net[-1].weight.data.zero_()
        self.net[-1].bias.data.zero_()
        self.net.to(memory_format=layout)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=STEP_SIZE, momentum=0.9)
        images = torch.from_numpy(pairs.images(seed=0, task=0)[0])
        self.x = ((images.float() / 255 - 0.45) / 0.27).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.y = torch.arange(2).repeat_interleave(len(self.x) // 2)
        self.pairs, self.epoch = pairs, 0

    def learn(self) -> None:
        for batch in torch.from_numpy(self.pairs.batches(0, 0, self.epoch)):
            self.optimizer.zero_grad()
            cross_entropy(self.net(self.x[batch]), self.y[batch]).backward()
            self.optimizer.step()
        self.epoch += 1


def difference(plain: Plain, ours: Learners) -> float:
    """The largest, as a share of the largest weight of its tensor."""
    both = zip(plain.net.parameters(), ours.net.parameters(), strict=True)
    return max(float((p - o[0]).detach().abs().max() / p.detach().abs().max()) for p, o in both)


def main() -> None:
    torch.set_num_threads(1)
    data = random_pictures()
    common = {"dataset": "random", "epochs": 10**6, "step_size": STEP_SIZE}
    bp = Learners([Config(**common)], data)
    cbp = Learners([Config(method="cbp", replacement_rate=0.003, **common)], data)
    plain, again = (Plain(bp.pairs, bp) for _ in range(2))
    channels_last = Plain(bp.pairs, bp, torch.channels_last)
    for _ in range(2):
        plain.learn()
        channels_last.learn()
        bp.learn(1)
    worst = max(difference(one, bp) for one in (plain, channels_last))
    assert worst < 1e-3, f"weights differ by {worst:.1e} of their largest after 24 steps"
    print(f"after 24 steps weights differ by at most {worst:.0e} of the largest")
    cbp.learn(WARM_UP)
    before = [group["replaced"][0] for group in cbp.method.stats().values()] if cbp.method else []
    contestants = {
        "plain": plain.learn,
        "plain again": again.learn,
        "plain, channels_last": channels_last.learn,
        "ours": lambda: bp.learn(1),
        "ours, cbp": lambda: cbp.learn(1),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(TURNS):
        for name in list(contestants)[:: 1 if turn % 2 else -1]:
            start = process_time()
            contestants[name]()
            times[name].append((process_time() - start) / 12)
    replaced = [group["replaced"][0] - old for group, old in zip(cbp.method.stats().values(), before, strict=True)]
    assert min(replaced) >= 20, f"only {min(replaced)} replacements in one layer while the clock ran"
    for name, taken in times.items():
        print(f"{name:<20} {1e3 * median(taken):7.2f} ms a step")
    report("plain again / plain (noise)", times["plain again"], times["plain"], "")
    report("plain / ours", times["plain"], times["ours"], f"goal {GOAL}, against NCHW")
    report("plain, channels_last / ours", times["plain, channels_last"], times["ours"], "no goal")
    report("plain / ours with cbp", times["plain"], times["ours, cbp"], "")
    report(
        "ours with cbp / ours",
        times["ours, cbp"],
        times["ours"],
        f"goal {1 + SHARE}, at least {min(replaced)} units of each layer",
    )


def report(what: str, one: list[float], other: list[float], note: str) -> None:
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    print(f"{what:<28} {middle:5.3f}  (quartiles {low:.3f}, {high:.3f})  {note}")


if __name__ == "__main__":
    main()
