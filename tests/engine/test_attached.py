"""What hangs on an optimizer: wrappers are looked through, and what fails, construction or loading, leaves nothing behind."""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import (
    L2,
    ContinualBackprop,
    RandomReplacement,
    ShrinkAndPerturb,
    reset_head,
    reset_network,
    reset_optimizer,
)
from pliant.engine.after_step import AfterStep
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.redraw import Redraw
from pliant.engine.score import RunningUtility
from pliant.engine.select import ReplacementRate
from tests.methods.runs import differences
from tests.networks import batch, enough, mlp, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1, "example_inputs": torch.zeros(2, 6)}
METHODS = {
    "cbp": lambda model, optimizer: ContinualBackprop(model, optimizer, **OFTEN),
    "l2": lambda model, optimizer: L2(model, optimizer, strength=0.1, toward="initial"),
    "snp": lambda model, optimizer: ShrinkAndPerturb(model, optimizer, noise_std=0.01, seed=1),
}


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an `Optimizer` by class that only passes on, without hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def passing_on(optimizer):
    """As Lightning's: it becomes a subclass of the optimizer's own class, and passes on what it lacks, hooks too."""
    found = PassingOn(optimizer)
    step = {"step": lambda self, closure=None: self.optimizer.step(closure)}
    found.__class__ = type("Lightning" + type(optimizer).__name__, (PassingOn, type(optimizer)), step)
    return found


WRAPPERS = {"accelerate": Wrapper, "lightning": passing_on}


def trained(name, wrap=lambda optimizer: optimizer, steps=60):
    model = mlp()
    optimizer = wrap(torch.optim.Adam(model.parameters(), lr=0.01))
    method = METHODS[name](model, optimizer)
    train(model, optimizer, range(steps))
    return model, method


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_wrapped_optimizer_is_the_one_inside(name, wrapper):
    (wrapped, method), (plain, other) = trained(name, WRAPPERS[wrapper]), trained(name)
    if name == "cbp":
        enough(method)
    assert_close(wrapped.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert differences(method.state_dict(), other.state_dict()) == []


def test_a_step_by_hand_may_name_the_wrapper():
    model = mlp()
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    cbp = ContinualBackprop(model, optimizer, attach=False, **OFTEN)
    train(model, optimizer, range(30), after=lambda: cbp.step(optimizer))
    assert {group["steps"] for group in cbp.stats().values()} == {30}


# -- what is given for an optimizer ----------------------------------------------------------------------------------------


class SteppingAnother(torch.optim.Optimizer):
    """A wrapper with groups, state and hooks of its own."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


class PassingOn:
    """A wrapper that is no `Optimizer`."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    optimizer = property(lambda self: self._optimizer)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


class NoneOfTorchs(torch.optim.Optimizer):
    def __init__(self, parameters):
        self.param_groups, self.state = [{"params": list(parameters)}], {}

    def step(self, closure=None): ...


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


ADVICE = "give the torch.optim.Optimizer that steps the model, or a list of several"
NO_OPTIMIZERS = {
    "None": (lambda model: None, f"optimizer is None: {ADVICE}"),
    "an empty list": (lambda model: [], "optimizer is empty: give the optimizer that steps the model, or several"),
    "None beside one": (lambda model: [adam(model), None], f"optimizer[1] is None: {ADVICE}"),
    "a list in a list": (lambda model: [[adam(model)]], f"optimizer[0] is a list: {ADVICE}"),
    "one twice": (lambda model: [adam(model)] * 2, "optimizer names the same optimizer more than once: give each once"),
    "one and its wrapper": (
        lambda model: [one := adam(model), Wrapper(one)],
        "optimizer names the same optimizer more than once: give each once",
    ),
    "a schedule": (
        lambda model: torch.optim.lr_scheduler.StepLR(adam(model), 1),
        "optimizer is a StepLR, which holds another one, Adam: give its .optimizer",
    ),
    "a wrapper": (
        lambda model: PassingOn(adam(model)),
        "optimizer is a PassingOn, which holds another one, Adam: give its .optimizer",
    ),
    "the model": (lambda model: model, f"optimizer is a Sequential: {ADVICE}"),
    "the class": (
        lambda model: torch.optim.Adam,
        "optimizer is the class Adam: give an optimizer, Adam(model.parameters(), ...)",
    ),
    "parameters": (lambda model: model.parameters(), f"optimizer[0] is a Parameter: {ADVICE}"),
    "a name": (lambda model: "adam", f"optimizer is a str: {ADVICE}"),
    "a step size": (lambda model: 0.01, f"optimizer is a float: {ADVICE}"),
    "a state": (lambda model: adam(model).state_dict(), f"optimizer is a dict: {ADVICE}"),
    "a scaler": (lambda model: torch.amp.GradScaler("cpu"), f"optimizer is a GradScaler: {ADVICE}"),
}
CALLS = {
    **METHODS,
    "cbp that keeps state": lambda model, given: ContinualBackprop(model, given, optimizer_state="keep", **OFTEN),
    "reset_optimizer": lambda model, given: reset_optimizer(given),
    "reset_network": lambda model, given: reset_network(model, given, seed=0),
    "reset_head": lambda model, given: reset_head(model[4], given, how="zero"),
}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (call, what)
        for call in CALLS
        for what in NO_OPTIMIZERS
        if what != "None" or call not in ("snp", "reset_network", "reset_head")  # which may go without one
    ],
)
def test_what_is_no_optimizer_is_named_with_what_to_give(call, what):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    give, message = NO_OPTIMIZERS[what]
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        CALLS[call](model, give(model))
    assert hooks_of(model) == 0
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_that_takes_no_hooks_is_an_error_unless_steps_are_told(name):
    model = mlp()
    with pytest.raises((TypeError, ValueError), match="NoneOfTorchs"):
        METHODS[name](model, NoneOfTorchs(model.parameters()))
    assert hooks_of(model) == 0
    cbp = ContinualBackprop(model, NoneOfTorchs(model.parameters()), attach=False, optimizer_state="keep", **OFTEN)
    for number in range(3):
        model(batch(number, (6,))[0]).sum().backward()
        cbp.step()
    assert cbp.stats()["0"]["steps"] == 3


