"""One table for any network: read where reset methods read, and nothing moved."""

import copy
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import pliant
from pliant import Slice, Tap, UnitGroup, chain_groups, diagnose
from pliant.diagnostics import (
    dead,
    dormant_by_activity,
    dormant_by_firing,
    dormant_by_gradient,
    effective_rank,
    feature_norm,
    features,
    linearized,
    saturated,
    singular_values,
    srank,
    stable_rank,
)
from pliant.diagnostics.measuring import _answers
from pliant.diagnostics.watch import watch
from tests.networks import convnet, mlp
from tests.units.hard_cases import BY_NAME, CASES, Net
from tests.units.test_hard_cases import everything, floats

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])

FIRST_TO_LAST = UnitGroup("first", [Slice("first.weight", 0)], [Slice("last.weight", 1)], Tap("last"))


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(output):
    return sum(each.square().mean() for each in floats(output))


# -- every network that traces ---------------------------------------------------------------------------------------------


@EVERY_CASE
def test_every_network_is_diagnosed_and_left_as_it_was(case):
    model, example = case.make()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = everything(model)
    kinds = {name: case.options.get(name, False) for name in ("residual", "heads")}
    found = diagnose(model, example, loss=loss_of, **kinds)
    assert everything(model) == before
    model.eval()
    before = everything(model)
    again = diagnose(model, example, groups=found.units)
    assert everything(model) == before
    for diagnosis, mode in ((found, "training"), (again, "evaluation")):
        assert diagnosis.mode == mode
        assert [row.group for row in diagnosis.rows] == [group.name for group in found.units.groups]
        assert len(diagnosis.rows) == len(case.groups) or "strict" in case.options
        for row, group in zip(diagnosis.rows, diagnosis.units.groups, strict=True):
            assert (row.n > 0) == (row.effective_rank is not None) == bool(group.taps)
            assert row.effective_rank is None or 0 <= row.effective_rank <= min(row.n, row.columns) + 1e-6
            assert (row.gradient_norm is not None) == (diagnosis is found)  # whatever `.grad` holds
            assert row.weight_magnitude > 0
            assert str(diagnosis).splitlines()[0].startswith("group")


@EVERY_CASE
def test_activity_is_read_where_continual_backprop_reads_it(case):
    model, example = case.make()
    settings = {"utility": "weight" if case.unread else "contribution", "decay_rate": 0.0, "attach": False}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = pliant.ContinualBackprop(model, optimizer, example_inputs=example, **case.options, **settings)
    torch.manual_seed(1)  # dropout
    seen = watch(model, [example], {tap for group in cbp.groups for tap in group.spec.taps}, None)
    torch.manual_seed(1)
    model(*example) if isinstance(example, tuple) else model(example)
    cbp.step()
    for group in cbp.groups:
        answers = [_answers(consumer, group, seen) for consumer in group.consumers if consumer.tap is not None]
        if answers:
            ours = torch.cat([each.mean(1) for each in answers], dim=-1)
            assert_close(ours, cbp.score.mean(group), rtol=1e-4, atol=1e-6)
            assert ours.any()


# -- the numbers -------------------------------------------------------------------------------------------------------------


def test_a_row_holds_what_the_pure_functions_say_of_the_layer():
    model, x = mlp(), batch(100, 6)
    with torch.no_grad():
        model[0].bias[:3] = torch.tensor([-100.0, 3.0, -100.0])  # two dead, one linear
        model[2].weight[4] *= 1000.0  # one at its ends
        first = model[:2](x)
        second = model[2:4](first)
    relu, tanh = diagnose(model, x).rows
    assert (relu.activation, tanh.activation) == ("relu", "tanh")
    assert (relu.units, relu.n, relu.columns, tanh.units) == (12, 100, 12, 9)
    for row, h in ((relu, first), (tanh, second)):
        s = singular_values(h)
        assert row.dead == dead(h).sum()
        assert row.dormant_by_activity == dormant_by_activity(h).sum()
        assert row.effective_rank == pytest.approx(effective_rank(s).item())
        assert row.srank == srank(s)
        assert row.stable_rank == pytest.approx(stable_rank(s).item())
        assert row.feature_norm == pytest.approx(feature_norm(h).item())
    assert (relu.dead, relu.linearized, tanh.saturated) == (2, 1, 1)
    assert relu.linearized == linearized(first).sum()
    assert tanh.saturated == saturated(second).sum()
    assert relu.dormant_by_firing == dormant_by_firing(first).sum()
    assert (relu.saturated, tanh.linearized, tanh.dormant_by_firing) == (None, None, None)
    assert relu.weight_magnitude == pytest.approx(model[0].weight.abs().mean().item())


