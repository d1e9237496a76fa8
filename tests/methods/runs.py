"""Networks in training with methods of the grid (`promises.py`), and what tells two of them apart."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.testing import assert_close

from tests.networks import batch, convnet, enough, mlp, recurrent, transformer

STEPS = 32  # enough for 20 replacements among five units

NETWORKS = {  # how it is built, and the shape of an example
    "mlp": (mlp, (6,)),
    "convnet": (convnet, (2, 8, 8)),
    "transformer": (transformer, (4, 6)),
    "recurrent": (recurrent, (3, 6)),
}

OPTIMIZERS = {
    "momentum": lambda parameters, **also: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **also),
    "adam": lambda parameters, **also: torch.optim.Adam(parameters, lr=0.003, **also),
    "adamw": lambda parameters, **also: torch.optim.AdamW(parameters, lr=0.003, **also),
}


@dataclass(frozen=True, eq=False)
class Cell:
    method: Any  # a row of `promises.METHODS`
    network: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.method.name}, {self.network}, {self.optimizer}"


class Run:
    """A network in training, with the methods of a cell or without any."""

    def __init__(
        self,
        cell,
        methods=None,  # rows, in the order in which they are built; None: the cell's
        *,
        off=False,
        dtype=torch.float32,
        device="cpu",
        initial=0,
        split=False,  # the first layers have one optimizer, the others another
        wrap=lambda model: model,
        apart=False,  # no example depends on the others of its batch
        fused=False,
        **settings,
    ):
        build, self.shape = NETWORKS[cell.network]
        self.dtype, self.device = dtype, device
        self.inner = build(seed=initial).to(device=device, dtype=dtype)
        if apart:
            examples_apart(self.inner)
        self.model = wrap(self.inner)
        layers = {name: [*child.parameters()] for name, child in self.inner.named_children() if [*child.parameters()]}
        self.first_layers = [*layers][: len(layers) // 2]
        parts = [[], []] if split else [[]]
        for name, parameters in layers.items():
            parts[0 if name in self.first_layers else -1].extend(parameters)
        kinds = [cell.optimizer, *(name for name in OPTIMIZERS if name != cell.optimizer)]
        also = {"fused": True} if fused else {}
        self.optimizers = [OPTIMIZERS[kind](part, **also) for kind, part in zip(kinds, parts, strict=False)]
        given = self.optimizers if split else self.optimizers[0]
        x = torch.zeros(2, *self.shape, dtype=dtype, device=device)
        self.methods = []
        for row in [cell.method] if methods is None else methods:
            mine = row is cell.method
            changed = {**row.settings, **(row.off if off and mine else {}), **(settings if mine else {})}
            self.methods.append(row.build(self.model, given, x, **changed))

    def batch(self, number, size=8):
        return [each.to(device=self.device, dtype=self.dtype) for each in batch(number, self.shape, size)]

    def loss(self, x, y, model=None):
        return nn.functional.mse_loss((model or self.model)(x), y)

    def train(self, numbers, step=None, after=lambda: None):
        """One optimizer step for each number, each on its own batch."""
        for number in numbers:
            torch.manual_seed(number)  # dropout
            (step or one_step)(self, number)
            after()
        return self

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self, number):
        """The second optimizer, where there are two, steps every second time."""
        for optimizer in self.optimizers if number % 2 else self.optimizers[:1]:
            optimizer.step()
        self.tick()

    def tick(self):
        for method in self.methods:
            if hasattr(method, "tick"):
                method.tick([other for other in self.methods if other is not method])

    def parts(self):
        return [self.inner, *self.optimizers, *self.methods]

    def save(self):
        saved = io.BytesIO()
        torch.save([each.state_dict() for each in self.parts()], saved)
        return saved.getvalue()

    def load(self, saved):
        for each, state in zip(self.parts(), torch.load(io.BytesIO(saved), weights_only=True), strict=False):
            each.load_state_dict(state)
        return self


def one_step(run, number):
    x, y = run.batch(number)
    run.zero_grad()
    run.loss(x, y).backward()
    run.step(number)


def examples_apart(model):
    """Batch norms and dropout as in evaluation, so that what becomes of an example does not depend on the others."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.eval()


def plain(cell, **how):
    return Run(cell, [], **how).train(range(STEPS))


@lru_cache(maxsize=64)
def plain_weights(network, optimizer):
    return plain(Cell(None, network, optimizer)).inner.state_dict()


def acted(run, other):
    """Something happened: without this an equality could hold with the method commented out. `other` is without it."""
    for method in run.methods:
        if hasattr(method, "stats"):
            enough(method)
    other = other if isinstance(other, dict) else other.inner.state_dict()
    own = dict(run.inner.named_parameters())
    assert any(not torch.equal(own[name], other[name]) for name in own), "nothing happened"
    assert all(each.isfinite().all() for each in own.values())


def acted_at_all(run, cell):
    acted(run, plain_weights(cell.network, cell.optimizer))


def differences(first, second, path=""):
    """Where two states differ, to the bit."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = {*first, *second}
        missing = [f"{path}/{key}" for key in keys if (key in first) != (key in second)]
        both = [key for key in first if key in second]
        return missing + [each for key in both for each in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [each for place, pair in pairs for each in differences(*pair, f"{path}/{place}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        alike = (first.dtype, first.device, first.shape) == (second.dtype, second.device, second.shape)
        return [] if alike and torch.equal(first.nan_to_num(), second.nan_to_num()) else [path]
    return [] if type(first) is type(second) and first == second else [path]


def same(first, second):
    """The same networks and optimizers."""
    pairs = zip([first.inner, *first.optimizers], [second.inner, *second.optimizers], strict=True)
    assert differences(*zip(*((a.state_dict(), b.state_dict()) for a, b in pairs), strict=True)) == []


def same_methods(first, second, but=()):
    """Equal states, but for the names in `but`."""
    for a, b in zip(first.methods, second.methods, strict=True):
        one, other = ({name: held for name, held in each.state_dict().items() if name not in but} for each in (a, b))
        assert differences(one, other) == []


def alike(first, second, rtol=1e-7, atol=1e-9):
    """The same replacements, and the same parameters but for rounding in float64."""
    assert_close(weights(first), weights(second), rtol=rtol, atol=atol)
    for a, b in zip(first.methods, second.methods, strict=True):
        if hasattr(a, "stats"):
            assert a.stats() == b.stats()


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.inner.parameters()])
