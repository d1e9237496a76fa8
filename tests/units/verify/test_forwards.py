"""What else a forward meets, and what it leaves behind: neither changes a verdict."""

import random
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pliant.units import BN, Slice, Tap, UnitGroup
from pliant.units.trace import trace
from pliant.units.verify.probe import Probe
from tests.units.verify.tried import Net, examples, hidden, mlp, only, plan


@dataclass
class Tables:
    whole: torch.Tensor
    order: torch.Tensor


@dataclass(slots=True)
class Slotted:
    table: torch.Tensor


def plain(make, use):
    """A net whose forward takes a matrix product (which takes no two types) with what `use` finds in what `make` left."""

    def run(net, x):
        return net.b(torch.relu(net.a(x @ torch.diag(use(net.kept).expand(10)))))

    net = Net(run, a=nn.Linear(10, 8), b=nn.Linear(8, 3))
    net.kept = make()
    return net


TABLE = 1.0 + examples(10).square()


CONSTANTS = {
    "attribute": plain(lambda: TABLE, lambda kept: kept),
    "list": plain(lambda: [TABLE], lambda kept: kept[0]),
    "dict of tuples": plain(lambda: {"a": (TABLE,)}, lambda kept: kept["a"][0]),
    "dataclass with integers": plain(
        lambda: Tables(TABLE, torch.arange(9, -1, -1)), lambda kept: kept.whole[kept.order]
    ),
    "slots": plain(lambda: Slotted(TABLE), lambda kept: kept.table),
    "plain object": plain(lambda: SimpleNamespace(t=TABLE), lambda kept: kept.t),
    "function": plain(lambda: lambda: TABLE, lambda kept: kept()),
    "partial": plain(lambda: partial(torch.mul, TABLE), lambda kept: kept(2.0)),
    "half": plain(lambda: TABLE.half(), lambda kept: kept),
    "bfloat16 list": plain(lambda: [TABLE.bfloat16()], lambda kept: kept[0]),
    "complex": plain(lambda: torch.polar(TABLE, TABLE), lambda kept: torch.view_as_real(kept).sum(-1)),
    "array": plain(lambda: TABLE.numpy(), lambda kept: torch.from_numpy(kept)),
    "array through a cast": plain(lambda: TABLE.numpy(), lambda kept: torch.as_tensor(kept, dtype=torch.float32)),
    "scalars": plain(lambda: [TABLE[0], TABLE[1]], lambda kept: torch.stack(kept).sum()),
    "view of another": plain(lambda: (TABLE, TABLE[:1]), lambda kept: kept[1] * kept[0]),
    "history": plain(lambda: [TABLE.clone().requires_grad_() * 2.0], lambda kept: kept[0]),
    "made in the forward": plain(lambda: None, lambda kept: torch.arange(1, 11, dtype=torch.float32) + torch.ones(10)),
    "legacy types": plain(lambda: TABLE, lambda kept: torch.FloatTensor([2.0]) * kept.type(torch.FloatTensor)),
    "legacy type by name": plain(lambda: TABLE, lambda kept: kept.type("torch.HalfTensor").type_as(kept)),
    "its own type": plain(lambda: TABLE, lambda kept: torch.full((10,), 2.0, dtype=kept.dtype).to(kept)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_that_are_no_buffers_are_long_in_the_copy(name):
    net, x = CONSTANTS[name], examples(4, 10)
    group = UnitGroup("a", [Slice("a.weight", 0), Slice("a.bias", 0)], [Slice("b.weight", 1)], Tap("b"))
    row = only(net, group, x)
    assert row.verdict == "exact", row.why
    assert all(each.dtype == torch.float64 for each in Probe(net, x).outputs())


def test_a_complex_network_stays_complex_and_is_long():
    net = Net(
        lambda net, x: torch.view_as_real(x * net.turn).flatten(1),
        turn=nn.Parameter(torch.randn(3, dtype=torch.complex64)),
    )
    net.register_buffer("also", torch.randn(3, dtype=torch.complex64))
    copy = Probe(net, examples(4, 3)).model
    assert (copy.turn.dtype, copy.also.dtype) == (torch.complex128, torch.complex128)


def test_autocast_within_the_forward_changes_nothing():
    def run(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = net.fc(x)
        return net.out(F.relu(h.to(net.fc.weight.dtype)))

    net = Net(run, fc=nn.Linear(4, 8), out=nn.Linear(8, 2))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert only(net, group, examples(4, 4)).verdict == "exact"


def stateful(advance, **state):
    """A net whose forward calls `advance(net, h)` on its hidden activity, and adds what it returns to the output."""
    net = Net(
        lambda net, x: net.b(torch.relu(net.a(x))) + advance(net, net.a(x)), a=nn.Linear(10, 8), b=nn.Linear(8, 5)
    )
    for name, value in state.items():
        net.register_buffer(name, value) if type(value) is torch.Tensor else setattr(net, name, value)
    return net


def count_calls(net, h):
    net.calls += 1
    return net.calls


def count_in_list(net, h):
    net.seen.append(1)
    return float(len(net.seen))


def count_in_dict(net, h):
    net.seen["calls"] = net.seen.get("calls", 0) + 1
    return net.seen["calls"]


def count_in_object(net, h):
    net.seen.calls += 1
    return net.seen.calls


def count_in_slots(net, h):
    net.seen.table = net.seen.table + 1.0
    return net.seen.table


def fill_buffer(net, h):
    net.queue[1:] = net.queue[:-1].clone()
    net.queue[0] += 1.0
    return net.queue.sum()


def rebind_buffer(net, h):
    net.queue = net.queue + 1.0
    return net.queue.sum()


def write_attribute(net, h):
    net.kept[0].add_(1.0)
    return net.kept[0].sum()


def draw(net, h):
    return torch.rand(5, generator=net.generator) + net.numpy.random() + net.python.random()


def draw_globally(net, h):
    return torch.rand(5) + np.random.rand() + random.random()  # noqa: NPY002


def cell():
    calls = 0

    def advance(net, h):
        nonlocal calls
        calls += 1
        return calls

    return advance


def write_data(net, h):
    net.scale.data.mul_(1.5)  # has no version
    net.queue.data.add_(1.0)
    return net.scale.sum() + net.queue.sum()


def write_parameter(net, h):
    with torch.no_grad():
        net.scale.mul_(1.5)
    return net.scale.sum()


STATES = {
    "counter": stateful(count_calls, calls=0),
    "list": stateful(count_in_list, seen=[]),
    "dict": stateful(count_in_dict, seen={}),
    "object": stateful(count_in_object, seen=SimpleNamespace(calls=0)),
    "slots": stateful(count_in_slots, seen=Slotted(torch.zeros(5))),
    "buffer": stateful(fill_buffer, queue=torch.zeros(4)),
    "buffer that is bound anew": stateful(rebind_buffer, queue=torch.zeros(4)),
    "plain tensor in a list": stateful(write_attribute, kept=[torch.zeros(4)]),
    "generators of its own": stateful(
        draw, generator=torch.Generator().manual_seed(0), numpy=np.random.default_rng(0), python=random.Random(0)
    ),
    "random numbers of everyone": stateful(draw_globally),
    "closure": stateful(cell()),
    "parameter": stateful(write_parameter, scale=nn.Parameter(torch.ones(3))),
    "data": stateful(write_data, scale=nn.Parameter(torch.ones(3)), queue=torch.zeros(4)),
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_forward_leaves_in_the_model_is_put_back_before_the_next(name):
    net, x = STATES[name], examples(4, 10)
    probe = Probe(net, x)
    first = probe.outputs()
    assert all(torch.equal(first[0], probe.outputs()[0]) for _ in range(3))


def test_state_between_calls_is_put_back():
    def run(net, x):
        net.h = net.cell(F.relu(net.fc(x)), None if net.h is None else net.h.detach())
        return net.out(net.h)

    net = Net(run, fc=nn.Linear(6, 7), cell=nn.GRUCell(7, 8), out=nn.Linear(8, 3))
    net.h = None
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("cell.weight_ih", 1)], Tap("cell"))
    assert only(net, group, examples(4, 6)).verdict == "exact"
    assert net.h is None


def test_rows_that_an_embedding_shrinks_are_shrunk_in_every_pass():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.out(F.relu(net.fc(net.words(x)))),
        words=nn.Embedding(9, 6, max_norm=0.5), fc=nn.Linear(6, 7), out=nn.Linear(7, 3),
    )  # fmt: skip
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    before = net.words.weight.clone()
    assert only(net, group, torch.arange(9)).verdict == "exact"
    assert torch.equal(before, net.words.weight)


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_one_example_without_a_batch_is_enough(shape):
    assert only(mlp(), hidden(), examples(*shape)).verdict == "exact"
    assert only(mlp(), hidden(incoming=[Slice("0.weight", 0)]), examples(*shape)).verdict == "wrong"


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_checkpoints_change_nothing(reentrant, tokens):
    def run(net, x):
        h = net.first(x)
        return net.out(checkpoint(net.body, h, use_reentrant=reentrant))

    body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
    first = nn.Embedding(9, 6) if tokens else nn.Linear(4, 6)
    net = Net(run, first=first, body=body, out=nn.Linear(8, 3))
    x = torch.arange(9) if tokens else examples(9, 4)
    found = trace(net, x).verify(net, x)
    assert {row.group.name for row in found.rows} >= {"body.0", "body.2"}
    assert {row.verdict for row in found.rows} == {"exact"}
    assert min(row.alive for row in found.rows) > 0.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_the_verdict_is_the_same_in_every_mode(mode):
    net, x = mlp(nn.BatchNorm1d(8)), examples(4, 4)
    right, forgetful = hidden("3", affine=[BN("1")]), hidden("3")
    outside = [str(plan(net, group).verify(net, x)) for group in (right, forgetful)]
    with mode():
        inside = [str(plan(net, group).verify(net, examples(4, 4))) for group in (right, forgetful)]
    assert inside == outside
    assert ["exact" in each for each in inside] == [True, False]


def test_inputs_made_in_inference_mode_are_as_good_as_others():
    with torch.inference_mode():
        x = examples(4, 4)
    net = mlp()
    assert [row.group.name for row in trace(net, x).rows] == ["0"]
    assert only(net, hidden(), x).verdict == "exact"


def test_a_backward_written_by_hand_may_ask_for_the_gradients_of_all_parameters():
    """A reversible block computes its forward again, and differentiates it with respect to whatever it trains."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, block, *parameters):
            ctx.save_for_backward(x)
            ctx.block = block
            return block(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_(True), *ctx.block.parameters()]
                of_x, *others = torch.autograd.grad(ctx.block(inputs[0]), inputs, gradient)
            return of_x, None, *others

    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
    net = Net(
        lambda net, x: net.head(Again.apply(torch.relu(net.first(x)), net.block, *net.block.parameters())),
        first=nn.Linear(3, 5), block=block, head=nn.Linear(5, 2),
    )  # fmt: skip
    x = torch.randn(4, 3)
    plan = trace(net, x)
    assert [group.name for group in plan.groups] == ["first", "block.0", "block.2"]
    assert {row.verdict for row in plan.verify(net, x).rows} == {"exact"}
