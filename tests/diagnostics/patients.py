"""Networks with one known trouble each, trained on real digits: what a probe and an examination are judged on.

Each maker gives a `Patient`: the network as it stands, the optimizer that trained it, how to build a fresh one, the next task,
and which verdicts and advice are right. Troubles that take long to arise are written into a network that has trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pliant.data import load

NOT_YES = ("no", "cannot tell")


@dataclass
class Patient:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    fresh: Callable[[], nn.Module]
    data: tuple[Tensor, Tensor]  # of the next task
    verdicts: tuple[str, ...]  # that are right
    advice: tuple[str, ...] = ()  # that is right, as far as there is any


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load("mnist", download=False)
    images = torch.tensor(found.train.pixels).flatten(1).float().div(255.0)
    return images, torch.tensor(found.train.labels).long()


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    sizes = [784, 100, 100]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))


def task(number: int, count: int = 2000) -> tuple[Tensor, Tensor]:
    """Digits whose pixels are permuted in a way of their own."""
    x, y = digits()
    generator = torch.Generator().manual_seed(number)
    rows = torch.randperm(len(x), generator=generator)[:count]
    return x[rows][:, torch.randperm(784, generator=generator)], y[rows]


def random_labels(number: int, count: int = 1200) -> tuple[Tensor, Tensor]:
    x, _ = digits()
    generator = torch.Generator().manual_seed(1000 + number)
    return x[:count], torch.randint(10, (count,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], epochs: int = 3) -> None:
    x, y = data
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def trained(
    seed: int, activation: type[nn.Module] = nn.ReLU, tasks: int = 3
) -> tuple[nn.Sequential, torch.optim.Optimizer, Callable[[], nn.Module]]:
    torch.manual_seed(seed)
    model = mlp(activation)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for number in range(tasks):
        train(model, optimizer, task(1000 * seed + number))
    return model, optimizer, lambda: mlp(activation)


def next_task(seed: int) -> tuple[Tensor, Tensor]:
    return task(1000 * seed + 100)


def healthy(seed: int = 0) -> Patient:
    return Patient(*trained(seed), next_task(seed), ("no",))


def dead_units(seed: int = 0) -> Patient:
    """Nineteen in twenty units of both layers never fire again."""
    model, optimizer, fresh = trained(seed)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias[:95] = -1000.0
    return Patient(model, optimizer, fresh, next_task(seed), ("yes",), ("continual backprop",))


def saturated_tanh(seed: int = 0) -> Patient:
    model, optimizer, fresh = trained(seed, nn.Tanh)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= 100.0
    return Patient(model, optimizer, fresh, next_task(seed), ("yes",), ("continual backprop", "shrink"))


def slow_tanh(seed: int = 0) -> Patient:
    """Trained on random labels, again and again: each set is learned worse than the one before."""
    torch.manual_seed(seed)
    model = mlp(nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for number in range(60):
        train(model, optimizer, random_labels(1000 * seed + number), epochs=10)
    return Patient(
        model,
        optimizer,
        lambda: mlp(nn.Tanh),
        random_labels(1000 * seed + 100),
        ("yes",),
        ("continual backprop", "shrink"),
    )


def exploded_weights(seed: int = 0) -> Patient:
    model, optimizer, fresh = trained(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 30.0
    return Patient(model, optimizer, fresh, next_task(seed), ("yes",), ("shrink",))


def collapsed_rank(seed: int = 0) -> Patient:
    """All units of a layer compute the same but for a hundredth."""
    model, optimizer, fresh = trained(seed)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(layer.weight[:1] + 0.01 * (layer.weight - layer.weight[:1]))
            layer.bias.fill_(float(layer.bias.mean()))
    return Patient(model, optimizer, fresh, next_task(seed), ("yes",), ("continual backprop", "shrink"))


def stale_state(seed: int = 0) -> Patient:
    """Adam remembers gradients a thousand times as large as those of now, and forgets them slowly."""
    model, optimizer, fresh = trained(seed)
    optimizer.param_groups[0]["betas"] = (0.9, 0.99999)
    for state in optimizer.state.values():
        state["exp_avg_sq"] += 10.0
        state["step"] += 1_000_000
    return Patient(model, optimizer, fresh, next_task(seed), ("no",), ("reset optimizer",))


def decayed_step_size(seed: int = 0) -> Patient:
    model, optimizer, fresh = trained(seed)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(80):
        optimizer.step()
        schedule.step()
    return Patient(model, optimizer, fresh, next_task(seed), ("no",), ("step size",))


def wrong_labels(seed: int = 0) -> Patient:
    x, _ = next_task(seed)
    return Patient(
        *trained(seed), (x, torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(seed))), NOT_YES
    )


def shuffled_inputs(seed: int = 0) -> Patient:
    """Every image has its pixels in an order of its own."""
    x, y = next_task(seed)
    generator = torch.Generator().manual_seed(seed)
    return Patient(
        *trained(seed), (torch.stack([row[torch.randperm(784, generator=generator)] for row in x]), y), NOT_YES
    )


def overfitting(seed: int = 0) -> Patient:
    """A hundred images of the very task, learned by heart."""
    model, optimizer, fresh = trained(seed, tasks=0)
    x, y = task(1000 * seed)
    train(model, optimizer, (x[:100], y[:100]), epochs=200)
    return Patient(model, optimizer, fresh, (x[100:], y[100:]), NOT_YES)


def frozen_layers(seed: int = 0) -> Patient:
    model, optimizer, fresh = trained(seed)
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    return Patient(model, optimizer, fresh, next_task(seed), NOT_YES)


def harder_task(seed: int = 0) -> Patient:
    """Of the next task's images two thirds of the pixels are hidden, others in each."""
    x, y = next_task(seed)
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 1 / 3
    return Patient(*trained(seed), (x * seen, y), NOT_YES)


def too_little_data(seed: int = 0) -> Patient:
    x, y = next_task(seed)
    return Patient(*trained(seed), (x[:8], y[:8]), NOT_YES)


PATIENTS = {
    each.__name__: each
    for each in (
        *(healthy, dead_units, saturated_tanh, slow_tanh, exploded_weights, collapsed_rank, stale_state),
        *(decayed_step_size, wrong_labels, shuffled_inputs, overfitting, frozen_layers, harder_task, too_little_data),
    )
}
