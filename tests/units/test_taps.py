"""What a tap shows must be what the unit did, and nothing else; where no place shows that, the unit is left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pliant import ContinualBackprop, Tap, trace
from pliant.units.hooks import WatchProducts
from tests.networks import steps
from tests.units.hard_cases import Net


def seen(model, *inputs):
    """(mean, utility) of every group after one forward, as the engine read them."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(model, optimizer, example_inputs=inputs, attach=False, decay_rate=0.0)
    model(*inputs)
    cbp.step()
    return [(cbp.score.mean(group)[0], cbp.score.value(group, [])[0]) for group in cbp.groups]


def test_one_reader_of_two_branches_reads_each_by_its_own_sign():
    """A ReLU and a tanh meet the same head: the second is not above zero because the first is."""
    model = Net(
        lambda net, x: net.head(torch.relu(net.a(x))) + net.head(torch.tanh(net.b(x))),
        a=nn.Linear(4, 6), b=nn.Linear(4, 6), head=nn.Linear(6, 2),
    )  # fmt: skip
    x = torch.randn(64, 4)
    ((_, utility),) = seen(model, x)
    both = torch.cat([torch.relu(model.a(x)), torch.tanh(model.b(x))])
    assert_close(utility, model.head.weight.abs().mean(0) * both.abs().mean(0))


def test_a_part_of_a_module_s_input_is_not_read_at_that_input():
    """The head of a class token: the module is given all tokens, the weight reads the first."""
    model = Net(
        lambda net, x: net.head(torch.relu(net.first(x))),
        first=nn.Linear(4, 6), head=Net(lambda net, h: F.linear(h[:, 0], net.w), w=nn.Parameter(torch.randn(3, 6))),
    )  # fmt: skip
    x = torch.randn(16, 7, 4)
    x[:, 0] += 3.0
    ((mean, _),) = seen(model, x)
    assert_close(mean[:, 0], torch.relu(model.first(x))[:, 0].mean(0))


def test_an_activation_module_that_serves_two_layers_is_no_place_to_read_either():
    model = Net(
        lambda net, x: net.act(net.act(x @ net.w1) @ net.w2) @ net.w3,
        act=nn.ReLU(), w1=nn.Parameter(torch.randn(4, 6)), w2=nn.Parameter(torch.randn(6, 6)), w3=nn.Parameter(torch.randn(6, 2)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no module shows what w2 reads"):
        trace(model, torch.randn(8, 4), activity=True)
    assert len(trace(model, torch.randn(8, 4)).rows) == 2


def test_a_weight_that_two_modules_share_is_not_read_at_one_of_them():
    model = Net(
        lambda net, x: (net.p(torch.tanh(net.a(x))), net.q(10 * torch.tanh(net.a(x)) + 3)),
        a=nn.Linear(4, 6), p=nn.Linear(6, 2), q=nn.Linear(6, 2),
    )  # fmt: skip
    model.q.weight = model.p.weight
    with pytest.raises(ValueError, match="no module shows what"):
        trace(model, torch.randn(8, 4), activity=True)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x, t: net.f2(torch.cat([torch.relu(net.f1(x)), t])),
        lambda net, x, t: net.f2(torch.cat([net.token.expand(len(x), 1, 6), torch.relu(net.f1(x)).unsqueeze(1)], 1)),
    ],
)
def test_a_column_that_reads_other_numbers_in_the_same_product_is_left_alone(run):
    """Data beside the unit, and a learned token at its place: what was learned about them would be lost."""
    model = Net(run, f1=nn.Linear(4, 6), f2=nn.Linear(6, 3), token=nn.Parameter(torch.zeros(1, 1, 6)))
    with pytest.raises(ValueError, match="also used elsewhere: on other numbers"):
        trace(model, (torch.randn(5, 4), torch.randn(5, 6)))


def test_a_head_of_a_recurrent_cell_that_also_reads_data_is_left_alone():
    def run(net, x, t):
        h = torch.zeros(len(x), 6)
        for step in range(x.shape[1]):
            h = net.cell(x[:, step], h)
        return net.head(h), net.head(t)

    model = Net(run, cell=nn.RNNCell(4, 6), head=nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"its outgoing weight 'head.weight' is also used elsewhere"):
        trace(model, (torch.randn(8, 4, 4), torch.randn(8, 6)))


