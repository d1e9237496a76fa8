"""A copy of the weights that is fed back undoes half of a replacement: the next step says so, and says nothing else."""

import copy
from contextlib import nullcontext

import pytest
import schedulefree
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pliant import (
    ContinualBackprop,
    ReDo,
    ShrinkAndPerturb,
    UnitGroup,
    reset_head,
    reset_network,
)
from pliant.engine import feedback
from pliant.nn import StackedLinear
from pliant.units.groups import Slice, Tap
from tests.networks import batch, enough, mlp, replaced, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1, "example_inputs": torch.zeros(2, 6)}
KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.003),
}
UNDONE = r"weights of units just replaced, in '.*', have moved back .* copy the weights into it after steps"


class Lookahead:
    """Every k steps: slow <- slow + alpha (fast - slow), fast <- slow. Zhang et al., NeurIPS 2019."""

    def __init__(self, optimizer, k=5, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.fast = [p for settings in optimizer.param_groups for p in settings["params"]]
        self.slow = [p.detach().clone() for p in self.fast]

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            for slow, p in zip(self.slow, self.fast, strict=True):
                slow.lerp_(p.data, self.alpha)
                p.data.copy_(slow)  # which no version counter sees


def attached(model, optimizer, method=ContinualBackprop, **settings):
    return method(model, optimizer, **{**OFTEN, **settings})


@pytest.mark.parametrize("k", [1, 5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_lookahead_is_noticed_at_its_first_pull_after_a_replacement(kind, k):
    model = mlp()
    optimizer = KINDS[kind](model.parameters())
    cbp, outer = attached(model, optimizer), Lookahead(optimizer, k)
    first = []

    def note():
        if not first and sum(replaced(cbp).values()):
            first.append(max(group["steps"] for group in cbp.stats().values()))

    with pytest.raises(RuntimeError, match=UNDONE):
        train(model, outer, range(60), after=note)
    assert outer.count == next(each for each in range(k, 100, k) if each >= first[0])  # the step after it never came


def test_redo_under_lookahead_is_noticed():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    settings = {name: OFTEN[name] for name in ("seed", "example_inputs")}
    outer = Lookahead(optimizer, 5)
    ReDo(model, optimizer, tau=0.5, period=10, **settings)
    with pytest.raises(RuntimeError, match=UNDONE):
        train(model, outer, range(40))


def test_lookahead_is_noticed_where_the_method_steps_by_hand():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp, outer = attached(model, optimizer, attach=False), Lookahead(optimizer, 5)

    def pull_late():
        cbp.step()
        for slow, p in zip(outer.slow, outer.fast, strict=True):
            p.data.lerp_(slow, 0.5)

    outer.k = 10**9
    with pytest.raises(RuntimeError, match=UNDONE):
        train(model, outer, range(40), after=pull_late)


def test_lookahead_that_starts_late_is_noticed_once_it_pulls_at_a_replacement(monkeypatch):
    """When the first steps have been looked at closely, only the next step is: every pull at a replacement."""
    monkeypatch.setattr(feedback, "LOOKS", 10)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer, replacement_rate=0.03, maturity_threshold=30)
    train(model, optimizer, range(100))
    assert min(replaced(cbp).values()) >= 10
    with pytest.raises(RuntimeError, match=UNDONE):
        train(model, Lookahead(optimizer, 5), range(100, 300))


# -- other copies ------------------------------------------------------------------------------------------------------


def replaced_now(model, optimizer, method, first=0):
    """Train until a step in which some unit was replaced; the number of the next step."""
    for step in range(first, first + 100):
        before = replaced(method)
        train(model, optimizer, [step])
        if replaced(method) != before:
            return step + 1
    raise AssertionError("nothing was replaced")


def averaged_with_workers(model, held):
    """Federated averaging: three others, of which none has replaced the unit."""
    for p, other in zip(model.parameters(), held, strict=True):
        p.data.copy_((p.data + 3 * other) / 4)


COPIES = {
    "an average that was swapped in": lambda model, held: nn.utils.vector_to_parameters(
        torch.cat([each.flatten() for each in held]), model.parameters()
    ),
    "averaging over workers": averaged_with_workers,
    "an earlier state": lambda model, held: model.load_state_dict(
        {name: each for (name, _), each in zip(model.named_parameters(), held, strict=True)}
    ),
    "a slow copy of the outgoing weights alone": lambda model, held: model[2].weight.data.lerp_(held[2], 0.1),
    "a slow copy of the incoming weights alone": lambda model, held: model[0].weight.data.lerp_(held[0], 0.1),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_copies_that_are_fed_back_are_noticed(name, late, monkeypatch):
    if late:  # as on CUDA, one step later
        monkeypatch.setattr(feedback, "known_at_once", lambda flag: False)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer, include="0" if "alone" in name else ())
    train(model, optimizer, range(5))
    held = [p.detach().clone() for p in model.parameters()]
    step = replaced_now(model, optimizer, cbp, 5)
    COPIES[name](model, held)
    if late:
        train(model, optimizer, [step])
    with pytest.raises(RuntimeError, match=UNDONE):
        train(model, optimizer, [step + 1])


@pytest.mark.parametrize("remedy", ["load_state_dict", "restart"])
def test_an_earlier_state_is_no_error_for_a_method_that_was_told(remedy):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer)
    train(model, optimizer, range(5))
    held, method = copy.deepcopy(model.state_dict()), copy.deepcopy(cbp.state_dict())
    step = replaced_now(model, optimizer, cbp, 5)
    model.load_state_dict(held)
    cbp.load_state_dict(method) if remedy == "load_state_dict" else cbp.restart()
    train(model, optimizer, [step])


# -- what is no feedback -----------------------------------------------------------------------------------------------


def one_output():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 1))


