import copy
import random

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import L2, TRAC, ContinualBackprop, inject_plasticity
from tests.methods.runs import differences
from tests.networks import batch, convnet, mlp, train, transformer

OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "trac": lambda parameters: TRAC(torch.optim.Adam(parameters, lr=0.01), scale=0.1),
}


def trained(optimizer="adam", steps=5, model=None):
    model = mlp() if model is None else model
    stepped = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepped, range(steps))
    return model, stepped


def values(module):
    return {name: each.detach().clone() for name, each in module.named_parameters()}


# -- at the moment, and afterwards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_at_that_moment_the_output_is_the_same_to_the_bit(network):
    model, name, shape = (mlp(), "4", (6,)) if network == "mlp" else (transformer(), "head", (4, 6))
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, range(5), shape)
    x, _ = batch(9, shape)
    before = model(x)
    inject_plasticity(model, name, optimizer, seed=0)
    assert torch.equal(model(x), before)


def test_the_output_is_the_frozen_heads_and_what_the_fresh_one_has_learned():
    model, optimizer = trained()
    old = values(model[4])
    head = inject_plasticity(model, "4", optimizer, seed=0)
    drawn = values(head.fresh)
    train(model, optimizer, range(5, 15))
    x, _ = batch(20, (6,))
    h = model[:4](x)
    learned = {name: each - drawn[name] for name, each in values(head.fresh).items()}
    expected = h @ (old["weight"] + learned["weight"]).T + old["bias"] + learned["bias"]
    assert learned["weight"].abs().min() > 0.0
    assert_close(model(x).detach(), expected.detach())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_the_fresh_head_and_the_encoder_train_on(kind):
    """Gradients that the old head still has are dropped, and so are momentum and weight decay."""
    model, optimizer = trained(kind)
    assert model[4].weight.grad.any()
    head = inject_plasticity(model, "4", optimizer, seed=0)
    before = values(model)
    optimizer.step()
    train(model, optimizer, range(5, 10))
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias", "4.fresh.weight", "4.fresh.bias"}
    assert {name for name, each in head.named_parameters() if each.requires_grad} == {"fresh.weight", "fresh.bias"}


def test_as_many_parameters_train_as_before():
    model, optimizer = trained()
    before = sum(each.numel() for each in model.parameters() if each.requires_grad)
    inject_plasticity(model, "4", optimizer, seed=0)
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == before


def test_the_fresh_head_is_drawn_as_it_was_built_and_the_start_is_its_copy():
    model, optimizer = trained()
    head = inject_plasticity(model, "4", optimizer, seed=3)
    torch.manual_seed(3)
    built = nn.Linear(9, 2)
    for part in (head.fresh, head.start):
        assert torch.equal(part.weight, built.weight)
        assert torch.equal(part.bias, built.bias)
    assert head.fresh.weight.data_ptr() != head.start.weight.data_ptr()


def test_init_draws_it_otherwise():
    model, optimizer = trained()
    head = inject_plasticity(model, "4", optimizer, seed=0, init=lambda module: nn.init.constant_(module.bias, 7.0))
    assert head.fresh.bias.tolist() == [7.0, 7.0]


def test_it_leaves_the_global_random_state_alone_and_a_generator_gives_the_seed():
    model, optimizer = trained()
    other = copy.deepcopy(model), torch.get_rng_state(), random.getstate()
    generator = torch.Generator().manual_seed(5)
    first = inject_plasticity(model, "4", optimizer, seed=generator)
    assert torch.equal(torch.get_rng_state(), other[1])
    assert random.getstate() == other[2]
    stepped = torch.optim.Adam(other[0].parameters())
    second = inject_plasticity(other[0], "4", stepped, seed=torch.Generator().manual_seed(5))
    assert torch.equal(first.fresh.weight, second.fresh.weight)


def test_dtype_and_mode_are_those_of_the_head():
    model = mlp(dtype=torch.bfloat16).eval()
    head = inject_plasticity(model, "4", torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    assert {each.dtype for each in head.parameters()} == {torch.bfloat16}
    assert not any(each.training for each in head.modules())


# -- the optimizer -------------------------------------------------------------------------------------------------------


def test_the_fresh_parameters_take_the_places_of_the_old_ones_with_their_settings():
    model = mlp()
    optimizer = torch.optim.Adam(
        [{"params": model[:4].parameters()}, {"params": model[4].parameters(), "lr": 0.5, "weight_decay": 0.2}]
    )
    train(model, optimizer, range(3))
    old = list(model[4].parameters())
    head = inject_plasticity(model, "4", optimizer, seed=0)
    assert [id(each) for each in optimizer.param_groups[1]["params"]] == [id(each) for each in head.fresh.parameters()]
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["weight_decay"]) == (0.5, 0.2)
    assert not any(each in optimizer.state for each in [*old, *head.parameters()])
    assert optimizer.state[model[0].weight]["step"] == 3


def test_the_fresh_head_learns_as_one_that_a_new_optimizer_steps():
    """Adam's first step is one step size for every entry that has a gradient."""
    model, optimizer = trained()
    head = inject_plasticity(model, "4", optimizer, seed=0)
    before = head.fresh.weight.detach().clone()
    train(model, optimizer, [5])
    moved = (head.fresh.weight - before).abs()
    assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=1e-5)


def test_it_resumes_to_the_bit_after_an_injection_into_a_new_network():
    model, optimizer = trained()
    inject_plasticity(model, "4", optimizer, seed=0)
    train(model, optimizer, range(5, 10))
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, range(10, 20))
    other, stepped = trained(steps=0)
    inject_plasticity(other, "4", stepped, seed=99)
    other.load_state_dict(saved[0])
    stepped.load_state_dict(saved[1])
    train(other, stepped, range(10, 20))
    assert set(saved[0]) > {"4.frozen.weight", "4.fresh.weight", "4.start.weight", "0.weight"}
    assert differences([model.state_dict(), optimizer.state_dict()], [other.state_dict(), stepped.state_dict()]) == []