def test_recurrent_units_behind_a_norm_over_units_are_approximate_and_not_strict():
    def run(net, x):
        h = torch.zeros(len(x), 6)
        for step in range(x.shape[1]):
            h = torch.tanh(net.norm(net.enter(x[:, step]) + net.again(h)))
        return net.head(h)

    model = Net(run, norm=nn.LayerNorm(6), enter=nn.Linear(4, 6), again=nn.Linear(6, 6), head=nn.Linear(6, 2))
    x = torch.randn(8, 4, 4)
    assert [row.group.kind for row in trace(model, x).rows] == ["approximate"]
    with pytest.raises(ValueError, match="a norm over units lies between"):
        trace(model, x, strict=True)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # runs without oneDNN
def test_a_projected_lstm_shows_what_it_projects_and_needs_two_steps_to_be_known():
    torch.manual_seed(0)
    parts = {"core": nn.LSTM(3, 4, proj_size=2, batch_first=True, bidirectional=True), "head": nn.Linear(4, 2)}
    model, x = Net(lambda net, x: net.head(net.core(x)[0]), **parts), torch.randn(8, 5, 3)
    plan = trace(model, x)
    assert {row.group.name: (row.units, len(row.group.taps)) for row in plan.rows} == {
        f"core.weight_{leaf}_l0{end}": found
        for leaf, found in (("ih", (4, 0)), ("hr", (2, 2)))
        for end in ("", "_reverse")
    }
    assert not plan.verify(model, x).wrong
    means = [mean[:, -1] for mean, _ in seen(model, x)]  # of the head's column, behind that of the state
    assert_close(torch.cat(means), model.core(x)[0].mean((0, 1)))
    with pytest.raises(ValueError, match=r"'core.weight_hh_l0' reads no unit in one time step"):
        trace(model, x[:, :1])


# -- ensembles and experts in one parameter: read at the product, in the forward of the module that runs it -------------


def ensemble(**parts):
    """Four networks side by side: (4, 5, 6) and (4, 6, 3) weights of a module of their own."""
    w1, w2 = nn.Parameter(torch.randn(4, 5, 6)), nn.Parameter(torch.randn(4, 6, 3))
    return {"w1": w1, "w2": w2, **parts}


def by_vmap(net, x):
    return torch.func.vmap(lambda w1, w2: torch.relu(x @ w1) @ w2)(net.w1, net.w2)


def by_functional_call(net, x):
    def one(w1, w2):
        return torch.func.functional_call(net.like, {"0.weight": w1.t(), "2.weight": w2.t()}, (x,))

    return torch.func.vmap(one)(net.w1, net.w2)