def test_a_wrapper_with_state_of_its_own_is_an_error_that_says_what_to_give():
    model = mlp()
    with pytest.raises(
        ValueError, match=r"state of SteppingAnother, which holds another one, Adam: give its \.optimizer"
    ):
        METHODS["cbp"](model, SteppingAnother(adam(model)))
    assert hooks_of(model) == 0


class Mine(torch.optim.Adam):
    """A name of one's own."""


class Clipping(torch.optim.Adam):
    """A step of one's own, around that of the class: both run hooks."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("name", METHODS)
def test_a_subclass_that_steps_as_its_class_is_known_by_it(name):
    def run(kind):
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.01)
        method = METHODS[name](model, optimizer)
        train(model, optimizer, range(60))
        return model, method

    (mine, method), (plain, other) = run(Mine), run(torch.optim.Adam)
    assert_close(mine.state_dict(), plain.state_dict(), rtol=0, atol=0)
    if name == "cbp":
        enough(method)
        assert method.stats() == other.stats()


def test_a_subclass_with_a_step_of_its_own_is_not_known():
    model = mlp()
    with pytest.raises(ValueError, match=r"state of Clipping, a Adam with a step\(\) of its own.*: give a plain Adam"):
        METHODS["cbp"](model, Clipping(model.parameters()))
    assert hooks_of(model) == 0


@pytest.mark.parametrize("name", ["cbp", "l2", "snp"])
def test_a_step_within_a_step_is_one_step(name):
    adam(mlp())  # from here on hooks run around Adam's own step too
    runs = []
    for kind in (Clipping, torch.optim.Adam):
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.01)
        make = CALLS["cbp that keeps state"] if name == "cbp" else METHODS[name]
        method = make(model, optimizer)
        train(model, optimizer, range(60))
        runs.append((model.state_dict(), method.stats() if name == "cbp" else getattr(method, "steps", None)))
    assert_close(runs[0][0], runs[1][0], rtol=0, atol=0)
    assert runs[0][1] == runs[1][1]


# -- a parameter that two optimizers list ----------------------------------------------------------------------------------


class ActorCritic(nn.Module):
    """A shared encoder, which the loss of the actor trains and that of the critic does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.actor, self.critic = (nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2)) for _ in range(2))

    def forward(self, x):
        h = self.encoder(x)
        return self.actor(h), self.critic(h)


def both(model):
    return [torch.optim.Adam([*model.encoder.parameters(), *part.parameters()]) for part in (model.actor, model.critic)]


def learn(model, actor, critic, steps):
    """The critic steps twice as often."""
    for number in range(steps):
        x = batch(number, (6,))[0]
        critic.zero_grad()
        model.critic(model.encoder(x).detach()).square().mean().backward()
        critic.step()
        if number % 2:
            actor.zero_grad()
            model.actor(model.encoder(x)).square().mean().backward()
            actor.step()


