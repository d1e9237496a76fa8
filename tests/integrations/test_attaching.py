"""A method within a loop of another library, without the library: the loop is ours."""

import copy
import gc
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import pliant
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.redraw import Redraw
from pliant.engine.score import RunningUtility
from pliant.engine.select import ReplacementRate
from pliant.integrations.attaching import Attachment
from tests.engine.test_stacks import Stack
from tests.networks import mlp

pytestmark = pytest.mark.integrations

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 3, "seed": 5}


def network(seed=0):
    model = mlp(seed=seed)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def attachment(method=pliant.ContinualBackprop, settings=OFTEN, **more):
    return Attachment(method, settings, owner="Callback", **more)


def train(model, optimizer, steps=40):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def hooks(model, optimizer):
    on_modules = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return on_modules + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def replaced(method):
    return min(sum(group["replaced"]) for group in method.stats().values())


def parts():
    return {
        "score": RunningUtility(),
        "select": ReplacementRate(0.1, 3),
        "redraw": Redraw(),
        "forget": OptimizerState(),
        "seed": 5,
    }


METHODS = {
    "parts": (pliant.UnitReset, parts()),
    "a partial of parts": (partial(pliant.UnitReset, **parts()), {}),
    "continual backprop": (pliant.ContinualBackprop, OFTEN),
    "redo": (pliant.ReDo, {"tau": 0.8, "period": 4}),
    "random": (pliant.RandomReplacement, {**OFTEN}),
    "l2": (pliant.L2, {"strength": 0.01, "toward": "initial"}),
    "shrink and perturb": (pliant.ShrinkAndPerturb, {"shrink": 0.99, "noise_std": 0.01, "seed": 1}),
    "a partial": (partial(pliant.ContinualBackprop, **OFTEN), {}),
    "a function": (lambda model, optimizer, **more: pliant.ContinualBackprop(model, optimizer, **OFTEN, **more), {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_in_two_halves_with_the_state_stashed_in_between_ends_as_in_one(name):
    method, settings = METHODS[name]
    model, optimizer = network()
    whole = attachment(method, settings)
    whole.attach(model, [optimizer], example_inputs=X)
    train(model, optimizer, 40)

    again, optimizer_again = network()
    first = attachment(method, settings)
    first.attach(again, [optimizer_again], example_inputs=X)
    train(again, optimizer_again, 20)
    first.detach()
    second = attachment(method, settings)
    second.stash(copy.deepcopy(first.state_dict()))
    second.attach(again, [optimizer_again], example_inputs=X)
    train(again, optimizer_again, 20)

    if isinstance(whole.method, pliant.UnitReset):
        assert replaced(whole.method) >= 20
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    second.detach()
    assert hooks(again, optimizer_again) == 0


def test_detaching_keeps_the_state_and_attaching_goes_on():
    model, optimizer = network()
    kept = attachment()
    for _ in range(2):
        kept.attach(model, [optimizer], example_inputs=X)
        train(model, optimizer, 15)
        kept.detach()
        assert hooks(model, optimizer) == 0
    assert {group["steps"] for group in kept.method.stats().values()} == {30}


def test_a_copy_and_a_pickle_have_the_state_and_no_model():
    model, optimizer = network()
    kept = attachment()
    kept.attach(model, [optimizer], example_inputs=X)
    train(model, optimizer, 15)
    for twin in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert twin.method is None
        other, its = network()
        twin.attach(other, [its], example_inputs=X)
        assert replaced(twin.method) == replaced(kept.method) > 0


def test_what_was_recorded_for_no_step_is_dropped():
    model, optimizer = network()
    kept = attachment()
    method = kept.attach(model, [optimizer], example_inputs=X)
    model(X)
    assert min(method.recorded().values()) > 0
    kept.drop_recorded()
    assert max(method.recorded().values()) == 0


def test_a_pull_has_recorded_nothing_to_drop():
    model, optimizer = network()
    kept = attachment(pliant.L2, {"strength": 0.1})
    kept.attach(model, [optimizer])
    kept.drop_recorded()


def test_what_a_run_that_raised_left_is_detached_by_the_next_and_keeps_its_state(caplog):
    model, optimizer = network()
    left, fresh = attachment(), attachment()
    left.attach(model, [optimizer], example_inputs=X, run=object())
    train(model, optimizer, 15)
    fresh.attach(model, [optimizer], example_inputs=X, run=object())
    assert not left.is_attached
    assert replaced(left.method) > 0
    assert "ContinualBackprop of an earlier run, which did not end, is detached from its model" in caplog.text
    assert left.state_dict()["counts"] != fresh.state_dict()["counts"]


def test_what_nobody_holds_any_more_is_detached_too(caplog):
    model, optimizer = network()
    attachment().attach(model, [optimizer], example_inputs=X, run=object())
    gc.collect()
    attachment().attach(model, [optimizer], example_inputs=X, run=object())
    assert "of an earlier run" in caplog.text


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (pliant.ContinualBackprop, {"replacement_rat": 0.1}, "did you mean 'replacement_rate'"),
        (pliant.ContinualBackprop, {"replacement_rate": -1}, r"replacement_rate must lie in \[0, 1\]"),
        (pliant.ContinualBackprop, {"attach": False}, "attach: the callback sets these itself"),
        (pliant.L2, {}, "strength"),
        (pliant.L2, {"strength": "much"}, "strength must be a number, got 'much'"),
        (pliant.ReDo, {"tau": 0.1, "period": 0}, "period must be 1 or more whole optimizer steps"),
        (None, {}, "without its arguments, got None"),
        ("cbp", {}, "without its arguments, got 'cbp'"),
        (lambda model, optimizer: model, {}, "such as pliant.ReDo, and this made a Sequential"),
        (nn.Linear, {}, "such as pliant.ReDo, got the class Linear"),
        (pliant.ContinualBackprop, {"include": 3}, "include takes a pattern or a list of patterns, got 3"),
    ],
)
def test_what_the_method_refuses_is_refused_before_a_model_is_there(method, settings, message):
    drawn = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=message):
        attachment(method, settings)
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("name", ["a/b", "..\\a", "C:"])
def test_a_name_is_part_of_a_file_name(name):
    with pytest.raises(ValueError, match=r"name is part of a file's name"):
        attachment(name=name)


