"""Which forwards are traced: several where one does not show all, and no part that computed nothing; in linear time."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.units.trace import trace
from tests.units.trace.test_tracing import Net

CALLS: list[Tensor] = []  # global, so that it is not put back


class Skipping(nn.Module):
    """Residual blocks that are skipped at random in training (LayerDrop)."""

    def __init__(self, draw: Callable[[], float], blocks: int, share: float) -> None:
        super().__init__()
        self.draw, self.share = draw, share
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 2)
        self.up = nn.ModuleList(nn.Linear(8, 6) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(6, 8) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            if not self.training or self.draw() >= self.share:
                h = h + down(torch.relu(up(h)))
        return self.leave(h)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@pytest.mark.parametrize(
    "draw",
    [lambda: float(torch.rand(())), random.random, lambda: np.random.random()],  # noqa: NPY002
    ids=["torch", "python", "numpy"],
)
def test_layers_that_are_skipped_at_random_are_all_found(draw: Callable[[], float]) -> None:
    for seed in range(5):
        seed_all(seed)
        states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        model, x = Skipping(draw, blocks=10, share=0.5), torch.randn(4, 5)
        plan = trace(model, x, residual=True)
        assert [row.group.name for row in plan.rows] == ["enter", *(f"up.{number}" for number in range(10))]
        stream = plan.rows[0].group
        assert len(stream.outgoing) == 11  # read by every block and by the last layer, whichever ran when
        assert not plan.unreached
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_training_with_layers_that_are_skipped_goes_on() -> None:
    torch.manual_seed(0)
    model = Skipping(lambda: float(torch.rand(())), blocks=6, share=0.3)
    optimizer = torch.optim.Adam(model.parameters())
    cbp = pliant.ContinualBackprop(
        model, optimizer, example_inputs=torch.randn(4, 5), replacement_rate=0.1, maturity_threshold=2, seed=0
    )
    for x in torch.randn(80, 4, 5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert len(cbp.stats()) == 6
    assert all(sum(row["replaced"]) >= 20 for row in cbp.stats().values())


def test_a_model_without_random_numbers_is_run_once() -> None:
    CALLS.clear()

    def forward(net: Any, x: Tensor) -> Tensor:
        CALLS.append(x)
        return net.b(torch.relu(net.a(x)))

    trace(Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2), unused=nn.Linear(2, 2)), torch.zeros(2, 3), trial=False)
    assert len(CALLS) == 1


def test_a_state_in_an_attribute_is_followed_to_what_reads_it_in_the_next_forward() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x) if net.state is None else net.a(x) + net.u(net.state)
        net.state = torch.tanh(h)
        return net.b(net.state)

    model = Net(forward, a=nn.Linear(3, 4), u=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 2))
    model.state = None
    (row,) = trace(model, torch.randn(2, 3)).rows
    assert (row.group.kind, {part.parameter for part in row.group.outgoing}) == ("recurrent", {"u.weight", "b.weight"})
    assert model.state is None


def test_a_buffer_that_the_forward_gives_its_size_is_no_statistic_of_the_model_as_it_is() -> None:
    """Observers of quantization-aware training start empty."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.relu(net.a(x))
        if net.low.numel() == 0:
            net.low.resize_(8)
        net.low.copy_(h.detach().amin(0))
        return net.b(h)

    model = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    model.register_buffer("low", torch.empty(0))
    (row,) = trace(model, torch.randn(4, 5)).rows
    assert (row.units, row.group.affine) == (8, [])
    assert model.low.shape == (0,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pliant.ContinualBackprop(model, optimizer, example_inputs=torch.randn(4, 5), seed=0)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    assert model.low.shape == (8,)


# -- what computed nothing ------------------------------------------------------------------------------------------


def nothing_added(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.relu(net.a(x)))


EMPTY: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], nn.Module]]]] = {
    "a weight without rows": (
        lambda net, x: net.b(torch.cat([torch.relu(net.a(x)), net.none(x)], 1)),
        {"none": lambda: nn.Linear(3, 0)},
    ),
    "a weight without columns": (
        lambda net, x: nothing_added(net, x) + net.none(x[:, :0]),
        {"none": lambda: nn.Linear(0, 2)},
    ),
    "a sum over nothing": (
        lambda net, x: nothing_added(net, x) + net.none(torch.zeros(2, 0, dtype=torch.long)).sum(1),
        {"none": lambda: nn.Embedding(3, 2)},
    ),
    "attention to nothing": (
        lambda net, x: nothing_added(net, x) + net.none(x[None], x[None, :0], x[None, :0])[0][0, :, :2],
        {"none": lambda: nn.MultiheadAttention(3, 1, batch_first=True)},
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors_end_no_trace(name: str) -> None:
    forward, more = EMPTY[name]
    with warnings.catch_warnings(action="ignore"):
        model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2), **{key: make() for key, make in more.items()})
    plan = trace(model, torch.randn(2, 3))
    assert [(row.group.name, row.units) for row in plan.rows] == [("a", 4)]
    assert not plan.verify(model, torch.randn(2, 3)).wrong