def test_a_parameter_is_stepped_by_the_first_optimizer_that_lists_it():
    """As if the other did not list it."""
    runs = []
    for listed_twice in (True, False):
        model = ActorCritic()
        actor, critic = both(model)
        if not listed_twice:
            critic = torch.optim.Adam(model.critic.parameters())
        settings = {**OFTEN, "replacement_rate": 0.1}
        cbp, l2 = ContinualBackprop(model, [actor, critic], **settings), L2(model, [actor, critic], strength=0.01)
        snp = ShrinkAndPerturb(model, [actor, critic], noise_std=0.001, seed=1)
        learn(model, actor, critic, 120)
        runs.append((model, cbp, l2.places, snp))
    enough(runs[0][1])
    assert {name: group["steps"] for name, group in runs[0][1].stats().items()} == {
        "encoder.0": 60,
        "actor.0": 60,
        "critic.0": 120,
    }
    assert runs[0][1].stats() == runs[1][1].stats()
    assert runs[0][3].steps == runs[1][3].steps == [60, 120]
    assert_close(runs[0][0].state_dict(), runs[1][0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_another_that_steps_it_is_an_error_before_it_does(name):
    model = ActorCritic()
    actor, critic = both(model)
    METHODS[name](model, [critic, actor])
    learn(model, actor, critic, 1)  # the critic alone
    before = copy.deepcopy(model.state_dict())
    message = (
        r"'encoder\.0\.weight' is listed by optimizer\[0\] and optimizer\[1\], and the first is taken for the one that steps it, "
        r"but optimizer\[1\] is about to step it, since it has a gradient: give the one that steps it first, or take it out"
    )
    model.actor(model.encoder(batch(0, (6,))[0])).square().mean().backward()
    with pytest.raises(RuntimeError, match=message):
        actor.step()
    with pytest.raises(RuntimeError, match=message):
        actor.step(lambda: model(batch(0, (6,))[0])[0].sum().backward())
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_another_that_has_stepped_it_is_an_error_at_construction(name):
    model = ActorCritic()
    actor, critic = both(model)
    learn(model, actor, critic, 2)
    with pytest.raises(
        ValueError, match=r"'encoder\.0\.weight' is listed by .* optimizer\[1\] has stepped it already: give"
    ):
        METHODS[name](model, [critic, actor])
    assert hooks(actor, model) + hooks(critic, model) == 0
    METHODS[name](model, [actor, critic])


# -- construction that fails -----------------------------------------------------------------------------------------------


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


MASKED = {
    **METHODS,
    "masked": lambda model, given: ContinualBackprop(model, given, mask=lambda x: x[:, 0] > 0, **OFTEN),
}
REGISTER = [
    (nn.Module, "register_forward_pre_hook"),
    (nn.Module, "register_forward_hook"),
    (torch.optim.Optimizer, "register_step_pre_hook"),
    (torch.optim.Optimizer, "register_step_post_hook"),
]


def refuse_hook(number, patch):
    """The hook of this number among all that are registered from here on is refused."""
    left = iter(range(number, -1, -1))

    def refusing(register):
        def hook(*args, **kwargs):
            if next(left, 1) == 0:
                raise RuntimeError("no hooks here")
            return register(*args, **kwargs)

        return hook

    for owner, method in REGISTER:
        patch.setattr(owner, method, refusing(getattr(owner, method)))


@pytest.mark.parametrize("name", MASKED)
def test_whichever_hook_is_refused_none_is_left_and_the_next_try_works(name, monkeypatch):
    model = mlp()
    optimizers = [torch.optim.Adam(model[:3].parameters()), torch.optim.AdamW(model[3:].parameters())]
    number, attached = 0, None
    while attached is None:
        with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
            refuse_hook(number, patch)
            attached = MASKED[name](model, optimizers)
        assert attached is not None or sum(hooks(each, model) for each in optimizers) == 0
        number += 1
    assert number > 4
    train(model, optimizers[0], range(3))


@pytest.mark.parametrize("part", ["score", "select", "redraw", "forget"])
def test_whichever_part_refuses_nothing_is_left(part, monkeypatch):
    of = {"score": RunningUtility, "select": ReplacementRate, "redraw": Redraw, "forget": OptimizerState}[part]
    bind = of.bind

    def refuses_after(self, *args):
        bind(self, *args)
        raise RuntimeError("no")

    model = mlp()
    optimizer = adam(model)
    with monkeypatch.context() as patch:
        patch.setattr(of, "bind", refuses_after)
        with pytest.raises(RuntimeError, match="no"):
            METHODS["cbp"](model, optimizer)
    assert hooks(optimizer, model) == 0
    again, other = METHODS["cbp"](model, optimizer), mlp()
    twin = adam(other)
    plain = METHODS["cbp"](other, twin)
    train(model, optimizer, range(60))
    train(other, twin, range(60))
    enough(again)
    assert again.stats() == plain.stats()
    assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def refuses(*given):
    raise RuntimeError("no hooks here")


def hooks(optimizer, model):
    of_model = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks) + of_model


@pytest.mark.parametrize("name", METHODS)
def test_where_the_second_optimizer_takes_no_hook_the_first_and_the_model_keep_none(name):
    model = mlp()
    first = torch.optim.Adam([*model[0].parameters(), *model[2].parameters()])
    second = torch.optim.SGD(model[4].parameters(), lr=0.1)
    second.register_step_post_hook = refuses
    with pytest.raises(RuntimeError, match="no hooks here"):
        METHODS[name](model, [first, second])
    assert hooks(first, model) == 0


class Looks(AfterStep):
    """Says whether it runs compiled."""

    draws = "nothing"

    def act(self, places, keys):
        seen.append(torch.compiler.is_compiling())

    def _begins(self, optimizer):
        seen.append(torch.compiler.is_compiling())


seen = []


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_nothing_of_a_method_is_compiled_with_the_step_of_its_optimizer(attach):
    torch._dynamo.reset()
    seen.clear()
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    method = Looks(layer, optimizer, attach=attach)

    @torch.compile(backend="eager")
    def step():
        optimizer.step()
        if not attach:
            method.step()
        method.apply()

    layer(torch.ones(1, 2)).sum().backward()
    step()
    assert seen == [False, False, False]
    torch._dynamo.reset()


def without(key):
    return lambda state: {name: held for name, held in state.items() if name != key}


def changed(*path):
    *way, last, value = path

    def change(state):
        held = state
        for step in way:
            held = held[step]
        held[last] = value
        return state

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("cbp", without(key)) for key in ("panels", "counts", "score", "select", "forget", "seeds", "generators")),
        ("cbp", changed("generators", 0, torch.zeros(3, dtype=torch.uint8))),
        ("cbp", changed("panels", 0, "born", torch.zeros(1, 1, dtype=torch.int64))),
        ("cbp", changed("panels", 0, "steps", [-5, 7])),
        ("cbp", changed("score", "utility", [torch.zeros(1, 1)])),
        ("l2", without("targets")),
        ("l2", changed("targets", 0, torch.zeros(3, 3))),
        ("snp", changed("steps", [])),
        ("snp", changed("seeds", ["x"])),
    ],
)
def test_a_damaged_state_is_refused_in_words_and_changes_nothing(name, damage):
    _, method = trained(name, steps=20)
    _, later = trained(name, steps=40)
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(ValueError):  # noqa: PT011  (each says something else)
        method.load_state_dict(damage(copy.deepcopy(later.state_dict())))
    assert differences(method.state_dict(), before) == []