def test_seeds_of_a_stack_are_left_to_the_model():
    stack = Stack([mlp(seed=seed) for seed in range(2)])
    kept = attachment(settings={**OFTEN, "seed": [1, 2], "groups": stack.groups(), "init": "kaiming"})
    method = kept.attach(stack, torch.optim.SGD(stack.parameters(), lr=0.1))
    assert method.seeds == [1, 2]


def test_a_method_that_is_there_already_is_no_maker():
    model, optimizer = network()
    made = pliant.L2(model, optimizer, strength=0.1)
    with pytest.raises(TypeError, match="without its arguments, got a L2"):
        attachment(made, {})


def frozen():
    model, optimizer = network()
    model.requires_grad_(False)
    return model, [optimizer]


def of_another_model():
    return network()[0], [network()[1]]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (lambda: (network()[0], [None]), r"optimizer\[0\] is None"),
        (lambda: (network()[0], None), "optimizer is None"),
        (of_another_model, "Pass the optimizer that was built from this model's parameters"),
        (frozen, "frozen|requires_grad|train"),
    ],
)
@pytest.mark.parametrize("name", ["continual backprop", "l2"])
def test_where_it_does_not_fit_nothing_is_attached(name, where, message):
    if name == "l2" and where is frozen:
        pytest.skip("a frozen parameter has no gradient, so it is left alone until it trains")
    kept = attachment(*METHODS[name])
    model, optimizers = where()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        kept.attach(model, optimizers, example_inputs=X)
    assert kept.method is None
    assert not kept.is_attached
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_second_one_of_its_kind_is_refused_and_the_first_stays():
    model, optimizer = network()
    first, second = attachment(), attachment()
    run = object()
    first.attach(model, [optimizer], example_inputs=X, run=run)
    with pytest.raises(ValueError, match="already reset by a ContinualBackprop"):
        second.attach(model, [optimizer], example_inputs=X, run=run)
    assert first.is_attached
    assert not second.is_attached
    train(model, optimizer, 40)
    assert replaced(first.method) >= 20