def test_an_adaptive_softmax_with_an_empty_cluster_is_trained() -> None:
    with warnings.catch_warnings(action="ignore"):
        head = nn.AdaptiveLogSoftmaxWithLoss(12, 20, [4, 10])  # the last cluster has 12 // 16 features
    model = Net(lambda net, x: net.head.log_prob(torch.relu(net.a(x))), a=nn.Linear(8, 12), head=head)
    plan = trace(model, torch.randn(6, 8))
    assert [row.group.name for row in plan.rows] == ["a", "head.tail.0.0"]
    assert {line.reason for line in plan.skipped if "head.tail.1.0.weight" in line.parameters} == {"has no entries"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pliant.ContinualBackprop(model, optimizer, example_inputs=torch.randn(6, 8), seed=0)
    model(torch.randn(6, 8)).square().mean().backward()  # with an empty gradient
    optimizer.step()


def test_an_expert_without_tokens_never_ran() -> None:
    """What it reads is not known, so it must not pass for a consumer that reads no unit."""
    chosen = torch.zeros(0, dtype=torch.long)

    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.relu(net.a(x))
        return net.b(h).index_add(0, chosen, net.expert(h[chosen]))

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2), expert=nn.Linear(4, 2))
    assert trace(model, torch.randn(2, 3)).unreached == ("expert.weight", "expert.bias")


def test_example_inputs_without_an_example_are_named() -> None:
    with pytest.raises(ValueError, match=r"example_inputs holds no example, its shape is \(0, 3\): give at least one"):
        trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(0, 3))


# -- reasons --------------------------------------------------------------------------------------------------------


def test_what_tied_the_rows_of_a_weight_is_named_though_no_set_of_its_own_rows_is() -> None:
    """A depthwise weight whose channels meet a number that the rows of another weight share."""

    def forward(net: Any, x: Tensor) -> Tensor:
        context, gate = net.a(x).split((4, 1), 1)
        return net.c(torch.relu(net.depthwise(context)) * gate)

    model = Net(forward, a=nn.Conv2d(3, 5, 1), depthwise=nn.Conv2d(4, 4, 1, groups=4), c=nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="all units mixed by aten::mul in ''"):
        trace(model, torch.randn(2, 3, 4, 4))


# -- scripted parts -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ["script", "trace"])
def test_units_in_front_of_a_scripted_part_are_replaced_and_those_in_it_left_alone(make: str) -> None:
    torch.manual_seed(0)
    part: nn.Module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
    scripted = torch.jit.script(part) if make == "script" else torch.jit.trace(part, torch.randn(4, 8))
    model = Net(lambda net, x: net.o(net.s(torch.relu(net.a(x)))), a=nn.Linear(5, 8), s=scripted, o=nn.Linear(8, 3))
    model.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    x = torch.randn(4, 5)
    plan = trace(model, x)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [(row.group.name, [part.parameter for part in row.group.outgoing]) for row in plan.rows] == [
        ("a", ["s.0.weight"])
    ]
    assert "'s.0.weight' is in a part made by torch.jit" in str(plan)
    assert not plan.verify(model, x).wrong
    model.train()
    optimizer = torch.optim.Adam(model.parameters())
    cbp = pliant.ContinualBackprop(
        model, optimizer, example_inputs=x, replacement_rate=0.1, maturity_threshold=2, seed=0
    )
    for batch in torch.randn(60, 4, 5):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    assert sum(cbp.stats()["a"]["replaced"]) >= 20


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_scripted_part_is_a_constant() -> None:
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()))
    model = Net(
        lambda net, x: net.d(torch.relu(net.c(net.s(net.a(x))))),
        a=nn.Linear(5, 8),
        s=frozen,
        c=nn.Linear(8, 6),
        d=nn.Linear(6, 2),
    )
    plan = trace(model, torch.randn(4, 5))
    assert [row.group.name for row in plan.rows] == ["c"]


# -- time -----------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Summed branches around a batch norm of the stream itself, as in RepVGG and MobileOne."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(3))
        self.dense = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(x) + sum(branch(x) for branch in self.depthwise))
        return torch.relu(x + sum(branch(x) for branch in self.dense))


def test_the_work_of_tracing_grows_with_the_length_of_the_forward_and_no_faster() -> None:
    def calls(blocks: int) -> int:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), *(Branches(8) for _ in range(blocks)), nn.Conv2d(8, 2, 1))
        count = 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            plan = trace(model, torch.randn(2, 3, 4, 4), trial=False, residual=True)
        finally:
            sys.setprofile(None)
        assert plan.rows[0].units == 8
        return count

    calls(1)  # imports
    assert calls(16) < 2.2 * calls(8)  # 4 times where each operation looks at every block before it


def test_tracing_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch, pliant; from torch import nn; loaded = set(sys.modules)\n"
        "pliant.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules], len(set(sys.modules) - loaded) < 200)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[] True\n"
