"""The best of N draws of a fresh unit."""

import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.functional import relu
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from pliant import ContinualBackprop
from pliant.engine.candidates import EXAMPLES
from pliant.units import UnitGroup, chain_groups
from tests.methods import promises
from tests.methods.promises import METHODS, resets_units
from tests.methods.runs import Cell
from tests.ranks import on_ranks

SETTINGS = {"replacement_rate": 0.2, "maturity_threshold": 3, "seed": 0, "trial": False}


def net(*sizes, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), activation())]
    return nn.Sequential(*layers[:-1])


def train(model, optimizer, batches, loss=lambda y, x: (y - x[..., :1].sin()).square().mean()):
    for x in batches:
        optimizer.zero_grad()
        loss(model(x), x).backward()
        optimizer.step()


def batches(count, *shape, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def attached(model, step_size=0.1, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    x = torch.zeros(2, 4, dtype=next(model.parameters()).dtype)
    given = SETTINGS | ({} if "groups" in settings else {"example_inputs": x}) | settings
    return optimizer, ContinualBackprop(model, optimizer, **given)


class Given:
    """Draws of `init` that are known: every one that was asked for is kept."""

    def __init__(self):
        self.drawn = []
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, name, shape, generator):
        self.drawn.append(torch.randn(shape, generator=self.generator))
        return self.drawn[-1]


def best_by_the_formula(drawn, x, delta):
    """Of `drawn` (draws, inputs), the index of the best, and its bias, written out for each draw apart, in NumPy."""
    scores, biases = [], []
    for w in drawn:
        z = x @ w
        bias = -np.sort(z)[(len(z) - 1) // 2]
        a = np.maximum(z + bias, 0.0)
        along = np.mean([each * height for each, height in zip(delta, a, strict=True)], axis=0)
        scores.append(np.sqrt((along**2).sum()) / np.sqrt(np.mean((a - a.mean()) ** 2)))
        biases.append(bias)
    return int(np.argmax(scores)), biases[int(np.argmax(scores))]


def test_the_draw_is_kept_whose_outgoing_weights_have_the_largest_gradient_for_its_size():
    model, given = net(4, 6, 5, 1).double(), Given()
    optimizer, cbp = attached(model, init=given, candidates=7)
    seen, gone = {0: [], 2: []}, []
    for place in seen:
        inputs, following = model[place], model[place + 2]

        def into(_module, args, place=place):
            seen[place].append([args[0].detach().numpy().copy()])

        def out_of(_module, _args, output, place=place):
            output.register_hook(lambda g: seen[place][-1].append(g.numpy().copy()))

        inputs.register_forward_pre_hook(into)
        following.register_forward_hook(out_of)
    checked = 0
    for x in batches(40, 8, 4).double():
        before, given.drawn = [model[place].weight.detach().clone() for place in seen], []
        train(model, optimizer, [x])
        drawn = iter(given.drawn)
        for place, old in zip(seen, before, strict=True):
            new = (cbp.ages()[str(place)][0] == 0).nonzero().flatten().tolist()
            if not new:
                continue
            draws = np.stack([next(drawn).numpy() for _ in range(7)])  # (draws, count, inputs)
            rows, deltas = (np.concatenate([each[side] for each in seen[place][-32:]]) for side in (0, 1))
            for number, unit in enumerate(new):
                best, bias = best_by_the_formula(draws[:, number], rows, deltas)
                expected = torch.from_numpy(draws[best, number]).double()
                if place == 2:
                    expected[cbp.ages()["0"][0] == 0] = 0.0  # both were replaced
                assert_close(model[place].weight[unit].detach(), expected, rtol=0, atol=0)
                assert model[place].bias[unit].item() == pytest.approx(bias, abs=1e-12)
                gone.append(place)
                checked += best > 0
            assert not torch.equal(old, model[place].weight)
    assert min(gone.count(0), gone.count(2)) >= 20
    assert checked >= 30


def test_its_gradient_is_the_one_that_training_finds_next():
    """Where one batch is all that was seen, mean(δ a) of a candidate is what autograd gives its outgoing weights."""
    model, given = net(4, 3, 2), Given()
    optimizer, cbp = attached(model, 0.0, init=given, candidates=5, replacement_rate=0.34)
    x = batches(1, EXAMPLES, 4)[0]

    def loss(y, x):
        return (y - x[:, :2]).square().mean()

    while not any(cbp.stats()["0"]["replaced"]):
        given.drawn = []
        train(model, optimizer, [x], loss)
    (unit,) = (cbp.ages()["0"][0] == 0).nonzero().flatten().tolist()
    speeds = []
    for drawn in given.drawn:
        with torch.no_grad():
            model[0].weight[unit] = drawn[0]
            model[0].bias[unit] = -(x @ drawn[0]).median()
            spread = relu(model[0](x))[:, unit].std(correction=0)
        optimizer.zero_grad()
        loss(model(x), x).backward()
        speeds.append(float(model[2].weight.grad[:, unit].norm() / spread))
    kept = int(np.argmax(speeds))
    assert speeds[kept] > 1.2 * np.median(speeds)  # there was a choice
    assert cbp.redraw._candidates[cbp.groups[0]].seen >= EXAMPLES
    model, given = net(4, 3, 2), Given()
    optimizer, cbp = attached(model, 0.0, init=given, candidates=5, replacement_rate=0.34)
    while not any(cbp.stats()["0"]["replaced"]):
        given.drawn = []
        train(model, optimizer, [x], loss)
    assert_close(model[0].weight[unit].detach(), given.drawn[kept][0], rtol=0, atol=0)


def test_one_candidate_matches_the_bias_so_that_half_of_the_examples_pass():
    model = net(4, 8, 1)
    optimizer, cbp = attached(model, 1e-6, candidates=1)
    train(model, optimizer, batches(20, 32, 4))
    last = batches(20, 32, 4)[-8:].flatten(0, 1)  # the last 256
    new = cbp.ages()["0"][0] == 0
    assert new.any()
    share = (model[0](last) > 0).double().mean(0)[new]
    assert_close(share, torch.full_like(share, 0.5), rtol=0, atol=1 / 256 + 1e-9)


def test_without_candidates_nothing_is_read_and_the_bias_is_0():
    model = net(4, 8, 1)
    optimizer, cbp = attached(model)
    train(model, optimizer, batches(20, 32, 4))
    assert not cbp.redraw.recorders
    assert "candidates" not in cbp.state_dict()["redraw"]
    assert (model[0].bias[cbp.ages()["0"][0] == 0] == 0.0).all()


def test_outputs_stay_as_they_are_when_a_unit_is_replaced():
    model = net(4, 8, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 4).double(), candidates=8, **SETTINGS)
    x = torch.full((3, 4), 0.3).double()  # h is its mean, so the hand-over is exact
    before = model(x).detach()
    train(model, optimizer, [x] * 40)
    assert cbp.stats()["0"]["replaced"][0] >= 20
    assert_close(model(x).detach(), before, rtol=0, atol=1e-12)


def test_resuming_goes_on_to_the_bit():
    def begin():
        model = net(4, 8, 6, 1)
        return model, *attached(model, candidates=6)

    data = batches(60, 16, 4)
    model, optimizer, cbp = begin()
    train(model, optimizer, data)
    assert min(each["replaced"][0] for each in cbp.stats().values()) >= 20
    first, its, method = begin()
    train(first, its, data[:30])
    second, other, resumed = begin()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(method.state_dict())
    train(second, other, data[30:])
    for one, two in zip(model.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_state_without_examples_is_gone_on_from_and_one_of_other_sizes_refused():
    model = net(4, 8, 1)
    _, plain = attached(model)
    state = plain.state_dict()
    plain.detach()
    _, cbp = attached(model, candidates=2)
    cbp.load_state_dict(state)
    state = cbp.state_dict()
    state["redraw"]["candidates"][0]["inputs"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"candidates\.inputs"):
        cbp.load_state_dict(state)


def test_positions_of_a_sequence_are_examples_and_padded_ones_are_not():
    torch.manual_seed(0)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net(4, 6, 1)

        def forward(self, x, real):
            return self.body(x) * real.unsqueeze(-1)

    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    real = torch.tensor([[True, True, False], [True, False, False]])
    x = batches(1, 2, 3, 4)[0]
    cbp = ContinualBackprop(model, optimizer, example_inputs=(x, real), mask="real", candidates=3, **SETTINGS)
    model(x, real).sum().backward()
    ring = cbp.redraw._candidates[cbp.groups[0]]
    assert ring.seen == 6
    assert_close(ring.inputs[ring.real], x[real])


def a_rank(rank, folder):
    torch.manual_seed(rank)
    model = DistributedDataParallel(net(4, 8, 6, 1))
    optimizer, cbp = attached(model, candidates=4)
    train(model, optimizer, batches(60, 8, 4, seed=rank))
    assert min(each["replaced"][0] for each in cbp.stats().values()) >= 20
    mine, both = [each.detach() for each in model.parameters()], [None, None]
    dist.all_gather_object(both, mine)
    assert all(map(torch.equal, *both)), "the ranks differ"


def test_ranks_choose_alike_though_each_sees_examples_of_its_own(tmp_path):
    on_ranks(a_rank, tmp_path)


WITH_CANDIDATES = replace(METHODS[0], build=resets_units(ContinualBackprop, candidates=3), name="candidates", cannot={})


@pytest.mark.parametrize(
    "promise",
    [
        promises.it_repeats_with_its_seed,
        promises.it_resumes_to_the_bit,
        promises.it_keeps_dtype_and_device,
        promises.it_leaves_the_global_random_state_alone,
        promises.a_copy_of_the_model_is_inert,
        promises.detached_it_leaves_no_hook_and_training_is_plain,
        promises.a_closure_changes_nothing,
        promises.accumulated_gradients_are_those_of_the_joint_batch,
        promises.a_state_of_other_sizes_is_refused_and_changes_nothing,
    ],
    ids=lambda promise: promise.__name__,
)
def test_candidates_keep_the_promises_of_methods(promise):
    promise(Cell(WITH_CANDIDATES, "transformer", "adam"))


def test_of_a_large_batch_positions_at_equal_distances_are_kept():
    model = net(4, 6, 1)
    _, cbp = attached(model, candidates=3)
    x = batches(1, 4 * EXAMPLES, 4)[0]
    model(x).sum().backward()
    assert_close(cbp.redraw._candidates[cbp.groups[0]].inputs, x[::4])


class Two(nn.Module):
    """A hidden layer with two heads."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 2)

    def forward(self, x):
        h = self.body(x).relu()
        return torch.cat([self.one(h), self.two(h)], 1)


def test_gradients_stay_with_their_inputs_over_several_passes_and_consumers():
    """Two heads and two accumulated passes: every row holds the gradients of both heads for its own input."""
    model = Two()
    _, cbp = attached(model, candidates=3)
    ring = cbp.redraw._candidates[cbp.groups[0]]
    x, weights = batches(2, 5, 4), batches(2, 5, 3, seed=2)
    sum((model(each) * weight).sum() for each, weight in zip(x, weights, strict=True)).backward()
    assert ring.seen == 10
    for each, weight in zip(x, weights, strict=True):
        for row, gradient in zip(each, weight, strict=True):
            (place,) = (ring.inputs == row).all(1).nonzero().flatten().tolist()
            assert_close(ring.gradients[place], gradient)


def test_a_head_that_an_example_did_not_pass_has_no_gradient_for_it():
    model = Two()
    _, cbp = attached(model, candidates=3)
    ring = cbp.redraw._candidates[cbp.groups[0]]
    model(batches(1, EXAMPLES, 4)[0]).sum().backward()
    assert (ring.gradients == 1.0).all()
    model.one(model.body(batches(1, EXAMPLES, 4)[0]).relu()).sum().backward()
    assert (ring.gradients[:, 0] == 1.0).all()
    assert (ring.gradients[:, 1:] == 0.0).all()


def test_a_gradient_that_comes_when_its_example_has_left_is_dropped():
    model = Two()
    _, cbp = attached(model, candidates=3)
    ring = cbp.redraw._candidates[cbp.groups[0]]
    x, later = batches(2, EXAMPLES, 4)
    early = model(x)
    early.sum().backward(retain_graph=True)
    model(later).sum().backward()
    (early * 7.0).sum().backward()
    assert torch.equal(ring.inputs, later)
    assert (ring.gradients == 1.0).all()


def test_a_candidate_whose_activity_is_constant_is_never_the_best():
    def draw(name, shape, generator):
        draws.append(torch.full(shape, float(len(draws) == 2)))
        return draws[-1]

    model, draws = net(4, 5, 1), []
    optimizer, cbp = attached(model, init=draw, candidates=4)
    for x in batches(20, 8, 4):
        draws.clear()
        train(model, optimizer, [x])
        new = cbp.ages()["0"][0] == 0
        assert (model[0].weight[new] == 1.0).all()
    assert cbp.stats()["0"]["replaced"][0] >= 10


def test_where_examples_are_all_alike_a_unit_is_drawn_plainly():
    model = net(4, 5, 1)
    optimizer, cbp = attached(model, init=lambda name, shape, generator: torch.ones(shape), candidates=4)
    train(model, optimizer, torch.ones(20, 8, 4))
    new = cbp.ages()["0"][0] == 0
    assert new.any()
    assert (model[0].bias[new] == 0.0).all()


def test_a_layer_called_twice_before_its_consumer_gives_no_examples():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

        def forward(self, x):
            one, two = self.body(x).relu(), self.body(x.flip(0)).relu()
            return self.head(one) + self.head(two)

    model = Twice()
    _, cbp = attached(model, candidates=3)
    model(batches(1, 5, 4)[0]).sum().backward()
    assert cbp.redraw._candidates[cbp.groups[0]].seen == 0


def test_units_are_drawn_plainly_and_said_to_be_while_nothing_was_seen(caplog):
    model = net(4, 8, 1)
    optimizer, cbp = attached(model, candidates=3, maturity_threshold=0, replacement_rate=0.5)
    with caplog.at_level(logging.WARNING, "pliant"):
        with torch.no_grad():
            model(torch.zeros(2, 4))
        cbp.redraw._candidates[cbp.groups[0]]._choice(torch.zeros(3, 2, 1, 4))
    assert "no example of '0' was seen" in caplog.text
    del optimizer


def test_evaluation_is_not_seen():
    model = net(4, 6, 1)
    _, cbp = attached(model, candidates=3)
    model.eval()
    model(batches(1, 5, 4)[0]).sum().backward()
    assert cbp.redraw._candidates[cbp.groups[0]].seen == 0


def test_examples_of_other_shape_before_and_behind_the_units_are_an_error():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.head(self.body(x).relu().mean(1))

    model = Pooled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.zeros(2, 3, 4)
    ContinualBackprop(model, optimizer, example_inputs=x, candidates=3, **SETTINGS)
    with pytest.raises(RuntimeError, match=r"'body' is given examples of shape \(2, 3\), and 'head', .* \(2,\)"):
        model(x)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, behind a graph break
def test_a_compiled_model_gives_the_same_examples():
    def learned(compile):
        model = net(4, 6, 1)
        optimizer, cbp = attached(model, candidates=3)
        train(compile(model), optimizer, batches(60, 5, 4))
        assert cbp.stats()["0"]["replaced"][0] >= 20
        return cbp.redraw._candidates[cbp.groups[0]], model

    (ring, model), (other, compiled) = learned(lambda m: m), learned(lambda m: torch.compile(m, backend="eager"))
    for one, two in ((ring.inputs, other.inputs), (ring.gradients, other.gradients), (model[0].bias, compiled[0].bias)):
        assert_close(one, two, rtol=1e-5, atol=1e-6)


def with_group(**changes):
    (group,) = chain_groups(net(4, 6, 1))
    known = {name: getattr(group, name) for name in ("name", "incoming", "outgoing", "tap", "hand_over", "activation")}
    return [UnitGroup(**(known | changes))]


@pytest.mark.parametrize(
    ("model", "given", "why"),
    [
        (lambda: net(4, 6, 1, activation=nn.ELU), {}, "its activation is not one of relu"),
        (lambda: net(4, 6, 1), {"groups": with_group(activation=None)}, "its activation is not one of relu"),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)),
            {},
            "scaled or shifted by parameters of their own",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 1)),
            {},
            "its units are approximate",
        ),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)), {}, "is not one Linear"),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 1, 1)),
            {},
            "it feeds",
        ),
    ],
    ids=["activation", "unknown activation", "batch norm", "layer norm", "convolution before", "convolution behind"],
)
def test_where_nothing_can_be_compared_it_is_an_error_that_says_why(model, given, why):
    built = model()
    shape = (2, 4, 2) if isinstance(built[0], nn.Conv1d) else (2, 4)
    given = given or {"example_inputs": torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"candidates=3: there is no group .*{why}"):
        attached(built, candidates=3, **given)


def test_the_plan_names_the_groups_that_are_drawn_plainly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 1))
    _, cbp = attached(model, candidates=3)
    assert "candidates: fresh units of '2' are drawn plainly: its activation is not one of" in str(cbp.plan)
    assert [group.name for group in cbp.redraw._candidates] == ["0"]


@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.ReLU(), "relu"), (nn.GELU(), "gelu"), (nn.GELU("tanh"), None), (nn.Tanh(), "tanh"), (nn.LeakyReLU(), None)],
    ids=["relu", "gelu", "gelu-tanh", "tanh", "leaky"],
)
def test_tracing_and_chains_know_the_activation(activation, name):
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 1))
    assert [group.activation for group in chain_groups(model)] == [name]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 4))
    assert [group.spec.activation for group in cbp.groups] == [name]