def test_a_state_of_another_model_is_refused_and_still_there():
    model, optimizer = network()
    kept = attachment()
    kept.attach(model, [optimizer], example_inputs=X)
    other = attachment()
    other.stash(kept.state_dict())
    wide = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    its = torch.optim.Adam(wide.parameters())
    with pytest.raises(ValueError, match="saved for other units"):
        other.attach(wide, [its], example_inputs=X)
    assert not other.is_attached
    assert hooks(wide, its) == 0
    assert other.state_dict() is not None


def test_another_model_is_refused_and_a_loaded_state_is_not():
    model, optimizer = network()
    kept = attachment()
    kept.attach(model, [optimizer], example_inputs=X)
    kept.detach()
    other, its = network(1)
    with pytest.raises(RuntimeError, match=r"this Callback has trained another model\. Give every model its own"):
        kept.attach(other, [its], example_inputs=X)
    kept.stash(kept.state_dict())
    kept.attach(other, [its], example_inputs=X)
    assert kept.is_attached


def test_a_state_is_not_loaded_while_a_loop_runs():
    model, optimizer = network()
    kept = attachment()
    kept.attach(model, [optimizer], example_inputs=X)
    with pytest.raises(RuntimeError, match="a loop is running with this Callback"):
        kept.stash(kept.state_dict())


def test_where_parameters_are_others_units_that_stayed_go_on():
    model, optimizer = network()
    kept = attachment()
    kept.attach(model, [optimizer], example_inputs=X)
    train(model, optimizer)
    stats = kept.method.stats()
    assert replaced(kept.method) >= 20
    model[4] = nn.Linear(9, 5)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    assert kept.retrace(model, [optimizer], example_inputs=X) is kept.method
    assert kept.method.stats() == stats
    train(model, optimizer)
    assert replaced(kept.method) >= 40
    kept.detach()
    assert hooks(model, optimizer) == 0


def test_where_retracing_fails_nothing_is_attached_and_the_state_is_there():
    model, optimizer = network()
    kept = attachment()
    with pytest.raises(RuntimeError, match="this Callback is attached to no model"):
        kept.retrace(model, [optimizer], example_inputs=X)
    kept.attach(model, [optimizer], example_inputs=X)
    train(model, optimizer)
    counts = kept.state_dict()["counts"]
    with pytest.raises(ValueError, match="Pass the optimizer"):
        kept.retrace(model, [network()[1]], example_inputs=X)
    assert not kept.is_attached
    assert hooks(model, optimizer) == 0
    assert kept.state_dict()["counts"] == counts


class Heads(nn.Module):
    """All heads read the same units."""

    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.ModuleList([nn.Linear(8, 2)])

    def forward(self, x):
        hidden = self.body(x)
        return torch.cat([head(hidden) for head in self.heads], 1)


def test_units_that_another_head_reads_too_keep_what_is_known_of_them():
    torch.manual_seed(0)
    model = Heads()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    kept = attachment()
    before = kept.attach(model, [optimizer], example_inputs=X)
    train(model, optimizer)
    (group,) = before.groups
    known = before.ages()[group.name], before.utilities()[group.name], before.score.mean(group)
    assert replaced(before) >= 20
    model.heads.append(nn.Linear(8, 3))
    optimizer.add_param_group({"params": list(model.heads[1].parameters())})
    after = kept.retrace(model, [optimizer], example_inputs=X)
    (grown,) = after.groups
    assert torch.equal(after.ages()[group.name], known[0])
    assert torch.equal(after.utilities()[group.name], known[1])
    assert torch.equal(after.score.mean(grown)[:, :, : known[2].shape[2]], known[2])
    train(model, optimizer)
    assert replaced(after) >= 40