def test_looking_at_random_utilities_draws_nothing():
    models = []
    for looks in (True, False):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        method = RandomReplacement(model, optimizer, **OFTEN)
        train(model, optimizer, range(60), after=method.utilities if looks else lambda: None)
        enough(method)
        models.append(model.state_dict())
    assert_close(models[0], models[1], rtol=0, atol=0)


# -- names of parameters --------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """A submodule of a wrapper's name is none, nor is one whose name ends in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.module, self.my_module = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.my_module(torch.relu(self.module(x)))


def test_a_submodule_of_a_wrappers_name_keeps_it():
    model = Nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    l2 = L2(model, optimizer, strength=0.1, parameters="module.*")
    assert l2.names == ["module.weight", "module.bias"]
    assert L2(nn.DataParallel(model), optimizer, strength=0.1, parameters="my_module.*").names == [
        "my_module.weight",
        "my_module.bias",
    ]


def test_a_state_of_before_under_its_names_of_then_is_known():
    model = Nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    l2 = L2(model, optimizer, strength=0.1, toward="initial")
    cbp = ContinualBackprop(model, optimizer, **OFTEN)
    of_l2, of_cbp = l2.state_dict(), cbp.state_dict()
    of_l2["names"] = [name.removeprefix("module.") for name in of_l2["names"]]
    of_cbp["fingerprint"] = [row.fingerprint().replace("module.", "") for row in cbp.plan.rows]
    l2.load_state_dict(of_l2)
    cbp.load_state_dict(of_cbp)
    of_l2["names"][0] = "another.weight"
    with pytest.raises(ValueError, match=r"saved with names = \['another\.weight'"):
        l2.load_state_dict(of_l2)
    x, y = batch(0, (6,))
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