def test_gradients_come_from_the_loss_alone_whatever_grad_holds():
    model, x = mlp(), batch(40, 6)
    with torch.no_grad():
        model[0].bias[5] = -100.0
    model(x).square().mean().backward()
    gradients = [layer.weight.grad.clone() for layer in (model[0], model[2])]
    for parameter in model.parameters():
        parameter.grad.fill_(7.0)  # of an earlier batch
    assert all((row.gradient_norm, row.dormant_by_gradient) == (None, None) for row in diagnose(model, x).rows)
    assert "GraMa" not in str(diagnose(model, x))
    given = diagnose(model, x, loss=lambda output: output.square().mean())
    assert given.network.loss == pytest.approx(model(x).square().mean().item())
    for row, gradient in zip(given.rows, gradients, strict=True):
        assert row.gradient_norm == pytest.approx(gradient.norm().item())
        assert row.dormant_by_gradient == dormant_by_gradient(gradient.T).sum()
    assert given.rows[0].dormant_by_gradient == 1
    assert all(bool((parameter.grad == 7.0).all()) for parameter in model.parameters())


def test_tokens_are_inputs_and_units_are_units():
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3))
    (row,) = diagnose(model, batch(4, 5, 8)).rows
    assert (row.units, row.n, row.activation) == (64, 20, "gelu")
    assert row.effective_rank == pytest.approx(
        effective_rank(singular_values(features(model[:2](batch(4, 5, 8))))).item()
    )


def test_pixels_are_inputs_and_a_channel_behind_a_flatten_is_one_unit_of_several_columns():
    model, x = convnet().eval(), batch(16, 2, 8, 8)
    inner, outer, _ = diagnose(model, x).rows
    h = model[0](x)
    assert (inner.units, inner.n, inner.columns) == (6, 16 * 9, 6)
    assert inner.feature_norm == pytest.approx(feature_norm(features(h, axis=1)).item())
    flat = model[1](h).flatten(1)
    assert (outer.units, outer.n, outer.columns) == (5, 16, 20)
    assert outer.effective_rank == pytest.approx(effective_rank(singular_values(flat)).item())
    with torch.no_grad():
        model[1][0].weight[2] = 0.0
        model[1][0].bias[2] = 0.0
        model[1][1].bias[2] = -1.0
    assert diagnose(model, x).rows[1].dead == 1