ENSEMBLES = {
    "bmm": lambda net, x: torch.bmm(torch.relu(torch.bmm(x.expand(4, *x.shape), net.w1)), net.w2),
    "baddbmm": lambda net, x: torch.baddbmm(torch.zeros(4, 1, 3), torch.relu(x @ net.w1), net.w2),
    "matmul": lambda net, x: torch.relu(x @ net.w1) @ net.w2,
    "weights on the left": lambda net, x: (net.w2.mT @ torch.relu(x @ net.w1).mT).mT,
    "einsum": lambda net, x: torch.einsum("ebh,eho->ebo", torch.relu(torch.einsum("bi,eih->ebh", x, net.w1)), net.w2),
    "einsum, examples first": lambda net, x: torch.einsum("beh,eho->ebo", torch.relu((x @ net.w1).transpose(0, 1)), net.w2),
    "packed": lambda net, x: (torch.relu(x[:, None].expand(-1, 4, -1).transpose(0, 1) @ net.w1) @ net.w2).transpose(0, 1),
    "vmap": by_vmap,
    "vmap of a module": by_functional_call,
    "one by one": lambda net, x: sum(torch.relu(x @ w1) @ w2 for w1, w2 in zip(net.w1, net.w2, strict=True)),
    "one by one, shorter floats": lambda net, x: sum(
        torch.relu(x @ net.w1[number]).double() @ net.w2[number].double() for number in range(4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", ENSEMBLES.values(), ids=ENSEMBLES)
def test_units_of_an_ensemble_in_one_parameter_are_read_where_they_meet_their_own_weights(run):
    torch.manual_seed(0)
    like = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).requires_grad_(False)
    model, x = Net(run, **ensemble(like=like)), torch.randn(32, 5)
    plan = trace(model, x, activity=True)
    assert sum(row.units for row in plan.rows) == 24
    assert not plan.verify(model, x).wrong
    found = seen(model, x)
    activity = torch.relu(x @ model.w1)  # (network, example, unit)
    mean, utility = (torch.cat([each[which].flatten() for each in found]) for which in (0, 1))
    assert_close(mean, activity.mean(1).flatten())
    assert_close(utility, (activity.abs().mean(1) * model.w2.abs().mean(2)).flatten())


@pytest.mark.parametrize("run", [ENSEMBLES["bmm"], ENSEMBLES["one by one"]], ids=["together", "one by one"])
def test_units_of_an_ensemble_are_replaced_in_training(run):
    torch.manual_seed(0)
    model, x = Net(run, **ensemble()), torch.randn(16, 5)
    optimizer = torch.optim.Adam(model.parameters())
    cbp = ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate=0.2, maturity_threshold=2)
    for _ in range(40):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(sum(each["replaced"]) >= 20 for each in cbp.stats().values())


def test_an_expert_s_activity_is_that_of_its_own_examples():
    """The first expert gets the first five examples, the second the rest; each is a group, as another product reads it."""

    def run(net, x):
        parts = [torch.relu(rows @ net.w1[number]) @ net.w2[number] for number, rows in enumerate(x.split([5, 27]))]
        return torch.cat(parts)

    torch.manual_seed(0)
    model, x = (
        Net(run, w1=nn.Parameter(torch.randn(2, 5, 6)), w2=nn.Parameter(torch.randn(2, 6, 3))),
        torch.randn(32, 5),
    )
    (first, _), (second, _) = seen(model, x)
    assert_close(first[:, 0], torch.relu(x[:5] @ model.w1[0]).mean(0))
    assert_close(second[:, 0], torch.relu(x[5:] @ model.w1[1]).mean(0))


@pytest.mark.parametrize("run", [ENSEMBLES["bmm"], ENSEMBLES["one by one"]], ids=["together", "one by one"])
def test_autocast_which_casts_a_weight_once_for_several_forwards_is_read_in_each(run):
    torch.manual_seed(0)
    model, x = Net(run, **ensemble()), torch.randn(16, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(model, optimizer, example_inputs=x, attach=False, decay_rate=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        model(x[:4])
        model(x[4:])
    cbp.step()
    mean = torch.cat([cbp.score.mean(group).flatten() for group in cbp.groups])
    assert_close(mean, torch.relu(x @ model.w1).mean(1).flatten(), rtol=0.02, atol=0.02)


class Experts(nn.Module):
    """Tokens in the order of their experts, and one product for all experts."""

    def __init__(self, fused):
        super().__init__()
        self.router, self.fused = nn.Linear(16, 3), fused
        self.up, self.down = nn.Parameter(torch.randn(3, 32, 16) / 4), nn.Parameter(torch.randn(3, 16, 32) / 6)

    def forward(self, x):
        scores, expert = self.router(x).softmax(-1).max(-1)
        order, ends = expert.argsort(), torch.bincount(expert, minlength=3).cumsum(0).int()
        out = self.together(x[order], ends) if self.fused else self.one_by_one(x[order], ends)
        return x + torch.zeros_like(x).index_copy(0, order, out) * scores[:, None]

    def together(self, x, ends):
        return torch._grouped_mm(torch.relu(torch._grouped_mm(x, self.up.mT, offs=ends)), self.down.mT, offs=ends)

    def one_by_one(self, x, ends):
        rows = x.tensor_split(ends[:-1].long())
        return torch.cat(
            [torch.relu(h @ up.t()) @ down.t() for h, up, down in zip(rows, self.up, self.down, strict=True)]
        )


def test_experts_of_one_grouped_product_are_those_that_are_multiplied_one_by_one():
    torch.manual_seed(0)
    model, x = Experts(fused=True), torch.randn(48, 16)
    plans = [trace(each, x, activity=True) for each in (model, Experts(fused=False))]
    for plan in plans:
        assert [(row.group.name, row.units) for row in plan.rows] == [("up", 32), ("up#2", 32), ("up#3", 32)]
        assert {part.parameter for row in plan.rows for part in row.group.outgoing} == {"down"}
    assert {row.verdict for row in plans[0].verify(model, x).rows} == {"exact"}
    expert = model.router(x).argmax(-1)
    for number, (mean, utility) in enumerate(seen(model, x)):
        activity = torch.relu(x[expert == number] @ model.up[number].t())
        assert len(activity) > 2
        assert_close(mean[:, 0], activity.mean(0))
        assert_close(utility, activity.abs().mean(0) * model.down[number].abs().mean(0))


def test_experts_of_one_grouped_product_are_replaced():
    torch.manual_seed(0)
    model, x = Experts(fused=True), torch.randn(48, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    cbp = ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate=0.05, maturity_threshold=2)
    for _ in range(30):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(sum(each["replaced"]) >= 20 for each in cbp.stats().values())


def test_a_part_of_a_parameter_needs_the_parameter():
    with pytest.raises(ValueError, match=r"give at='operand' and parameter=\.\.\. too"):
        Tap("0", part=(0, 6))


def test_an_expert_that_gets_no_example_did_not_run():
    model = Net(
        lambda net, x, keep: net.last(net.expert(torch.relu(net.first(x[keep])))).sum() + net.first(x).sum(),
        first=nn.Linear(4, 6), expert=nn.Linear(6, 3), last=nn.Linear(3, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, some, nobody = torch.randn(8, 4), torch.arange(8) < 4, torch.zeros(8, dtype=torch.bool)
    cbp = ContinualBackprop(model, optimizer, example_inputs=(x, some), include="expert", attach=False)
    model(x, some)
    cbp.step()
    mean = cbp.score.mean(cbp.groups[0]).clone()
    model(x, nobody)
    cbp.step()
    assert steps(cbp) == 1
    assert torch.equal(cbp.score.mean(cbp.groups[0]), mean)


def test_a_group_without_a_tap_may_be_read_by_several_matrices_of_one_parameter():
    """Two matrices in one parameter read the same units one by one: two operands, so that no one tap shows what is read."""

    def run(net, x):
        h = torch.tanh(net.a(x))
        return net.b(h) + net.c(torch.tanh(h @ net.two[0]) + torch.tanh(h @ net.two[1]))

    torch.manual_seed(0)
    net = Net(run, a=nn.Linear(3, 5), two=nn.Parameter(torch.randn(2, 5, 4)), b=nn.Linear(5, 2), c=nn.Linear(4, 2))
    plan = trace(net, torch.randn(4, 3))
    (a,) = [group for group in plan.groups if group.name == "a"]
    assert [(part.parameter, part.axis, part.repeat) for part in a.outgoing] == [("two", (0, 1), 2), ("b.weight", 1, 1)]
    assert a.taps == ()
    assert {row.verdict for row in plan.verify(net, torch.randn(4, 3)).rows} == {"exact"}


def test_modes_that_watch_products_leave_in_the_reverse_order_of_their_entering(monkeypatch):
    """torch pops the last mode whichever leaves; up to 2.10 it freed one that nobody else held, and the interpreter crashed."""
    left = []
    plain = WatchProducts.__exit__

    def leave(mode, *error):
        left.append(_get_current_dispatch_mode_stack()[-1] is mode)
        return plain(mode, *error)

    monkeypatch.setattr(WatchProducts, "__exit__", leave)
    model, x = Net(ENSEMBLES["one by one"], **ensemble()), torch.randn(8, 5)
    cbp = ContinualBackprop(model, torch.optim.SGD(model.parameters(), 0.1), example_inputs=x, attach=False)
    left.clear()
    model(x)
    cbp.step()
    assert len(left) > 1
    assert all(left)
