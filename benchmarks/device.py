"""What a GPU has to show, in one run of a few minutes: equality with the CPU, skipped steps, what attaching costs.

    python benchmarks/device.py [--device cuda]

equality    an MLP in float64 trains on the CPU and on the device from the same batches: replaced units, ages and weights agree
skipped     a fused Adam under a GradScaler of which every other step overflows: 60 calls count as 30 steps
tests       those of the suite that need the device
overhead    attached / plain, two plain copies beside it for the noise, taking turns; units are being replaced all the time
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter

import torch
from networks import convolutional, mlp
from torch import nn

from pliant import ContinualBackprop
from pliant.experiments.images.residual import ResidualNet

TESTS = ("tests/engine/test_taken_steps.py", "tests/methods", "tests/experiments/test_continual_imagenet.py")


def equality(device: str, steps: int = 600) -> None:
    trained = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        model = mlp(20, 64, 64, 5).double().to(where)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        cbp = ContinualBackprop(
            *(model, optimizer), example_inputs=torch.zeros(2, 20, dtype=torch.float64, device=where),
            replacement_rate=0.01, maturity_threshold=20, seed=0,
        )  # fmt: skip
        draw = torch.Generator().manual_seed(1)
        for _ in range(steps):
            x = torch.randn(32, 20, generator=draw, dtype=torch.float64)
            y = torch.randint(5, (32,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(where)), y.to(where)).backward()
            optimizer.step()
        trained.append((cbp, [parameter.detach().cpu() for parameter in model.parameters()]))
    (ours, weights), (theirs, others) = trained
    assert ours.stats() == theirs.stats()
    assert all(torch.equal(a.age.cpu(), b.age.cpu()) for a, b in zip(ours.groups, theirs.groups, strict=True))
    apart = max(float((a - b).abs().max()) for a, b in zip(weights, others, strict=True))
    assert apart < 1e-8, apart
    replaced = {name: group["replaced"][0] for name, group in ours.stats().items()}
    print(f"equality: {replaced} units replaced in {steps} steps, the same ones; weights agree to {apart:.1e}")


def skipped(device: str) -> None:
    model = mlp(20, 64, 64, 5).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    cbp = ContinualBackprop(
        *(model, optimizer),
        example_inputs=torch.zeros(2, 20, device=device),
        replacement_rate=0.01,
        maturity_threshold=5,
    )
    scaler = torch.amp.GradScaler(device.split(":")[0], init_scale=2.0**10, growth_interval=10_000)
    for step in range(60):
        optimizer.zero_grad()
        loss = model(torch.randn(32, 20, device=device)).square().mean()
        scaler.scale(loss * (torch.inf if step % 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update(2.0**10)
    counts = {name: (group["steps"], group["replaced"][0]) for name, group in cbp.stats().items()}
    expected = (30, plainly_counted(steps=30))
    assert all(count == expected for count in counts.values()), (counts, expected)
    print(f"skipped: of 60 calls 30 steps, replaced {counts}")


def plainly_counted(steps: int, units: int = 64, percent: int = 1, maturity: int = 5) -> int:
    """How many of the units of age > `maturity` a rate replaces, counted unit by unit."""
    ages, eligible, replaced = [0] * units, 0, 0
    for _ in range(steps):
        ages = [age + 1 for age in ages]
        mature = [unit for unit, age in enumerate(ages) if age > maturity]
        eligible += len(mature)
        for unit in mature[: eligible * percent // 100 - replaced]:
            ages[unit], replaced = 0, replaced + 1
    return replaced


def overhead(device: str, seconds: float) -> None:
    cases = {
        "784-100x3": (lambda: mlp(784, 100, 100, 100, 10), (32, 784), 0.002, 100),
        "784-2000x3": (lambda: mlp(784, 2000, 2000, 2000, 10), (256, 784), 0.0005, 100),
        "conv net": (convolutional, (100, 3, 32, 32), 0.0008, 100),
        "ResNet-18": (lambda: ResidualNet(100), (128, 3, 32, 32), 0.001, 50),
    }
    print("overhead            plain, us  attached  plain/plain  replaced, least group")
    for name, (network, shape, rate, maturity) in cases.items():
        contestants = [Contestant(network, shape, device) for _ in range(3)]
        attached = contestants[-1]
        cbp = ContinualBackprop(
            *(attached.model, attached.optimizer), example_inputs=attached.x[:2],
            replacement_rate=rate, maturity_threshold=maturity,
        )  # fmt: skip
        attached.train(2 * maturity)
        before = {group: each["replaced"][0] for group, each in cbp.stats().items()}
        turns, begun = [], perf_counter()
        while perf_counter() - begun < seconds:
            order = contestants if len(turns) % 2 else contestants[::-1]
            taken = {id(each): each.train(10) for each in order}
            turns.append([taken[id(each)] for each in contestants])
        least = min(each["replaced"][0] - before[group] for group, each in cbp.stats().items())
        step = median(a for a, _, _ in turns) / 10
        ratio, noise = median(2 * c / (a + b) for a, b, c in turns), median(a / b for a, b, _ in turns)
        print(
            f"{name:<18} {step * 1e6:>10,.0f} {100 * (ratio - 1):>+8.1f}% {100 * (noise - 1):>+11.1f}%  {least:>7}",
            flush=True,
        )


class Contestant:
    def __init__(self, network, shape, device: str) -> None:
        torch.manual_seed(0)
        self.model, self.x = network().to(device), torch.rand(shape, device=device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)

    def train(self, steps: int) -> float:
        """Seconds that so many steps take, the device's work included."""
        _wait(self.x.device)
        start = perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(self.x).square().mean().backward()
            self.optimizer.step()
        _wait(self.x.device)
        return perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row of overhead")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu tries the script itself")
        return 2
    torch.set_num_threads(1)
    equality(given.device)
    skipped(given.device)
    if given.device.startswith("cuda"):
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "cuda or device", *TESTS], check=True)
    overhead(given.device, given.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