def drawn_anew(model):
    model[4].reset_parameters()


def noisy(model):
    generator = torch.Generator().manual_seed(int(model[0].weight.sum() * 1e6) % 2**31)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def decayed(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.999).clamp_(-2.0, 2.0)


def normalised(model):
    for layer in (model[0], model[2], model[4]):
        layer.weight.data.div_(layer.weight.data.norm(dim=1, keepdim=True).clamp(min=1.0))


def swapped_and_back(model):
    held = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    model.load_state_dict(held)


def last_layer_but_one_drawn_anew(model):
    model[2].reset_parameters()


OWN_BUSINESS = {
    "a hidden layer drawn anew": last_layer_but_one_drawn_anew,
    "a head drawn anew": drawn_anew,
    "weights that are shrunk and clipped": decayed,
    "weights that are normalised": normalised,
    "an average that was swapped in and back": swapped_and_back,
    "a head reset by this library": lambda model: reset_head(model[4], seed=3),
    "a head set to zero": lambda model: reset_head(model[4], how="zero"),
}


@pytest.mark.parametrize("name", OWN_BUSINESS)
def test_what_users_do_between_steps_is_their_own_business(name):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer)
    train(model, optimizer, range(80), after=lambda: OWN_BUSINESS[name](model))
    enough(cbp)


def test_noise_of_the_users_own_is_no_feedback():
    model = one_output()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer)
    for step in range(400):
        optimizer.zero_grad()
        model(batch(step, (6,))[0]).square().mean().backward()
        optimizer.step()
        noisy(model)
    enough(cbp, 100)


@pytest.mark.parametrize("first", ["method", "noise"])
def test_noise_and_resets_of_this_library_are_no_feedback_even_of_one_outgoing_weight(first):
    model = one_output()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    build = {
        "method": lambda: attached(model, optimizer, replacement_rate=0.02),
        "noise": lambda: ShrinkAndPerturb(model, optimizer, noise_std=0.01, shrink=0.99, seed=0),
    }
    cbp, noise = (build[each]() for each in (first, {"method": "noise", "noise": "method"}[first]))
    cbp, noise = (cbp, noise) if first == "method" else (noise, cbp)

    def by_hand():
        noise.apply()
        reset_head(model[4], seed=noise.by_hand)

    for step in range(200):
        optimizer.zero_grad()
        model(batch(step, (6,))[0]).square().mean().backward()
        optimizer.step()
        by_hand()
    enough(cbp)


def test_two_methods_that_reset_units_of_adjacent_layers_do_not_take_each_other_for_feedback():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer)
    redo = ReDo(model, optimizer, tau=0.7, period=2, seed=2, example_inputs=torch.zeros(2, 6))
    train(model, optimizer, range(100))
    enough(cbp)
    assert sum(replaced(redo).values()) >= 20


def test_a_network_that_starts_over_is_no_feedback_once_the_method_restarts():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer)
    step = replaced_now(model, optimizer, cbp)
    reset_network(model, optimizer, seed=0)
    cbp.restart()
    train(model, optimizer, [step])


def test_a_network_drawn_as_it_once_began_goes_back_on_purpose():
    """With a step size of 0 every unit is drawn again as it was before its replacement."""
    model = mlp(seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = attached(model, optimizer, hand_over_mean=False)
    before = copy.deepcopy(model)
    step = replaced_now(model, optimizer, cbp)
    reset_network(model, optimizer, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))
    train(model, optimizer, [step])


def test_averages_that_only_watch_and_targets_feed_nothing_back():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp, average, target = attached(model, optimizer), AveragedModel(model), copy.deepcopy(model)

    def follow():
        average.update_parameters(model)
        for slow, p in zip(target.parameters(), model.parameters(), strict=True):
            slow.data.lerp_(p.data, 0.05)

    train(model, optimizer, range(100), after=follow)
    enough(cbp)


def test_schedule_free_averages_start_at_a_units_new_value_and_feed_nothing_back():
    model = mlp()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.003)
    optimizer.train()
    cbp = attached(model, optimizer)

    def look():
        optimizer.eval()
        optimizer.train()

    train(model, optimizer, range(100), after=look)
    enough(cbp)


def test_a_stack_of_runs_with_a_lookahead_is_noticed_and_without_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(StackedLinear(3, 4, 6), nn.ReLU(), StackedLinear(3, 6, 2))
    group = UnitGroup("0", [Slice("0.weight", 0), Slice("0.bias", 0)], [Slice("2.weight", 1)], tap=Tap("2"), runs=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = ContinualBackprop(model, optimizer, groups=[group], replacement_rate=0.05, maturity_threshold=5, seed=0)
    outer = Lookahead(optimizer, k=10**9)

    def learn(steps):
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(step))
            (model(x) - x[..., :2].abs()).square().mean().backward()
            outer.step()

    learn(range(60))
    enough(cbp)
    outer.k, outer.slow = 1, [p.detach().clone() for p in outer.fast]
    with pytest.raises(RuntimeError, match=UNDONE):
        learn(range(60, 100))


@pytest.mark.parametrize(("looks", "between", "noticed"), [(0, 0, True), (0, 1, False), (200, 1, True)])
def test_after_so_many_looks_only_units_just_replaced_are_looked_at(looks, between, noticed, monkeypatch):
    monkeypatch.setattr(feedback, "LOOKS", looks)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = attached(model, optimizer, replacement_rate=0.01)
    held = [p.detach().clone() for p in model.parameters()]
    step = replaced_now(model, optimizer, cbp)
    train(model, optimizer, range(step, step + between))
    averaged_with_workers(model, held)
    with pytest.raises(RuntimeError, match=UNDONE) if noticed else nullcontext():
        train(model, optimizer, [step + between])
