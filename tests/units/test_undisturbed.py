"""A model that is run to look at it is afterwards as it was, whatever it keeps between calls and wherever it keeps it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.units.undisturbed import undisturbed


@dataclass
class Cache:
    keys: list[Tensor] = field(default_factory=list[Tensor])
    length: int = 0


class Slotted:
    __slots__ = ("hidden", "unset")

    def __init__(self) -> None:
        self.hidden: Tensor | None = None


class Stateful(nn.Module):
    """Keeps the example, or something of it, in every kind of place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("observed", torch.empty(0))
        self.register_buffer("grown", torch.ones(2))
        self.register_buffer("missing", None)
        self.plain = torch.zeros(3)
        self.moved = torch.zeros(3)
        self.hidden: Tensor | None = None
        self.calls = 0
        self.history: list[Tensor] = [torch.zeros(3)]
        self.recent: deque[int] = deque([1, 2], maxlen=2)
        self.names = {"first"}
        self.cache, self.slotted = Cache(), Slotted()
        self.nested = {"states": [torch.zeros(3), {"deep": torch.zeros(3)}]}
        self.array = np.zeros(3)
        self.generators = torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)
        self.aside = [nn.BatchNorm1d(3)]  # no submodule
        self.add = partial(self._add, amount=torch.zeros(1))

    def _add(self, amount: Tensor) -> None:
        amount += 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.aside[0](self.norm(self.layer(x)))
        mean = h.detach().mean(0)
        if self.observed.numel() == 0:
            self.observed.resize_(3)
        self.observed.copy_(mean)
        self.grown = torch.cat([self.grown, mean])
        self.missing = mean
        self.plain += mean
        self.moved.data = mean.clone()
        self.hidden, self.later = mean, mean
        self.calls += 1
        self.history.append(mean)
        self.history[0] = mean
        self.recent.append(3)
        self.names.add("second")
        self.cache.keys.append(mean)
        self.cache.length += 1
        self.slotted.hidden = mean
        self.nested["states"][0] += mean
        self.nested["states"][1]["deep"].zero_().add_(1)
        self.array += 1
        own, python, new, old = self.generators
        torch.randn(1, generator=own), python.random(), new.random(), old.random_sample()
        self.add()
        with torch.no_grad():
            self.layer.weight.clamp_(-0.01, 0.01)
            self.layer.bias.data = self.layer.bias.data + 1
        self.extra = nn.Linear(3, 3)  # a submodule that the first forward makes
        return F.batch_norm(h, self.plain, self.plain.clone().abs() + 1, training=True)


def everything(model: Stateful) -> list[str]:
    """All that the model holds, by value; tensors with their shapes."""
    own, python, new, old = model.generators
    held = [*model.state_dict().items(), ("plain", model.plain), ("moved", model.moved)]
    held += [("nested", model.nested["states"][0]), ("deep", model.nested["states"][1]["deep"])]
    held += [
        ("history", model.history[0]),
        ("aside", model.aside[0].running_mean),
        ("partial", model.add.keywords["amount"]),
    ]
    found = [
        *((name, tuple(each.shape), each.tolist()) for name, each in held),
        sorted(vars(model)),
        sorted(model._modules),
        (model.hidden, model.calls, len(model.history), list(model.recent), model.names, model.missing),
        (model.cache.keys, model.cache.length, model.slotted.hidden, model.array.tolist()),
        (own.get_state().tolist(), python.getstate(), new.bit_generator.state, old.get_state()[1].tolist()),
    ]
    return [str(each) for each in found]


def test_everything_that_a_forward_changes_is_put_back() -> None:
    torch.manual_seed(0)
    model = Stateful()
    before = everything(model)
    model(torch.randn(4, 3))
    changed = everything(model)
    assert sum(a not in before for a in changed) >= 18  # what is tested is there
    torch.manual_seed(0)
    model = Stateful()
    held = {name: id(each) for name, each in model.state_dict(keep_vars=True).items()}
    for _ in range(2):
        with undisturbed(model):
            model(torch.randn(4, 3))
            model(torch.randn(4, 3))
    assert everything(model) == before
    assert {name: id(each) for name, each in model.state_dict(keep_vars=True).items()} == held  # the same objects
    assert model.observed.untyped_storage().nbytes() == 0
    model(torch.randn(5, 3))  # another batch


def test_what_fails_is_put_back_too() -> None:
    model = Stateful()
    before = everything(model)
    with pytest.raises(RuntimeError, match="shapes"), undisturbed(model):
        model(torch.randn(4, 3) @ torch.randn(3, 2))
    assert everything(model) == before


def test_parameters_that_nothing_writes_keep_their_versions() -> None:
    """Or a backward pass through a forward from before would be refused."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loss = model(torch.randn(5, 3)).sum()
    versions = [parameter._version for parameter in model.parameters()]
    with undisturbed(model):
        model(torch.randn(5, 3))
    assert [parameter._version for parameter in model.parameters()] == versions
    loss.backward()


def test_state_behind_a_hook_of_the_user_is_put_back() -> None:
    model, seen = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), list[Tensor]()
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with undisturbed(model):
        model(torch.randn(2, 3))
        assert len(seen) == 1
    assert seen == []


def test_a_read_only_holder_that_does_not_change_is_not_written() -> None:
    @dataclass(frozen=True, slots=True)
    class Settings:
        width: int

    model = nn.Linear(2, 2)
    model.settings, model.table = Settings(3), np.zeros(3)  # pyright: ignore[reportAttributeAccessIssue]
    model.table.flags.writeable = False  # pyright: ignore[reportAttributeAccessIssue]
    with undisturbed(model):
        model(torch.zeros(1, 2))
