"""A right group is exact; every way to get one wrong is found out."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant.units import BN, AffineEntry, Slice, Tap, UnitGroup, chain_groups
from pliant.units.trace import trace
from pliant.units.verify.probe import Probe
from pliant.units.verify.trial import separating_sets
from tests.units.verify.tried import Net, examples, hidden, mlp, only, plan, shifted, trunk, two_heads


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


def test_outgoing_weights_of_the_neighbour_are_wrong():
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


# -- norms written by hand ------------------------------------------------------------------------------------------------


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