# -- again, and other heads ----------------------------------------------------------------------------------------------


def test_a_second_injection_freezes_the_first():
    model, optimizer = trained()
    inject_plasticity(model, "4", optimizer, seed=0)
    train(model, optimizer, range(5, 10))
    x, _ = batch(20, (6,))
    before = model(x)
    inject_plasticity(model, "4", optimizer, seed=1)
    assert torch.equal(model(x), before)
    held = values(model)
    train(model, optimizer, range(10, 15))
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, held[name])}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias", "4.fresh.weight", "4.fresh.bias"}
    assert len(list(model[4].modules())) == 7  # two injected heads, and five linear layers: not three times three


def test_a_head_may_have_layers_and_frozen_parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)))
    model[1][0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, _ = batch(3, (6,))
    before = model(x)
    head = inject_plasticity(model, "1", optimizer, seed=0)
    assert torch.equal(model(x), before)
    trains = {name for name, each in head.named_parameters() if each.requires_grad}
    assert trains == {"fresh.0.weight", "fresh.2.weight", "fresh.2.bias"}


# -- beside methods ------------------------------------------------------------------------------------------------------


def test_a_method_that_holds_the_old_head_says_so_and_its_successor_goes_on():
    model, optimizer = trained()

    def make():
        return ContinualBackprop(
            model, optimizer, example_inputs=torch.zeros(2, 6), replacement_rate=0.1, maturity_threshold=2, seed=0
        )

    cbp, l2 = make(), L2(model, optimizer, strength=0.1, toward="initial")
    train(model, optimizer, range(5, 10))
    inject_plasticity(model, "4", optimizer, seed=0)
    with pytest.raises(RuntimeError, match=r"'4.weight' was replaced by another tensor after L2 attached"):
        train(model, optimizer, [10])
    cbp, l2 = cbp.successor(make), l2.successor(lambda: L2(model, optimizer, strength=0.1, toward="initial"))
    assert cbp.stats()["0"]["steps"] == 5
    train(model, optimizer, range(10, 30))
    assert sum(cbp.stats()["0"]["replaced"]) > 20
    assert "4.fresh.weight" in l2.names


def test_a_compiled_model_takes_the_fresh_head_in():
    model, optimizer = trained()
    compiled = torch.compile(model, backend="eager")
    x, _ = batch(20, (6,))
    compiled(x)
    head = inject_plasticity(compiled, "4", optimizer, seed=0)
    with torch.no_grad():
        head.fresh.bias.add_(1.0)
    assert_close(compiled(x), model(x), rtol=0, atol=0)
    assert_close(model(x), head.frozen(model[:4](x)) + 1.0)


# -- what is refused -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 6), nn.Linear(6, 5)
        self.head.weight = self.embed.weight


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)
        self.again = self.head


def with_dropout():
    return nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("build", "head", "message"),
    [
        (mlp, "5", r"head='5' is no module of the model"),
        (mlp, "", "head must be a text"),
        (mlp, "1", "no parameter of '1' trains"),
        (lambda: mlp().requires_grad_(False), "4", "no parameter of '4' trains"),
        (Tied, "head", "head: 'head' shares 'embed.weight', which would be frozen with it"),
        (Twice, "again", "head: 'again' is 'head' too"),
        (with_dropout, "1", r"head: '1.0' \(Dropout\) draws numbers"),
        (convnet, "1", r"head: '1.1' \(BatchNorm2d\) holds running statistics"),
        (lambda: nn.Sequential(nn.GRU(6, 4)), "0", r"head: '0' \(GRU\) gives a tuple"),
    ],
)
def test_what_cannot_be_injected_into_is_named_and_nothing_changes(build, head, message):
    model = build()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    optimizer.add_param_group({"params": list(model.parameters())})
    before, names = values(model), [type(each) for each in model.modules()]
    listed = [id(each) for each in optimizer.param_groups[1]["params"]]
    trains = [each.requires_grad for each in model.parameters()]
    with pytest.raises((ValueError, TypeError), match=message):
        inject_plasticity(model, head, optimizer, seed=0)
    assert differences(values(model), before) == []
    assert [type(each) for each in model.modules()] == names
    assert [id(each) for each in optimizer.param_groups[1]["params"]] == listed
    assert [each.requires_grad for each in model.parameters()] == trains


def test_an_optimizer_that_does_not_step_the_head_or_cannot_is_named():
    model = mlp()
    with pytest.raises(ValueError, match=r"optimizer does not step '4.weight'"):
        inject_plasticity(model, "4", torch.optim.SGD(model[:4].parameters(), lr=0.1), seed=0)
    with pytest.raises(ValueError, match="LBFGS keeps a list of its parameters"):
        inject_plasticity(model, "4", torch.optim.LBFGS(model.parameters()), seed=0)
    assert isinstance(model[4], nn.Linear)


def test_a_head_that_gives_no_tensor_is_named_when_it_runs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x):
            return self.layer(x), x

    model = nn.Sequential(nn.Linear(6, 6), Pair())
    inject_plasticity(model, "1", torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    with pytest.raises(TypeError, match="an injected head adds outputs, and this one's is"):
        model(batch(0, (6,))[0])


def test_a_data_parallel_model_is_refused():
    """The group of ranks that one is built with is of no matter here."""
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    with pytest.raises(
        ValueError, match="model is a DistributedDataParallel, which would not know the fresh parameters"
    ):
        inject_plasticity(wrapped, "4", torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    assert isinstance(model[4], nn.Linear)
