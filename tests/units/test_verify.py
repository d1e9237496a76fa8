"""A right group is exact; every way to get one wrong is found out."""

import random
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pliant.units import BN, AffineEntry, Slice, Tap, UnitGroup, UnitMap, chain_groups
from pliant.units.bound import BoundGroup
from pliant.units.trace import trace
from pliant.units.verify.probe import Probe
from pliant.units.verify.products import Products
from pliant.units.verify.trial import separating_sets


def plan(net, *groups):
    return UnitMap([BoundGroup(group, net).plan_row(hand_over=True) for group in groups])


def only(net, group, x, **options):
    (row,) = plan(net, group).verify(net, x, **options).rows
    return row


def mlp(*between, units=8, head=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, units), *between, nn.ReLU(), nn.Linear(units, head))


def hidden(consumer="2", **changes):
    group = UnitGroup("0", [Slice("0.weight", 0), Slice("0.bias", 0)], [Slice(f"{consumer}.weight", 1)], Tap(consumer))
    return replace(group, **changes)


def examples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def shifted(units, by=1):
    return tuple(((unit + by) % units,) for unit in range(units))


class Net(nn.Module):
    """Named parts and a forward pass that is a function of the net and its inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        torch.manual_seed(0)
        for name, part in parts.items():
            setattr(self, name, part() if isinstance(part, type(lambda: 0)) else part)
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


def test_groups_of_an_mlp_and_a_convnet_are_exact():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 2)),
    )
    found = plan(net, *chain_groups(net)).verify(net, examples(2, 2, 8, 8))
    assert [row.verdict for row in found.rows] == ["exact"] * 3
    assert all(row.moved == 0.0 and row.shown > 0.01 and row.alive > 0.5 for row in found.rows)
    assert found.wrong == found.vacuous == []
    found.raise_if_wrong()


def test_outgoing_weights_of_the_neighbor_are_wrong():
    row = only(mlp(), hidden(outgoing=[Slice("2.weight", 1, index=shifted(8))]), examples(4, 4))
    assert row.verdict == "wrong"
    assert row.moved > 0.01
    assert "something else reads it" in row.why


@pytest.mark.parametrize("swapped", [(0, 1), (3, 7), (2, 5)])
def test_two_units_that_are_swapped_are_told_apart_among_many(swapped):
    order = list(range(64))
    order[swapped[0]], order[swapped[1]] = swapped[1], swapped[0]
    index = tuple((unit,) for unit in order)
    row = only(
        mlp(units=64), hidden(outgoing=[Slice("2.weight", 1, index=index)], tap=Tap("2", index=index)), examples(4, 4)
    )
    assert row.verdict == "wrong"


def two_heads():
    def run(net, x):
        h = F.relu(net.trunk(x))
        return net.actor(h), net.critic(h)

    return Net(run, trunk=nn.Linear(4, 8), actor=nn.Linear(8, 3), critic=nn.Linear(8, 1))


def trunk(*readers):
    incoming = [Slice("trunk.weight", 0), Slice("trunk.bias", 0)]
    return UnitGroup("trunk", incoming, [Slice(f"{reader}.weight", 1) for reader in readers], Tap(readers[0]))


def test_a_forgotten_consumer_is_wrong():
    assert only(two_heads(), trunk("actor", "critic"), examples(4, 4)).verdict == "exact"
    assert "something else reads it" in only(two_heads(), trunk("actor"), examples(4, 4)).why


@pytest.mark.parametrize("forgotten", ["bias", "norm"])
def test_a_forgotten_bias_or_norm_is_wrong(forgotten):
    net = mlp(nn.BatchNorm1d(8))
    whole = hidden("3", affine=[BN("1")])
    incomplete = {
        "bias": replace(whole, incoming=[Slice("0.weight", 0)]),
        "norm": replace(whole, affine=[]),
    }[forgotten]
    assert only(net, whole, examples(4, 4)).verdict == "exact"
    row = only(net, incomplete, examples(4, 4))
    assert row.verdict == "wrong"
    assert {"bias": "'0.bias'", "norm": "'1.weight'"}[forgotten] in row.why


def test_a_forgotten_gate_is_wrong():
    def run(net, x):
        return net.down(F.silu(net.gate(x)) * net.up(x))

    net = Net(run, gate=nn.Linear(4, 8, bias=False), up=nn.Linear(4, 8, bias=False), down=nn.Linear(8, 2))
    both = [Slice("gate.weight", 0), Slice("up.weight", 0)]
    group = UnitGroup("gate", both, [Slice("down.weight", 1)], Tap("down"))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    assert "'gate.weight'" in only(net, replace(group, incoming=both[1:]), examples(4, 4)).why


def test_a_parameter_that_does_not_read_the_units_is_too_much():
    def run(net, x):
        return net.out(F.relu(net.fc(x))) + net.other(torch.cat([x, x], 1))

    net = Net(run, fc=nn.Linear(4, 8), out=nn.Linear(8, 2), other=nn.Linear(8, 2))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    row = only(net, replace(group, outgoing=[*group.outgoing, Slice("other.weight", 1)]), examples(4, 4))
    assert row.verdict == "wrong"
    assert "other.weight[:, i] does not read these units" in row.why


def test_a_single_column_too_much_is_found():
    def run(net, x):
        return net.out(torch.cat([F.relu(net.fc(x)), x], 1))

    net = Net(run, fc=nn.Linear(4, 4), out=nn.Linear(8, 2))
    index = ((0, 4), (1, 5), (2, 6), (3, 7))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1, 2, index)], ())
    row = only(net, group, examples(4, 4))
    assert row.verdict == "wrong"
    assert "position 1 of out.weight[:, (0, 4), ..] that unit 0 owns reads something else" in row.why


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(8), lambda: nn.GroupNorm(2, 8), lambda: nn.RMSNorm(8)])
def test_a_norm_over_units_is_approximate_and_its_size_is_told(norm):
    net = mlp(norm())
    affine = [AffineEntry(Slice("1.weight", 0), 1.0)]
    shift = [Slice("1.bias", 0)] if hasattr(net[1], "bias") else []
    group = hidden("3", affine=affine, kind="approximate")
    group = replace(group, incoming=[*group.incoming, *shift])
    row = only(net, group, examples(4, 4))
    assert row.verdict == "approximate"
    assert 0.001 < row.moved < 2.0
    assert "its kind is 'approximate'" in only(net, replace(group, kind="exact"), examples(4, 4)).why
    mutated = replace(group, outgoing=[Slice("3.weight", 1, index=shifted(8))])
    assert only(net, mutated, examples(4, 4)).verdict == "wrong"


def test_a_consumer_that_is_multiplied_by_zero_proves_nothing():
    net = nn.Sequential(*mlp(), nn.Threshold(torch.inf, 0.0))
    row = only(net, hidden(), examples(4, 4))
    assert row.verdict == "vacuous"
    assert plan(net, hidden()).verify(net, examples(4, 4)).vacuous == [row]


def test_behind_a_zero_head_a_wrong_group_is_still_wrong():
    net = mlp()
    nn.init.zeros_(net[2].weight)
    assert only(net, hidden(), examples(4, 4)).verdict == "exact"
    assert only(net, hidden(outgoing=[Slice("2.weight", 1, index=shifted(8))]), examples(4, 4)).verdict == "wrong"


def recurrent(cell):
    def run(net, x):
        return net.head(net.rnn(x)[0])

    net = Net(run, rnn=cell(3, 5), head=nn.Linear(5, 2))
    gates = net.rnn.weight_hh_l0.shape[0] // 5
    index = tuple(tuple(range(unit, 5 * gates, 5)) for unit in range(5))
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
    incoming = [Slice(name, 0, gates, index) for name in names]
    outgoing = [Slice("rnn.weight_hh_l0", 1), Slice("head.weight", 1)]
    taps = [Tap("rnn", "output"), Tap("head")]
    return net, UnitGroup("rnn.weight_ih_l0", incoming, outgoing, taps, kind="recurrent")


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_unit_is_exact_and_its_own_column_needed(cell):
    net, group = recurrent(cell)
    assert only(net, group, examples(4, 2, 3)).verdict == "exact"
    alone = replace(group, outgoing=group.outgoing[1:], tap=group.tap[1])
    assert only(net, alone, examples(4, 2, 3)).verdict == "wrong"


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (Tap("2", index=shifted(8)), "does not show"),
        (Tap("1", "output", axis=0), "has 4 entries along axis 0, not 8"),
        (Tap("3"), "never sees a tensor"),
        (Tap("0"), "has 4 entries along axis -1"),
    ],
)
def test_a_tap_in_the_wrong_place_is_wrong(tap, why):
    class BypassingTheLast(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)))

    net = BypassingTheLast(*mlp(), nn.Identity())
    row = only(net, hidden(tap=tap), examples(4, 4))
    assert row.verdict == "wrong"
    assert why in row.why


def test_a_tap_that_reads_something_else_besides_is_wrong():
    def run(net, x):
        return net.out(torch.cat([F.relu(net.fc(x)), x], 1))

    net = Net(run, fc=nn.Linear(4, 4), out=nn.Linear(8, 2))
    own, more = ((0,), (1,), (2,), (3,)), ((0, 4), (1, 5), (2, 6), (3, 7))
    outgoing = [Slice("out.weight", 1, index=own)]
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], outgoing, Tap("out", index=own))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    assert (
        "lists 2 entries for each unit, but out.weight[:, (0), ..] reads 1"
        in only(net, replace(group, tap=Tap("out", index=more)), examples(4, 4)).why
    )


def heads():
    def run(net, x):
        q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in net.qkv(x).chunk(3, dim=-1))
        return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Net(run, qkv=nn.Linear(6, 36, bias=False), out=nn.Linear(12, 2))
    rows = tuple(tuple(12 * part + 4 * head + each for part in range(3) for each in range(4)) for head in range(3))
    return net, UnitGroup("qkv", [Slice("qkv.weight", 0, 12, rows)], [Slice("out.weight", 1, 4)], Tap("out"))


def test_attention_heads_are_exact_and_all_their_rows_needed():
    net, group = heads()
    assert only(net, group, examples(2, 5, 6)).verdict == "exact"
    without_queries = tuple(row[4:] for row in group.incoming[0].index)
    row = only(net, replace(group, incoming=[Slice("qkv.weight", 0, 8, without_queries)]), examples(2, 5, 6))
    assert "'qkv.weight'" in row.why


def test_nan_passes_attention_in_the_copy():
    net, _ = heads()
    probe = Probe(net, examples(2, 5, 6))
    probe.model.qkv.weight.data[0] = torch.nan  # of the first query
    assert probe.outputs()[0].isnan().all()


def test_batch_norms_of_the_copy_fit_the_example_inputs():
    net, x = mlp(nn.BatchNorm1d(8)), 10.0 + examples(4, 4)
    copy = Probe(net, x).model
    torch.testing.assert_close(copy[1].running_mean, copy[0](x.double()).mean(0), rtol=1e-12, atol=1e-12)
    assert not copy[1].training


def test_the_rank_of_an_adapter_is_a_group_and_its_frozen_base_is_not():
    class Adapter(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer.requires_grad_(False)
            self.down, self.up = (
                nn.Linear(layer.in_features, 3, bias=False),
                nn.Linear(3, layer.out_features, bias=False),
            )
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return self.layer(x) + self.up(self.down(x))

    torch.manual_seed(0)
    net = nn.Sequential(Adapter(nn.Linear(4, 8)), nn.ReLU(), Adapter(nn.Linear(8, 2)))
    found = trace(net, examples(4, 4))
    assert [row.group.name for row in found.rows] == ["0.down", "2.down"]
    assert [row.verdict for row in found.verify(net, examples(4, 4)).rows] == ["exact", "exact"]


def test_units_that_get_no_gradient_after_a_reset_are_wrong():
    class Sign(nn.Module):
        def forward(self, x):
            return x.sign().detach()

    row = only(nn.Sequential(*mlp(), Sign()), hidden(), examples(4, 4))
    assert row.verdict == "wrong"
    assert "no gradient reaches" in row.why


def test_the_model_and_the_random_numbers_stay_as_they_were():
    net = mlp(nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    only(net, hidden("4", affine=[BN("1")]), examples(4, 4))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(each.grad is None and each.requires_grad and each.dtype == torch.float32 for each in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.get_default_dtype() == torch.float32
    assert torch.backends.mha.get_fastpath_enabled()


def test_dropout_and_casts_within_the_model_hide_nothing():
    def run(net, x):
        h = F.dropout(net.fc(x), 0.5, training=True).to(torch.float32)
        return net.out(F.relu(h.float()) * torch.ones(8, dtype=torch.float32)).half()

    net = Net(run, fc=nn.Linear(4, 8), out=nn.Linear(8, 2))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert only(net, group, examples(8, 4)).verdict == "exact"


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "list"])
def test_example_inputs_take_every_form(form):
    x = examples(4, 4)
    inputs = {"tensor": x, "tuple": (x,), "mapping": {"input": x}, "list": [x, (x,)]}[form]
    assert only(mlp(), hidden(), inputs).verdict == "exact"


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch imports its own
@pytest.mark.parametrize(("wrap", "prefix"), [(nn.DataParallel, "module"), (torch.compile, "_orig_mod")])
def test_a_wrapped_model_is_tried_under_its_own_names(wrap, prefix):
    names = [Slice(f"{prefix}.0.{leaf}", 0) for leaf in ("weight", "bias")]
    group = UnitGroup(f"{prefix}.0", names, [Slice(f"{prefix}.2.weight", 1)], Tap(f"{prefix}.2"))
    assert only(wrap(mlp()), group, examples(4, 4)).verdict == "exact"


def test_two_consumers_behind_norms_of_their_own_need_both_norms():
    def run(net, x):
        h = net.fc(x)
        return net.out(torch.cat([F.relu(net.norm1(h)), torch.tanh(net.norm2(h))], 1))

    net = Net(run, fc=nn.Linear(4, 6), norm1=nn.BatchNorm1d(6), norm2=nn.BatchNorm1d(6), out=nn.Linear(12, 2))
    index = tuple((unit, unit + 6) for unit in range(6))
    incoming, outgoing = [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1, 2, index)]
    group = UnitGroup("fc", incoming, outgoing, Tap("out", index=index), affine=[BN("norm1"), BN("norm2")])
    assert only(net, group, examples(4, 4)).verdict == "exact"
    assert "'norm2.weight'" in only(net, replace(group, affine=[BN("norm1")]), examples(4, 4)).why


def test_what_cannot_be_verified_is_named():
    net = mlp()
    with pytest.raises(ValueError, match="no group is named 'fc'; groups: 0"):
        plan(net, hidden()).verify(net, examples(4, 4), groups=["fc"])
    with pytest.raises(RuntimeError, match=r"verify: the forward of Sequential .* raised"):
        plan(net, hidden()).verify(net, examples(4, 3))
    stack = nn.ParameterDict({"w": torch.zeros(2, 3, 4), "v": torch.zeros(2, 2, 3)})
    group = UnitGroup("w", [Slice("w", 0)], [Slice("v", 1)], (), runs=2)
    with pytest.raises(ValueError, match=r"stacked networks .* cannot be tried: \['w'\]"):
        plan(stack, group).verify(stack, examples(4, 4))


def test_a_model_that_counts_its_calls_outside_of_itself_is_refused():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x) * self.calls

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Counting(8, 2))
    with pytest.raises(ValueError, match="two forward passes of Sequential"):
        plan(net, hidden()).verify(net, examples(4, 4))


def test_the_verification_prints_one_row_a_group_and_raises_with_what_failed():
    net = mlp()
    found = plan(net, replace(hidden(), outgoing=[Slice("2.weight", 1, index=shifted(8))])).verify(net, examples(4, 4))
    header, row = str(found).splitlines()
    assert header.split() == ["group", "verdict", "units", "moved", "if", "missed", "alive"]
    assert row.split()[:3] == ["0", "wrong", "8"]
    with pytest.raises(ValueError, match=r"1 of 1 groups are wrong\n  '0': with outgoing weights zeroed"):
        found.raise_if_wrong()


@pytest.mark.parametrize("units", [1, 2, 3, 7, 64, 300])
def test_for_any_two_units_some_set_holds_the_first_alone(units):
    sets = separating_sets(units, torch.Generator().manual_seed(0)).double()
    with_without = sets.t() @ (1.0 - sets)
    assert ((with_without > 0) | torch.eye(units, dtype=torch.bool)).all()


# -- what else a forward meets, and leaves ----------------------------------------------------------------------------


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


# -- what is forgotten is found, whatever is drawn ---------------------------------------------------------------------

SEEDS = range(20)


def verdicts(net, group, x, seeds=SEEDS):
    return {only(net, group, x, seed=seed).verdict for seed in seeds}


def behind(function, units=24, **parts):
    """A net with `function` between two layers, the first of which reads what a tanh left."""

    def run(net, x):
        return net.out(function(net, net.fc(torch.tanh(net.first(x)))))

    net = Net(run, first=nn.Linear(8, 24), fc=nn.Linear(24, units), out=nn.Linear(units, 3), **parts)
    return net, UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))


FORGOTTEN = {
    "slope": lambda: behind(lambda net, h: net.act(h), act=nn.PReLU(24)),
    "threshold": lambda: behind(lambda net, h: h * (h > net.t.exp()), t=nn.Parameter(torch.full((24,), -4.0))),
    "plain threshold": lambda: behind(lambda net, h: h * (h > net.t), t=nn.Parameter(torch.full((24,), 1.0))),
    "scale through a function": lambda: behind(lambda net, h: F.relu(h) * net.s.exp(), s=nn.Parameter(torch.zeros(24))),
    "scale and shift": lambda: behind(
        lambda net, h: torch.tanh(net.s.sigmoid() * h + net.b), s=nn.Parameter(torch.ones(24)), b=nn.Parameter(torch.zeros(24))
    ),
    "batch norm": lambda: behind(lambda net, h: F.relu(net.norm(h)), norm=nn.BatchNorm1d(24)),
    "clamp": lambda: behind(lambda net, h: torch.minimum(h, net.top), top=nn.Parameter(torch.full((24,), 2.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_forgotten_part_is_found_whatever_the_seed(name):
    net, group = FORGOTTEN[name]()
    assert verdicts(net, group, examples(16, 8)) == {"wrong"}


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid, F.relu, F.hardtanh, F.gelu])
def test_a_forgotten_bias_is_found_whatever_the_seed(act):
    net, group = behind(lambda net, h: act(h))
    assert verdicts(net, group, examples(16, 8)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(16, 8)) == {"wrong"}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_forgotten_depthwise_filter_is_found_whatever_the_seed(padding):
    depthwise = nn.Conv2d(6, 6, 3, padding=padding, groups=6, bias=False)
    net = Net(
        lambda net, x: net.out(F.relu(net.depthwise(F.relu(net.conv(x))))),
        conv=nn.Conv2d(2, 6, 1), depthwise=depthwise, out=nn.Conv2d(6, 3, 1),
    )  # fmt: skip
    group = UnitGroup(
        "conv", [Slice("conv.weight", 0), Slice("conv.bias", 0)], [Slice("out.weight", 1)], Tap("out", axis=1)
    )
    whole = replace(group, incoming=[*group.incoming, Slice("depthwise.weight", 0)])
    assert verdicts(net, group, examples(2, 2, 5, 5), range(8)) == {"wrong"}
    assert verdicts(net, whole, examples(2, 2, 5, 5), range(8)) == {"exact"}


# -- dead units prove nothing ------------------------------------------------------------------------------------------


class Refusing(nn.Module):
    def forward(self, x):
        if x.isnan().any():
            raise ValueError("what is this?")
        return x


DEAD = {
    "relu that drops nan": (lambda h: torch.where(h > 0, h, 0.0), 2),
    "fmax": (lambda h: torch.fmax(h, torch.zeros(())), 2),
    "nan to number": (lambda h: F.relu(h).nan_to_num(), 2),
    "far below": (lambda h: F.relu(h - 3.0), 4),
    "saturated": (lambda h: F.relu6(40.0 * h), 2),
    "hard sigmoid": (lambda h: F.hardsigmoid(40.0 * h) - 0.5, 2),
    "dropped": (lambda h: F.dropout(F.relu(h), 0.6, training=True), 2),
}


@pytest.mark.parametrize("name", DEAD)
def test_no_seed_takes_dead_units_for_wrong_ones(name):
    function, batch = DEAD[name]
    net, group = behind(lambda net, h: function(h), units=16)
    net.fc.bias.data[:8] = -50.0
    found = verdicts(net, group, examples(batch, 8))
    assert "wrong" not in found
    assert "exact" in found


def test_units_that_compete_notice_each_other_whatever_the_seed():
    net, group = behind(lambda net, h: torch.where(h >= h.topk(2, dim=-1).values[..., -1:], h, 0.0), units=16)
    assert verdicts(net, group, examples(8, 8)) == {"wrong"}


def test_a_model_that_refuses_nan_is_tried_without():
    net, group = behind(lambda net, h: net.refusing(F.relu(h)), refusing=Refusing())
    assert verdicts(net, group, examples(4, 8), range(5)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(4, 8), range(5)) == {"wrong"}


def test_units_that_are_no_equals_are_exact_and_dead_ones_do_not_make_them_wrong():
    signs = torch.linspace(-1.0, 2.0, 16)  # a constant for each unit: they cannot be exchanged
    net, group = behind(lambda net, h: torch.where(h > 0, h, 0.0) * signs, units=16)
    net.fc.bias.data[:8] = -50.0
    assert verdicts(net, group, examples(2, 8)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(4, 8)) == {"wrong"}


def test_a_unit_that_nothing_can_wake_makes_no_group_wrong():
    signs, kept = torch.linspace(-1.0, 2.0, 16), torch.arange(16) != 3  # pruned by a mask that drops NaN too
    net, group = behind(lambda net, h: torch.where(kept, F.relu(h) * signs, 0.0), units=16)
    row = only(net, group, examples(4, 8))
    assert (row.verdict, row.alive) == ("exact", 15 / 16)


def test_a_group_of_equals_takes_a_handful_of_passes_however_many_units_it_has(monkeypatch):
    passes = []
    forward = Probe._outputs
    monkeypatch.setattr(Probe, "_outputs", lambda self, calls: passes.append(1) or forward(self, calls))
    assert only(mlp(units=256), hidden(), examples(4, 4)).verdict == "exact"
    assert len(passes) <= 14


def test_products_of_the_pass_before_are_those_that_would_be_computed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    probe, x = Probe(net, examples(2, 6)), examples(2, 6).double()
    for number in (0, 2, 4, 2):
        with torch.no_grad():
            probe.model[number].weight[3] += 0.5
        assert torch.equal(probe.outputs()[0], probe.model(x))
    computed = []
    with probe.under(Products([probe.model[4].weight], lambda product: computed.append(1) or product.result)):
        probe.outputs()
        probe.model[4].weight.data.add_(1.0)  # has no version
        assert torch.equal(probe.outputs()[0], probe.model(x))
    assert computed


def test_weights_that_follow_others_within_the_forward_are_no_constants():
    def run(net, x):
        net.slow.weight.data.copy_(net.fc.weight.data)  # has no version
        return net.out(F.relu(net.fc(x))) + net.last(F.relu(net.slow(x)))

    parts = {"fc": nn.Linear(4, 64), "slow": nn.Linear(4, 64), "out": nn.Linear(64, 2), "last": nn.Linear(64, 2)}
    net = Net(run, **parts)
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert "something else reads it" in only(net, group, examples(2, 4)).why


# -- norms written by hand ---------------------------------------------------------------------------------------------


def by_root(h):
    mean = h.mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5)


def dice(h):
    mean = h.mean(1, keepdim=True)
    gate = torch.sigmoid((h - mean) / ((h - mean).pow(2) + 1e-3).sum(1, keepdim=True).sqrt())
    return h * (gate + 0.3 * (1.0 - gate))


BY_HAND = {
    "root of a variance": by_root,
    "standard deviation": lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-6),
    "reciprocal root": lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6),
    "power": lambda h: h * (h.pow(2).mean(-1, keepdim=True) + 1e-6).pow(-0.5),
    "length": lambda h: h / (h.norm(dim=-1, keepdim=True) + 1e-6),
    "mean alone": lambda h: F.relu(h - h.mean(-1, keepdim=True)),
    "gate": dice,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_the_trace_takes_for_a_norm_over_units_the_verifier_does_too(name):
    torch.manual_seed(0)
    net = Net(lambda net, x: net.out(BY_HAND[name](net.fc(x))), fc=nn.Linear(10, 12), out=nn.Linear(12, 3))
    x = examples(8, 10)
    found = trace(net, x)
    (row,) = found.verify(net, x).rows
    assert (row.group.kind, row.verdict) == ("approximate", "approximate")
    assert row.moved > 1e-3
    forgetful = replace(row.group, incoming=row.group.incoming[:1])
    assert only(net, forgetful, x).verdict == "wrong"
    assert only(net, replace(row.group, kind="exact"), x).verdict == "wrong"


# -- taps and means ----------------------------------------------------------------------------------------------------


def test_a_tap_in_front_of_the_activation_does_not_show_what_is_read():
    for tap in (Tap("1"), Tap("0", "output")):
        row = only(mlp(), hidden(tap=tap), examples(4, 4))
        assert row.verdict == "wrong"
        assert "does not show what 2.weight[:, i] reads" in row.why
    assert only(mlp(), hidden(tap=Tap("1", "output")), examples(4, 4)).verdict == "exact"


def test_a_tap_that_is_called_with_other_numbers_too_is_wrong():
    def run(net, x):
        return net.out(net.carry(F.relu(net.fc(x)))) + net.carry(torch.eye(8)).sum()

    net = Net(run, fc=nn.Linear(4, 8), carry=nn.Identity(), out=nn.Linear(8, 2))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    row = only(net, replace(group, tap=Tap("carry")), examples(4, 4))
    assert row.verdict == "wrong"
    assert "the input of 'carry'" in row.why


def test_a_tap_of_another_layer_of_the_same_width_is_wrong():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    assert only(net, hidden(), examples(4, 4)).verdict == "exact"
    assert "does not show" in only(net, hidden(tap=Tap("4")), examples(4, 4)).why


def test_one_tap_may_stand_for_two_readers_of_the_same_numbers():
    assert only(two_heads(), trunk("actor", "critic"), examples(4, 4)).verdict == "exact"


def test_a_tap_that_claims_to_be_nonnegative_is():
    assert only(mlp(), hidden(tap=Tap("2", nonnegative=True)), examples(4, 4)).verdict == "exact"
    net = nn.Sequential(nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 2))
    row = only(net, hidden(tap=Tap("2", nonnegative=True)), examples(4, 4))
    assert row.verdict == "wrong"
    assert "is said to be nonnegative, but shows -" in row.why


def with_biases(combine):
    """A net whose second product has no bias of its own, and a group that hands its mean over to `taker`."""

    def run(net, x):
        return net.last(combine(net, net.out(F.relu(net.fc(x)))))

    parts = {"out": nn.Linear(8, 5, bias=False), **{name: nn.Parameter(torch.randn(5)) for name in "bc"}}
    net = Net(run, fc=nn.Linear(4, 8), last=nn.Linear(5, 3), norm=nn.BatchNorm1d(5), **parts)
    return net, UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))


TAKERS = {
    "bias": (lambda net, z: F.relu(z + net.b) * net.c, "b", True),
    "bias twice over": (lambda net, z: F.relu(z + 2.0 * net.b), "b", False),
    "behind a nonlinearity": (lambda net, z: F.relu(z) + net.b, "b", False),
    "of something else": (lambda net, z: F.relu(z + net.b) + net.c, "c", False),
    "shared": (lambda net, z: F.relu(z + net.b) + torch.tanh(net.b), "b", False),
    "subtracted": (lambda net, z: F.relu(z - net.b), "b", False),
    "another order": (lambda net, z: F.relu(z + net.b.flip(0)), "b", False),
    "the same product read bare": (lambda net, z: F.relu(z + net.b) + z.square(), "b", False),
    "batch norm": (lambda net, z: F.relu(net.norm(z)), BN("norm"), True),
    "batch norm beside": (lambda net, z: F.relu(net.norm(z)) + z.square(), BN("norm"), False),
    "batch norm of another": (lambda net, z: F.relu(net.norm(F.relu(z))), BN("norm"), False),
}


@pytest.mark.parametrize("name", TAKERS)
def test_what_takes_a_mean_over_makes_up_for_it_everywhere(name):
    combine, taker, right = TAKERS[name]
    net, group = with_biases(combine)
    row = only(net, replace(group, hand_over={"out.weight": taker}), examples(6, 4))
    assert (row.verdict == "exact") == right
    if not right:
        assert "does not take over the mean of what out.weight[:, i] reads" in row.why
    assert only(net, replace(group, hand_over={}), examples(6, 4)).verdict == "exact"


def test_a_bias_of_another_layer_of_the_same_shape_takes_no_mean_over():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    assert only(net, hidden(hand_over={"2.weight": "2.bias"}), examples(4, 4)).verdict == "exact"
    for other in ("0.bias", "4.bias"):
        row = only(net, hidden(hand_over={"2.weight": other}), examples(4, 4))
        assert row.verdict == "wrong"
        assert f"'{other}' does not take over" in row.why


@pytest.mark.parametrize("padding", [0, 1])
def test_the_bias_of_a_convolution_takes_over_inside(padding):
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=padding), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )
    group = hidden(tap=Tap("2", axis=1))
    assert only(net, group, examples(2, 2, 5, 5)).verdict == "exact"
    row = only(net, replace(group, hand_over={"2.weight": "0.bias"}), examples(2, 2, 5, 5))
    assert row.verdict == "wrong"
