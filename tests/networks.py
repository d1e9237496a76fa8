"""Small networks and streams that the tests of the library share."""

import torch
from torch import nn


def mlp(bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12, bias=bias), nn.ReLU(), nn.Linear(12, 9, bias=bias), nn.Tanh(), nn.Linear(9, 2, bias=bias)
    ).to(dtype)


def convnet(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 5, 2, bias=bias), nn.BatchNorm2d(5), nn.ReLU()),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(20, 7),
        nn.ReLU(),
        nn.Linear(7, 2),
    )


class Transformer(nn.Module):
    """One encoder layer over four tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """A GRU over three numbers of a sequence, between two hidden layers."""

    def __init__(self):
        super().__init__()
        self.first, self.core = nn.Linear(6, 9), nn.GRU(9, 6, batch_first=True)
        self.middle, self.head = nn.Linear(6, 9), nn.Linear(9, 2)

    def forward(self, x):
        states, _ = self.core(self.first(x).relu())
        return self.head(self.middle(states[:, -1]).relu())


def transformer(seed=0):
    torch.manual_seed(seed)
    return Transformer()


def recurrent(seed=0):
    torch.manual_seed(seed)
    return Recurrent()


NETWORKS = {"mlp": (mlp, (6,)), "convnet": (convnet, (2, 8, 8))}

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.003),
}


def batch(step, shape, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, *shape, generator=generator, dtype=dtype), torch.randn(
        size, 2, generator=generator, dtype=dtype
    )


def train(model, optimizer, steps, shape=(6,), size=8, dtype=torch.float32, after=lambda: None):
    """One gradient step for each number in `steps`, each on its own batch."""
    for step in steps:
        x, y = batch(step, shape, size, dtype)
        torch.manual_seed(step)  # dropout
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        after()


def replaced(method):
    """Units replaced, by group, summed over runs."""
    return {name: sum(group["replaced"]) for name, group in method.stats().items()}


def ages(method, group=0):
    """Optimizer steps since each unit was new, (runs, units), of the group of this number."""
    return list(method.ages().values())[group]


def steps(method, group=0):
    """Optimizer steps that the group of this number has seen."""
    return list(method.stats().values())[group]["steps"]


def enough(method, least=20):
    """Something happened in every group: without this an equality test could pass with the reset commented out."""
    assert all(count >= least for count in replaced(method).values()), replaced(method)