def test_dormancy_is_redo_s_own_score():
    model, x = convnet(), batch(16, 2, 8, 8)
    redo = pliant.ReDo(model, torch.optim.SGD(model.parameters(), lr=0.0), example_inputs=x, attach=False, period=10**9)
    torch.manual_seed(0)
    model(x)
    redo.step()
    for tau in (0.3, 0.7, 1.0, 1.2):
        torch.manual_seed(0)
        rows = {row.group: row.dormant_by_activity for row in diagnose(model, x, groups=redo.plan, tau=tau).rows}
        assert rows == {group.name: (redo.score.value(group, []) <= tau).sum() for group in redo.groups}
    assert all(rows.values())


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_stack_of_networks_has_a_row_for_each_run_equal_to_the_network_alone(axis):
    nets = [mlp(seed=seed) for seed in range(3)]
    x = torch.stack([batch(50, 6, seed=seed) for seed in range(3)])

    def run(net, x):
        h = torch.relu(torch.baddbmm(net.b1[:, None], x, net.w1.mT))
        return torch.bmm(net.read(h), net.w2.mT)

    def stacked(layer, name):
        return nn.Parameter(torch.stack([getattr(net[layer], name) for net in nets]).detach())

    stack = Net(run, w1=stacked(0, "weight"), b1=stacked(0, "bias"), w2=stacked(2, "weight"), read=nn.Identity())
    group = UnitGroup(
        "0", [Slice("w1", 0), Slice("b1", 0)], [Slice("w2", 1)], Tap("read", axis=axis), hand_over={}, runs=3
    )
    rows = diagnose(stack, x, groups=[group], loss=lambda output: output.square().sum()).rows
    assert [row.run for row in rows] == [0, 1, 2]
    assert "0 run 2" in str(diagnose(stack, x, groups=[group]))
    assert len({row.effective_rank for row in rows}) == 3
    for row, net, of_run in zip(rows, nets, x, strict=True):
        alone = nn.Sequential(*net[:2], nn.Linear(12, 9, bias=False))
        alone[2].weight = net[2].weight
        (single,) = diagnose(alone, of_run, loss=lambda output: output.square().sum(), reference=None).rows
        for name, value in asdict(single).items():
            expected = (
                row.run if name == "run" else pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            )
            assert getattr(row, name) == expected, name


def test_a_unit_is_dead_only_if_it_is_at_every_consumer():
    def run(net, x):
        h = net.first(x)
        return net.one(torch.relu(h)) + net.other(torch.relu(-h))

    model = Net(run, first=nn.Linear(6, 8), one=nn.Linear(8, 2), other=nn.Linear(8, 2))
    with torch.no_grad():
        model.first.bias[:3] = torch.tensor([-100.0, 100.0, 0.0])  # dead for one, dead for the other
        model.first.weight[2] = 0.0  # dead for both
    (row,) = diagnose(model, batch(20, 6)).rows
    assert (row.dead, row.dormant_by_firing) == (1, 1)


def test_what_is_written_over_later_was_read_before():
    def run(net, x):
        h = torch.relu(net.first(x))
        y = net.last(h)
        h.zero_()
        return y

    model = Net(run, first=nn.Linear(6, 8), last=nn.Linear(8, 2))
    (row,) = diagnose(model, batch(20, 6), groups=[FIRST_TO_LAST]).rows
    assert row.dead < 8


def test_batches_in_a_list_count_as_one():
    model, x = mlp(), batch(30, 6)
    assert [asdict(row) for row in diagnose(model, [x[:11], x[11:]]).rows] == [
        pytest.approx(asdict(row)) for row in diagnose(model, x).rows
    ]


def test_a_cell_that_runs_at_every_step_is_read_at_every_step():
    case = BY_NAME["gru cell"] if "gru cell" in BY_NAME else next(c for c in CASES if "cell" in c.name)
    model, example = case.make()
    (row,) = diagnose(model, example).rows
    assert row.n >= len(example) * (example.shape[1] - 1)


# -- activation functions --------------------------------------------------------------------------------------------------


def written_in_slices(z):
    both = torch.zeros_like(z)
    both[:, :4] = z[:, :4].tanh()
    both[:, 4:] = z[:, 4:].relu()
    return both


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (lambda z: z.clamp(min=0), "relu"),
        (lambda z: torch.sigmoid(z).clone().view(-1, 8), "sigmoid"),
        (lambda z: torch.cat([z[:, :4].tanh(), z[:, 4:].tanh()], 1), "tanh"),
        (lambda z: torch.cat([z[:, :4].tanh(), z[:, 4:].relu()], 1), None),
        (written_in_slices, None),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(), "hardtanh"),
        (nn.Hardtanh(-2.0, 2.0), None),
        (nn.SiLU(), "silu"),
        (lambda z: 2.0 * z.relu(), None),
        (lambda z: F.silu(z).add_(1.0), None),
        (lambda z: F.dropout(z.tanh(), 0.5, training=True), "tanh"),
    ],
)
def test_the_activation_is_what_wrote_what_is_read(activation, name):
    model = Net(lambda net, x: net.last(activation(net.first(x))), first=nn.Linear(6, 8), last=nn.Linear(8, 2))
    for loss in (None, loss_of):
        (row,) = diagnose(model, batch(20, 6), loss=loss).rows
        assert row.activation == name


