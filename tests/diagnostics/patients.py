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
    data: tuple[Tensor, Tensor]
    verdicts: tuple[str, ...]  # that are right
    advice: tuple[str, ...] = ()  # that is right, as far as there is any


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load("mnist", download=False)
    images = torch.tensor(found.train.pixels).flatten(1).float().div(255.0)
    return images, torch.tensor(found.train.labels).long()


def mlp(activation: type[nn.Module] = nn.ReLU, width: int = 100, layers: int = 2) -> nn.Sequential:
    sizes = [784, *[width] * layers]
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
    activation: type[nn.Module] = nn.ReLU, tasks: int = 3, step_size: float = 1e-3, **shape: int
) -> tuple[nn.Sequential, torch.optim.Optimizer, Callable[[], nn.Module]]:
    torch.manual_seed(0)
    model = mlp(activation, **shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=step_size)
    for number in range(tasks):
        train(model, optimizer, task(number))
    return model, optimizer, lambda: mlp(activation, **shape)


def healthy() -> Patient:
    return Patient(*trained(), task(100), ("no",))


def dead_units() -> Patient:
    """Nineteen in twenty units of both layers never fire again."""
    model, optimizer, fresh = trained()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias[:95] = -1000.0
    return Patient(model, optimizer, fresh, task(100), ("yes",), ("continual backprop",))


def saturated_tanh() -> Patient:
    model, optimizer, fresh = trained(nn.Tanh)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= 100.0
    return Patient(model, optimizer, fresh, task(100), ("yes",), ("continual backprop", "shrink"))


def slow_tanh() -> Patient:
    """Trained on random labels, again and again: each set is learned worse than the one before."""
    torch.manual_seed(0)
    model = mlp(nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for number in range(60):
        train(model, optimizer, random_labels(number), epochs=10)
    return Patient(
        model, optimizer, lambda: mlp(nn.Tanh), random_labels(100), ("yes",), ("continual backprop", "shrink")
    )


def exploded_weights() -> Patient:
    model, optimizer, fresh = trained()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 30.0
    return Patient(model, optimizer, fresh, task(100), ("yes",), ("shrink",))


def collapsed_rank() -> Patient:
    """All units of a layer compute the same but for a hundredth."""
    model, optimizer, fresh = trained()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(layer.weight[:1] + 0.01 * (layer.weight - layer.weight[:1]))
            layer.bias.fill_(float(layer.bias.mean()))
    return Patient(model, optimizer, fresh, task(100), ("yes",), ("continual backprop", "shrink"))


def stale_state() -> Patient:
    """Adam remembers gradients a thousand times as large as those of now, and forgets them slowly."""
    model, optimizer, fresh = trained()
    optimizer.param_groups[0]["betas"] = (0.9, 0.99999)
    for state in optimizer.state.values():
        state["exp_avg_sq"] += 10.0
        state["step"] += 1_000_000
    return Patient(model, optimizer, fresh, task(100), ("no",), ("reset optimizer",))


def decayed_step_size() -> Patient:
    model, optimizer, fresh = trained()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(80):
        optimizer.step()
        schedule.step()
    return Patient(model, optimizer, fresh, task(100), ("no",), ("step size",))


def wrong_labels() -> Patient:
    x, _ = task(100)
    return Patient(*trained(), (x, torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(0))), NOT_YES)


def shuffled_inputs() -> Patient:
    """Every image has its pixels in an order of its own."""
    x, y = task(100)
    generator = torch.Generator().manual_seed(0)
    return Patient(*trained(), (torch.stack([row[torch.randperm(784, generator=generator)] for row in x]), y), NOT_YES)


def overfitting() -> Patient:
    """A hundred images of the very task, learned by heart."""
    model, optimizer, fresh = trained(tasks=0)
    x, y = task(0)
    train(model, optimizer, (x[:100], y[:100]), epochs=200)
    return Patient(model, optimizer, fresh, (x[100:], y[100:]), NOT_YES)


def frozen_layers() -> Patient:
    model, optimizer, fresh = trained()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    return Patient(model, optimizer, fresh, task(100), NOT_YES)


def harder_task() -> Patient:
    """Before, two classes of digits; then, ten, turned and noisy."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = digits()
    easy = (y < 2).nonzero().flatten()[:2000]
    train(model, optimizer, (x[easy], y[easy]))
    hard, labels = task(100)
    noise = 0.5 * torch.randn(hard.shape, generator=torch.Generator().manual_seed(0))
    return Patient(model, optimizer, mlp, (hard + noise, labels), NOT_YES)


def too_little_data() -> Patient:
    x, y = task(100)
    return Patient(*trained(), (x[:8], y[:8]), NOT_YES)


PATIENTS = {
    each.__name__: each
    for each in (
        *(healthy, dead_units, saturated_tanh, slow_tanh, exploded_weights, collapsed_rank, stale_state),
        *(decayed_step_size, wrong_labels, shuffled_inputs, overfitting, frozen_layers, harder_task, too_little_data),
    )
}
