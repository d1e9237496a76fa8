"""What the table of hard cases does not show: where addresses are lanes, how taps and names are chosen, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pliant.base.initial import GAINS
from pliant.units import BN, Slice, Tap
from pliant.units.trace import trace
from pliant.units.trace.lanes import lanes
from pliant.units.trace.shadows import Memory


class Net(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, forward, **children):
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs):
        return self._forward(self, *inputs)


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def only_group(model, *inputs, **options):
    (group,) = trace(model, inputs, **options).groups
    return group


def test_a_group_names_the_weights_that_enter_and_leave_each_unit():
    group = only_group(mlp(), torch.zeros(2, 3))
    assert group.incoming == [Slice("0.weight", 0), Slice("0.bias", 0)]
    assert group.outgoing == [Slice("2.weight", 1)]
    assert group.tap == Tap("2", "input", -1, nonnegative=True)
    assert group.hand_over == {"2.weight": "2.bias"}
    assert (group.name, group.kind, group.gain) == ("0", "exact", GAINS["relu"])


def test_a_flattened_channel_owns_a_block_of_columns_and_its_batch_norm_entries():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    group = only_group(net, torch.randn(2, 1, 2, 2))
    assert group.outgoing == [Slice("4.weight", 1, repeat=4)]
    assert group.affine == [BN("1")]
    assert group.gain == GAINS["tanh"]


def test_a_bias_free_product_that_goes_straight_into_a_batch_norm_hands_means_to_it():
    direct = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 1))
    later = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 1))
    assert trace(direct, torch.randn(2, 3)).groups[0].hand_over == {"1.weight": BN("2")}
    assert trace(later, torch.randn(2, 3)).groups[0].hand_over == {}


def test_what_was_changed_in_place_after_the_call_is_not_what_the_module_was_given():
    inner = Net(lambda net, h: F.linear(h.relu_(), net.w), w=nn.Parameter(torch.randn(2, 4)))
    outer = Net(lambda net, x: net.inner(net.first(x)), first=nn.Linear(3, 4), inner=inner)
    group = only_group(outer, torch.randn(2, 3))
    assert group.tap == Tap("inner", "operand", 1, parameter="inner.w")


def test_a_scalar_gate_is_not_coupled_to_all_that_it_multiplies():
    def gated(net, x):
        return net.head(net.body(x) * net.gate(x))

    net = Net(gated, body=nn.Linear(3, 4), gate=nn.Linear(3, 1), head=nn.Linear(4, 2))
    assert only_group(net, torch.randn(2, 3)).name == "body"


def test_units_of_a_parameter_in_channels_last_memory_are_counted_in_logical_order():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 3)).to(memory_format=torch.channels_last)
    assert not net[0].weight.is_contiguous()
    group = only_group(net, torch.randn(2, 2, 6, 6))
    assert group.incoming[0] == Slice("0.weight", 0)
    assert group.outgoing == [Slice("2.weight", 1)]


def test_a_row_is_a_lane_whole_or_the_same_part_of_it_in_each():
    weight = nn.Parameter(torch.zeros(3, 4))
    memory = Memory({"w": weight})
    whole, half = weight.detach().t()[None, :, :, None], weight.detach()[:, :2][None, :, :, None]
    (found,) = lanes(memory, whole)
    assert found.lane.axes == (1,)
    assert found.positions.tolist() == [0, 1, 2, 3]
    (part,) = lanes(memory, half)
    assert (part.lane.axes, part.positions.tolist()) == ((0,), [0, 1, 2])


def test_hidden_units_of_a_recurrence_need_two_time_steps_to_be_seen():
    net = Net(lambda net, x: net.head(net.core(x)[0]), core=nn.GRU(3, 4), head=nn.Linear(4, 2))
    assert only_group(net, torch.randn(2, 1, 3)).kind == "recurrent"
    with pytest.raises(ValueError, match=r"'core.weight_hh_l0' reads no unit in one time step"):
        trace(net, torch.randn(1, 1, 3))


def test_several_examples_keep_the_groups_on_which_they_agree():
    def branching(net, x):
        h = net.first(x).relu()
        return net.left(h) if x.sum() > 0 else net.right(net.middle(h).relu())

    layers = {"left": nn.Linear(4, 2), "middle": nn.Linear(4, 5), "right": nn.Linear(5, 2)}
    net = Net(branching, first=nn.Linear(3, 4), **layers)
    with pytest.raises(ValueError, match=r"first.weight, first.bias +differs between the example inputs"):
        trace(net, [torch.ones(2, 3), -torch.ones(2, 3)])
    assert [group.name for group in trace(net, [-torch.ones(2, 3)]).groups] == ["first", "middle"]


def test_groups_without_a_tap_are_kept_unless_activity_is_asked_for():
    net = Net(lambda net, x: net.head(net.core(x)[0]), core=nn.GRU(3, 4, num_layers=2), head=nn.Linear(4, 2))
    x = torch.randn(2, 1, 3)
    assert [len(group.taps) for group in trace(net, x).groups] == [0, 2]
    plan = trace(net, x, activity=True)
    assert [group.name for group in plan.groups] == ["core.weight_ih_l1"]
    assert any("utility='weight'" in each.reason for each in plan.skipped)


@pytest.mark.parametrize(
    ("wrapped", "prefix"),
    [(nn.DataParallel, "module."), (lambda net: torch.compile(net, backend="eager"), "_orig_mod.")],
    ids=["DataParallel", "compile"],
)
def test_parameters_of_a_wrapped_model_keep_its_prefix(wrapped, prefix):
    group = only_group(wrapped(mlp()), torch.zeros(2, 3))
    assert group.name == "0"
    assert group.incoming[0].parameter == f"{prefix}0.weight"
    assert group.tap.module == f"{prefix}2"


def test_a_parameter_that_the_forward_writes_is_put_back_and_left_alone():
    def decaying(net, x):
        with torch.no_grad():
            net.first.weight.mul_(0.5)
        return net.head(net.first(x))

    net = Net(decaying, first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    before = net.first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'first.weight' is also used elsewhere, by aten::mul_"):
        trace(net, torch.randn(2, 3))
    assert torch.equal(net.first.weight, before)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (mlp(), torch.zeros(2, 3, device="meta"), "an example input is on meta, but Sequential is on cpu"),
        (nn.Sequential(nn.LazyLinear(2)), torch.zeros(2, 3), "as '0.weight' is lazy: run one forward first"),
        (nn.ReLU(), torch.zeros(2, 3), "ReLU has no parameters"),
        (nn.Linear(3, 2), torch.zeros(2, 3), "no resettable unit found in Linear"),
        (mlp(), [], "give at least one example"),
    ],
)
def test_what_cannot_be_traced_is_named(model, example, message):
    with pytest.raises(ValueError, match=message):
        trace(model, example)


def test_a_forward_that_raises_says_so_and_leaves_the_modes_alone():
    net = mlp().eval()
    with pytest.raises(
        RuntimeError, match="the forward of Sequential raised with the example inputs given: mat1 and mat2"
    ):
        trace(net, torch.zeros(2, 5))
    assert not any(module.training or module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_vector_of_weights_reads_hidden_units():
    net = Net(lambda net, x: net.first(x).relu() @ net.w, first=nn.Linear(3, 4), w=nn.Parameter(torch.randn(4)))
    group = only_group(net, torch.randn(2, 3))
    assert group.outgoing == [Slice("w", 0)]
    assert group.tap.parameter == "w"


def test_units_that_reach_a_mask_or_an_index_are_lost():
    def masked(net, x):
        q = x[:, None]
        h = net.first(x).relu()
        attended = F.scaled_dot_product_attention(q, q, q, attn_mask=h[:, None, :, :1].expand(2, 1, 3, 3))
        return net.head(attended)

    net = Net(masked, first=nn.Linear(4, 4), head=nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"read by no weight|reaches the model output"):
        trace(net, torch.randn(2, 3, 4))

    def picked(net, x):
        return net.head(net.table(net.first(x).argmax(-1)))

    net = Net(picked, first=nn.Linear(3, 4), table=nn.Embedding(4, 5), head=nn.Linear(5, 2))
    with pytest.raises(ValueError, match="no rule for this operand of aten::embedding in 'table'"):
        trace(net, torch.randn(2, 3))


def test_a_bias_that_is_not_added_along_the_outputs_takes_no_mean_over():
    along_batch = nn.Parameter(torch.zeros(4))
    net = Net(
        lambda net, x: net.head((net.first(x).relu() @ net.w).t() + net.b),
        first=nn.Linear(3, 4),
        w=nn.Parameter(torch.randn(4, 4)),
        b=along_batch,
        head=nn.Linear(4, 2),
    )
    group = next(group for group in trace(net, torch.randn(4, 3)).groups if group.name == "first")
    assert group.hand_over == {}


def test_units_in_front_of_a_packed_sequence_are_followed_into_it():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.out = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(torch.relu(self.embed(x)), lengths, batch_first=True, enforce_sorted=False)
            return self.out(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

    torch.manual_seed(0)
    net, x = Packed(), (torch.randn(3, 6, 4), torch.tensor([6, 2, 4]))
    plan = trace(net, x)
    assert [(row.group.name, row.units) for row in plan.rows] == [("embed", 6), ("rnn.weight_ih_l0", 5)]
    assert [row.verdict for row in plan.verify(net, x).rows] == ["exact", "exact"]


def test_a_stream_is_one_also_where_one_weight_computes_it_and_what_is_added():
    """Two blocks with their last layer in common, the first with a projection as its shortcut."""

    def run(net, x):
        h = torch.relu(net.last(torch.relu(net.a(x))) + net.shortcut(x))
        return net.head(h + net.last(torch.relu(net.b(h))))

    torch.manual_seed(0)
    sizes = {"shortcut": (3, 6), "a": (3, 5), "b": (6, 5), "last": (5, 6), "head": (6, 2)}
    net = Net(run, **{name: nn.Linear(*size) for name, size in sizes.items()})
    plan = trace(net, torch.randn(4, 3))
    assert [group.name for group in plan.groups] == ["a"]  # with the rows of `b`, which the same columns read
    assert any("last.weight" in each.parameters and "residual=True" in each.reason for each in plan.skipped)
    assert [group.name for group in trace(net, torch.randn(4, 3), residual=True).groups] == ["shortcut", "a"]


def test_a_scale_and_a_shift_of_one_layer_make_no_residual_stream():
    """Feature-wise modulation: both come of one layer, and the product of one of them depends on it."""

    def run(net, x):
        shift, scale = net.film(x).split(6, dim=-1)
        return net.head(torch.relu(scale * net.a(x) + shift))

    torch.manual_seed(0)
    net = Net(run, film=nn.Linear(3, 12), a=nn.Linear(3, 6), head=nn.Linear(6, 2))
    (group,) = trace(net, torch.randn(4, 3)).groups
    assert {part.parameter for part in group.incoming} == {"film.weight", "a.weight", "film.bias", "a.bias"}


def test_a_weight_that_feeds_itself_makes_no_residual_stream():
    """h + f(W h), step after step: a recurrent layer, of which every unit is one."""

    def run(net, x):
        h = torch.tanh(net.first(x))
        for _ in range(3):
            h = h + torch.tanh(net.again(h))
        return net.head(h)

    torch.manual_seed(0)
    net = Net(run, first=nn.Linear(3, 6), again=nn.Linear(6, 6), head=nn.Linear(6, 2))
    (group,) = trace(net, torch.randn(4, 3)).groups
    assert (group.name, group.kind) == ("first", "recurrent")