def test_what_pooling_and_dropout_change_is_not_measured():
    """Of a pool, "above 0 everywhere" is not "linear"; of a dropout, 1 / (1 - p) times a tanh has other ends."""
    pooled = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 3, 2))
    (row,) = diagnose(pooled, batch(8, 2, 8, 8)).rows
    assert (row.activation, row.linearized) == ("relu", None)
    assert row.dormant_by_firing is not None
    dropped = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    assert diagnose(dropped, batch(20, 6)).rows[0].saturated is None
    assert diagnose(dropped.eval(), batch(20, 6)).rows[0].saturated is not None


# -- nothing moves ---------------------------------------------------------------------------------------------------------


def test_the_mode_is_the_model_s_own():
    model, x = convnet(), batch(16, 2, 8, 8) + 2.0
    training, evaluation = diagnose(model, x), diagnose(model.eval(), x)
    assert training.mode == "training"
    assert "evaluation mode" in str(evaluation)
    assert training.rows[0].feature_norm != pytest.approx(evaluation.rows[0].feature_norm)
    assert diagnose(model, x).rows == evaluation.rows
    model[3].train()
    assert diagnose(model, x).mode == "mixed"


@pytest.mark.parametrize("loss", [None, loss_of])
def test_training_with_an_attached_method_goes_on_as_if_nobody_had_looked(loss):
    def train(look):
        torch.manual_seed(0)
        model = convnet()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x = batch(16, 2, 8, 8)
        cbp = pliant.ContinualBackprop(
            model, optimizer, example_inputs=x, replacement_rate=0.4, maturity_threshold=2, seed=0
        )
        for step in range(25):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if look:
                diagnose(model, x, groups=cbp.plan if step % 2 else None, loss=loss)
            optimizer.step()
        assert min(sum(each["replaced"]) for each in cbp.stats().values()) >= 20
        return [*tree_leaves(cbp.state_dict()), *model.state_dict().values(), torch.get_rng_state()]

    for ours, theirs in zip(train(look=True), train(look=False), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_forward_that_raises_leaves_no_hook_behind():
    model = mlp()
    groups = chain_groups(model)
    before = everything(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        diagnose(model, batch(4, 5), groups=groups)
    assert everything(model) == before


def test_a_model_that_writes_to_its_own_parameters_and_attributes_is_put_back():
    def run(net, x):
        with torch.no_grad():
            net.first.weight.mul_(1.1)
        net.state = net.state + 1.0
        return net.last(torch.relu(net.first(x)))

    model = Net(run, first=nn.Linear(6, 8), last=nn.Linear(8, 2), state=torch.zeros(3))
    weight, state = model.first.weight.clone(), model.state
    diagnose(model, batch(4, 6), groups=[FIRST_TO_LAST])
    assert torch.backends.mha.get_fastpath_enabled()  # as it is by default
    assert torch.equal(model.first.weight, weight)
    assert model.state is state
    assert torch.equal(state, torch.zeros(3))


# -- long runs, other settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_network_that_diverged_is_told_and_never_raises(bad):
    model, x = mlp(), batch(20, 6)
    with torch.no_grad():
        model[0].weight[3, 2] = bad
    diagnosis = diagnose(model, x, loss=loss_of)
    first = diagnosis.rows[0]
    assert first.not_finite == 1
    assert first.dormant_by_activity is None
    assert all(value != value for value in (first.effective_rank, first.srank, first.stable_rank))
    assert "0: 1 units are NaN or inf" in str(diagnosis)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_in_any_precision(dtype):
    model, x = mlp(dtype=dtype), batch(64, 6).to(dtype)
    expected = diagnose(copy.deepcopy(model).double(), x.double())
    for row, other in zip(diagnose(model, x).rows, expected.rows, strict=True):
        assert row.effective_rank == pytest.approx(other.effective_rank, rel=0.02)
        assert row.weight_magnitude == pytest.approx(other.weight_magnitude, rel=1e-2)


def test_autocast_compiled_and_parallel_models():
    model, x = mlp(), batch(64, 6)
    plain = diagnose(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = diagnose(model, x, loss=loss_of).rows
    assert [row.activation for row in rows] == ["relu", "tanh"]
    assert rows[0].effective_rank == pytest.approx(plain.rows[0].effective_rank, rel=0.05)
    compiled = torch.compile(model, backend="eager")
    assert diagnose(compiled, x).rows == plain.rows
    assert [row.srank for row in diagnose(nn.DataParallel(model), x).rows] == [row.srank for row in plain.rows]


def test_groups_by_hand_and_a_plan_of_a_method_serve_as_groups():
    model, x = mlp(), batch(20, 6)
    plain = [asdict(row) for row in diagnose(model, x).rows]
    assert [asdict(row) for row in diagnose(model, x, groups=chain_groups(model)).rows] == plain
    plan = pliant.trace(model, x).exclude("0")
    assert [asdict(row) for row in diagnose(model, x, groups=plan).rows] == plain[1:]


def test_only_a_few_examples_are_traced(monkeypatch):
    traced = []

    def spy(model, examples, **kinds):
        traced.extend(examples)
        return pliant.trace(model, examples, **kinds)

    monkeypatch.setattr("pliant.diagnostics.diagnosing.trace", spy)
    model = Net(lambda net, a, b: net.last(torch.relu(net.first(a) + b)), first=nn.Linear(6, 8), last=nn.Linear(8, 2))
    diagnose(model, (batch(100, 6), batch(100, 8)))
    assert [each.shape for each in traced.pop()] == [(8, 6), (8, 8)]
    diagnose(model, (batch(100, 6), batch(1, 8)))  # not one batch of examples: taken whole
    assert [each.shape for each in traced.pop()] == [(100, 6), (1, 8)]


def test_the_table_marks_ranks_that_too_few_examples_cap():
    table = str(diagnose(mlp(), batch(10, 6))).splitlines()
    assert "*" in table[1]
    assert "*" not in table[3]
    assert any("(0 12), caps the ranks: give more examples" in line for line in table)


# -- bad input ---------------------------------------------------------------------------------------------------------------


def test_bad_requests_are_errors_that_say_what_to_do():
    model, x = mlp(), batch(4, 6)
    with pytest.raises(ValueError, match="give x as one batch, not a list"):
        diagnose(model, [x, x], loss=loss_of)
    with pytest.raises(ValueError, match="empty list"):
        diagnose(model, [], groups=chain_groups(model))
    with pytest.raises(ValueError, match=r"must be one number, got a tensor of shape \(4, 2\)"):
        diagnose(model, x, loss=lambda output: output)
    with pytest.raises(ValueError, match="groups given by hand are used as they are"):
        diagnose(model, x, groups=chain_groups(model), heads=True)
    with pytest.raises(TypeError, match="loss is a function of the model's output"):
        diagnose(model, x, loss=torch.tensor(1.0))
    with pytest.raises(TypeError, match="groups are UnitGroups or a UnitMap"):
        diagnose(model, x, groups=["0"])
    with pytest.raises(ValueError, match="no resettable unit found"):
        diagnose(nn.Sequential(nn.Linear(6, 2)), x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        diagnose(model, batch(4, 5))
    assert any("traces the first 8 examples" in note for note in caught.value.__notes__)
    group = UnitGroup("0", [Slice("0.weight", 0)], [Slice("2.weight", 1)], Tap("0"))
    with pytest.raises(ValueError, match=r"input of '0' has 6 entries of group '0' along axis -1, not 12"):
        diagnose(model, x, groups=[group])


# -- what is no example --------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Unit 0 fires at padding alone, which is 0; the tanh behind it is never saturated there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = torch.tensor([-1.0, 0.0, 0.0]), 0.5

    def forward(self, x, mask):
        hidden = torch.tanh(self.second(self.first(x).relu()))
        return (self.head(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def padded(seed=0):
    """20 sentences of three tokens, padded to six with zeros, and which tokens are real."""
    x, mask = torch.rand(20, 6, 3, generator=torch.Generator().manual_seed(seed)) + 1, torch.ones(20, 6)
    x[:, 3:], mask[:, 3:] = 0, 0
    return x, mask


def numbers(diagnosis):
    return [{k: v for k, v in asdict(row).items() if v is not None} for row in diagnosis.rows]


@pytest.mark.parametrize(
    "mask",
    [padded()[1], padded()[1].bool(), padded()[1].long(), "mask", lambda x, mask: mask],
    ids=["1.0", "bool", "1", "name", "function"],
)
@pytest.mark.parametrize("loss", [None, lambda output: output.square().mean()])
def test_every_measure_is_over_real_tokens(mask, loss):
    """The same sentences without padding: every column of the table, n too."""
    model, (x, real) = Padded(), padded()
    units = pliant.trace(model, (x, real))
    short = numbers(diagnose(model, (x[:, :3], real[:, :3]), groups=units, loss=loss))
    assert short[0]["n"] == 60
    assert short[0]["dead"] >= 1
    found = numbers(diagnose(model, (x, real), groups=units, loss=loss, mask=mask))
    for a, b in zip(found, short, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == (pytest.approx(b[name], rel=1e-5) if isinstance(a[name], float) else b[name]), name
    unmasked = numbers(diagnose(model, (x, real), groups=units, loss=loss))
    assert unmasked[0]["dead"] < short[0]["dead"]


def test_a_list_of_batches_takes_a_list_of_masks():
    model, (x, real) = Padded(), padded()
    whole = numbers(diagnose(model, (x, real), mask=real))
    parts = numbers(diagnose(model, [(x[:5], real[:5]), (x[5:], real[5:])], mask=[real[:5], real[5:]]))
    for a, b in zip(whole, parts, strict=True):
        assert all(a[name] == (pytest.approx(b[name]) if isinstance(a[name], float) else b[name]) for name in a)


def test_a_batch_without_a_real_token_shows_nothing():
    model, (x, real) = Padded(), padded()
    row = diagnose(model, (x, real), mask=torch.zeros_like(real) == 1).rows[0]
    assert (row.n, row.dead, row.effective_rank) == (0, None, None)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (padded(), [padded()[1]], "mask is a list of 1, x one batch"),
        ([padded(), padded()], padded()[1], "mask is one, x a list of 2; give one for each"),
        ([padded(), padded()], [padded()[1]], "mask is a list of 1, x a list of 2"),
        (padded(), padded()[1].T, r"mask: shape \(6, 20\) does not fit the input of 'second', which has \(20, 6\)"),
        (padded(), padded()[1] - 1, "mask: booleans, or 1 at real positions"),
        (padded(), "masks", r"takes no 'masks' \(did you mean 'mask'\?\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_clear_error(x, mask, message):
    with pytest.raises(ValueError, match=message):
        diagnose(Padded(), x, mask=mask)


def test_an_identity_that_is_sent_through_a_module_is_no_example_here_either():
    model = Net(
        lambda net, x: (net.mlp(x), net.mlp(torch.eye(5)).square().sum()),
        mlp=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)),
    )
    x = batch(6, 5)
    (row,) = diagnose(model, x).rows
    h = torch.relu(model.mlp[0](x))
    assert row.n == 6
    assert row.feature_norm == pytest.approx(feature_norm(h).item())
    model.run = lambda net, x: net.mlp(x)
    with pytest.raises(RuntimeError, match="called 1 times in a forward, and 2 times when it was traced"):
        diagnose(
            model, x, groups=pliant.trace(Net(lambda net, x: (net.mlp(x), net.mlp(torch.eye(5))), mlp=model.mlp), x)
        )


# -- inputs without a batch --------------------------------------------------------------------------------------------------


def two(kind, **settings):
    return nn.Sequential(kind(3, 8, 3, padding=1, **settings), nn.ReLU(), kind(8, 4, 3))


class Sequence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.enter, self.rnn, self.head = nn.Linear(6, 8), kind(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rnn(self.enter(x).relu())[0])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(4, 8, 3, 3))

    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.w1, padding=1).relu(), self.w2)


WITHOUT_A_BATCH = {  # every axis has 8 positions, so that none can be told by its size
    **{f"Conv{n}d": (lambda n=n: two(getattr(nn, f"Conv{n}d")), (3, *[8] * n)) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (lambda n=n: two(getattr(nn, f"ConvTranspose{n}d")), (3, *[8] * n)) for n in (1, 2, 3)},
    "instance norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 3)),
        (3, 8, 8),
    ),
    "pool": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(8), nn.Conv2d(8, 4, 3)),
        (3, 16, 16),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)), (3, 8, 8)),
    "functional": (Functional, (3, 8, 8)),
    "features": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), (3,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), (8, 3)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), (8, 8)),
    **{kind.__name__: (lambda kind=kind: Sequence(kind), (8, 6)) for kind in (nn.RNN, nn.LSTM, nn.GRU)},
}


