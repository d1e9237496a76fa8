"""What hangs on an optimizer: wrappers are looked through, and what fails, construction or loading, leaves nothing behind."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import L2, ContinualBackprop, RandomReplacement, ShrinkAndPerturb
from pliant.engine.after_step import AfterStep
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


def trained(name, wrap=lambda optimizer: optimizer, steps=60):
    model = mlp()
    optimizer = wrap(torch.optim.Adam(model.parameters(), lr=0.01))
    method = METHODS[name](model, optimizer)
    train(model, optimizer, range(steps))
    return model, method


@pytest.mark.parametrize("name", METHODS)
def test_a_wrapped_optimizer_is_the_one_inside(name):
    (wrapped, method), (plain, other) = trained(name, Wrapper), trained(name)
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