@pytest.mark.parametrize("name", WITHOUT_A_BATCH)
@pytest.mark.parametrize("traced", ["a batch", "without"])
def test_one_example_without_a_batch_is_the_batch_of_one(name, traced):
    torch.manual_seed(0)
    build, shape = WITHOUT_A_BATCH[name]
    model, x = build(), batch(1, *shape)
    units = pliant.trace(model, x if traced == "a batch" else x[0])
    one, alone = (numbers(diagnose(model, each, groups=units)) for each in (x, x[0]))
    for a, b in zip(one, alone, strict=True):
        assert all(a[key] == (pytest.approx(b[key], rel=1e-4) if isinstance(a[key], float) else b[key]) for key in a)
    means = []
    for each in (x, x[0]):
        cbp = pliant.ContinualBackprop(
            model, torch.optim.SGD(model.parameters(), lr=0.0), groups=units, attach=False, decay_rate=0.0
        )
        model(each)
        cbp.step()
        means.append([(cbp.score.mean(group), cbp.score.value(group, [])) for group in cbp.groups])
        cbp.detach()
    assert_close(means[0], means[1])


@pytest.mark.parametrize("axis", [1, -3])
def test_a_tap_by_hand_at_a_convolution_counts_its_axis_in_a_batch(axis):
    torch.manual_seed(0)
    model, x = two(nn.Conv2d), batch(1, 3, 8, 8)
    group = UnitGroup("0", [Slice("0.weight", 0), Slice("0.bias", 0)], [Slice("2.weight", 1)], Tap("2", axis=axis))
    by_hand = feature_norm(features(model[:2](x), axis=1)).item()
    for each in (x, x[0]):
        assert diagnose(model, each, groups=[group]).rows[0].feature_norm == pytest.approx(by_hand)
    assert diagnose(model, x[0], groups=chain_groups(model)).rows[0].feature_norm == pytest.approx(by_hand)


def test_where_neither_end_tells_the_axis_another_number_of_axes_is_an_error():
    """Tokens mixed by a plain matrix: along axis 1 of (batch, tokens, width)."""
    model = Net(
        lambda net, x: net.second(torch.relu(net.first(x))),
        first=Net(lambda net, x: net.w @ x, w=nn.Parameter(torch.randn(4, 4))),
        second=Net(lambda net, x: net.w @ x, w=nn.Parameter(torch.randn(3, 4))),
    )
    x = batch(2, 4, 4)
    units = pliant.trace(model, x)
    (row,) = diagnose(model, x, groups=units).rows
    assert row.feature_norm == pytest.approx(feature_norm(features(torch.relu(model.first(x)), axis=1)).item())
    with pytest.raises(ValueError, match="has units along axis 1 of 3 axes, and is given 2"):
        diagnose(model, x[0], groups=units)


def test_an_image_of_many_channels_without_a_batch_is_traced_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert diagnose(model, batch(12, 9, 9)).rows[0].n == 49
