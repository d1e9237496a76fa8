import copy
import re
import threading

import pytest
import schedulefree
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pliant import (
    TRAC,
    UPGD,
    ContinualBackprop,
    ObGD,
    ReDo,
    ShrinkAndPerturb,
    chain_groups,
    reset_head,
    reset_network,
    reset_optimizer,
)
from pliant.engine.optimizer_state import RULES
from pliant.streams import stream_key
from tests.networks import ages, batch, convnet, enough, mlp, replaced, train

LAYERS = {
    "linear": lambda: nn.Linear(4, 3),
    "convolution": lambda: nn.Conv2d(2, 3, 3),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 3),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "layer norm": lambda: nn.LayerNorm(4),
    "lstm": lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    "gru cell": lambda: nn.GRUCell(4, 3),
    "embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention over others": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
    "transformer layer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "decoder layer": lambda: nn.TransformerDecoderLayer(8, 2, 16),
    "prelu": lambda: nn.PReLU(3),
    "whole network": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)),
}


def same(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def spoil(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_network_drawn_anew_equals_one_built_under_the_same_seed(layer):
    torch.manual_seed(1)
    model = LAYERS[layer]()
    spoil(model)
    before = torch.get_rng_state()
    reset_network(model, seed=42)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(42)
    assert same(model, LAYERS[layer]())


def test_another_seed_draws_another_network_and_a_generator_gives_seeds():
    drawn = []
    generator = torch.Generator().manual_seed(0)
    for seed in (1, 2, generator, generator, 1):
        model = mlp()
        reset_network(model, seed=seed)
        drawn.append(model[0].weight.detach().clone())
    assert all(not torch.equal(a, b) for k, a in enumerate(drawn[:4]) for b in drawn[:k])
    assert torch.equal(drawn[4], drawn[0])


def test_init_has_the_last_word_as_with_apply():
    def init(module):
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)

    model = mlp()
    reset_network(model, seed=5, init=init)
    torch.manual_seed(5)
    built = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 2)).apply(init)
    assert same(model, built)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(3, 3), Scale()), r"'1\.scale' \(Scale\)"),
        (
            nn.Sequential(weight_norm(nn.Linear(3, 3))),
            r"'0\.parametrizations\.weight\.original0' \(ParametrizationList\)",
        ),
    ],
)
def test_a_parameter_that_nobody_can_draw_is_named_and_nothing_is_written(model, name):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=rf"{name} cannot be drawn anew.*Give init="):
        reset_network(model, seed=0)
    assert same(model, before)


COMPUTED = {  # a weight that is computed from parameters: how, and the first of these by name
    "weight norm in a hook": (lambda: nn.utils.weight_norm(nn.Linear(3, 4)), "weight_g"),
    "spectral norm in a hook": (lambda: nn.utils.spectral_norm(nn.Linear(3, 4)), "weight_orig"),
    "weight norm": (lambda: weight_norm(nn.Linear(3, 4)), "parametrizations.weight.original0"),
    "spectral norm": (lambda: spectral_norm(nn.Linear(3, 4)), "parametrizations.weight.original"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5), "weight_orig"),
    "pruned twice": (
        lambda: prune.random_unstructured(prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5), "weight", 0.5),
        "weight_orig",
    ),
    "pruned bias": (lambda: prune.l1_unstructured(nn.Linear(3, 4), "bias", 0.5), "bias_orig"),
}
HOOKS_WARN = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*_norm.*deprecated:FutureWarning")


def with_computed(kind):
    """A network that has trained: hooks have computed the weight, with a history."""
    model = nn.Sequential(COMPUTED[kind][0](), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@HOOKS_WARN
@pytest.mark.parametrize("kind", COMPUTED)
def test_parameters_that_a_weight_is_computed_from_are_drawn_by_an_init_or_named(kind):
    model, optimizer = with_computed(kind)
    name = COMPUTED[kind][1]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for refused in (
        lambda: reset_network(model, optimizer, seed=0),
        lambda: reset_network(model, optimizer, seed=0, init=lambda module: None),
        lambda: reset_head(model[0], optimizer, seed=0),
        lambda: ShrinkAndPerturb(model, optimizer, noise_std=0.1, source="init", seed=0),
    ):
        with pytest.raises(ValueError, match=rf"'(0\.)?{re.escape(name)}' \(\w+\) cannot be drawn anew.*Give init="):
            refused()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer._optimizer_step_post_hooks
    some = ShrinkAndPerturb(model, optimizer, noise_std=0.1, source="init", seed=0, period=None, parameters="1.*")
    some.apply()  # which are none of these

    def init(module):
        for parameter in module.parameters(recurse=False):
            parameter.copy_(torch.linspace(1, 2, parameter.numel()).view_as(parameter))

    reset_network(model, optimizer, seed=0, init=init)
    torch.manual_seed(0)
    fresh, _ = with_computed(kind)
    with torch.no_grad():
        fresh.apply(init)
    fresh.load_state_dict({name: held for name, held in model.state_dict().items() if "mask" in name}, strict=False)
    assert model(torch.ones(2, 3)).isfinite().all()
    assert [*map(torch.Tensor.tolist, model.parameters())] == [*map(torch.Tensor.tolist, fresh.parameters())]
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@HOOKS_WARN
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_head_is_zero_or_told_that_its_weight_would_not_be(kind):
    """Zero over zero, in the norms."""
    model, optimizer = with_computed(kind)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    if "norm" in kind:
        with pytest.raises(
            ValueError, match=r"'weight' \(\w+\) is computed from parameters, and is not zero where these"
        ):
            reset_head(model[0], optimizer, how="zero")
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    else:
        reset_head(model[0], optimizer, how="zero")
        assert not model[0](torch.ones(2, 3)).any()


def test_what_a_forward_left_behind_is_in_nobodys_way():
    class Keeps(nn.Linear):
        def forward(self, x):
            self.seen = [super().forward(x)]
            return self.seen[0]

    model = nn.Sequential(Keeps(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model(torch.ones(2, 3))
    reset_network(model, seed=3)
    torch.manual_seed(3)
    assert same(model, nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert model[0].seen[0].requires_grad


def test_a_model_that_cannot_be_copied_is_named():
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Linear cannot be copied: cannot pickle '_thread\.lock'"):
        reset_network(model, seed=3)


def test_init_can_draw_what_no_layer_does():
    model = nn.Sequential(nn.Linear(3, 3), Scale())
    spoil(model)
    reset_network(model, seed=0, init=lambda module: module.scale.fill_(1.0) if isinstance(module, Scale) else None)
    assert model[1].scale.tolist() == [1.0] * 3


def test_tied_weights_need_an_init_to_say_which_layer_draws_them():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight', '1\.weight' are one tensor"):
        reset_network(model, seed=0)
    reset_network(model, seed=0, init=lambda module: getattr(module, "reset_parameters", list)())
    shared = nn.Linear(3, 3)
    reset_network(nn.Sequential(shared, nn.ReLU(), shared), seed=0)  # one module twice is no question


def test_frozen_parameters_start_over_and_gradients_are_cleared():
    model = mlp()
    model(batch(0, (6,))[0]).sum().backward()
    model[0].weight.requires_grad_(False)
    reset_network(model, seed=8)
    torch.manual_seed(8)
    assert torch.equal(model[0].weight, nn.Linear(6, 12).weight)
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_running_statistics_start_over_unless_they_are_to_stay():
    for statistics in (True, False):
        model = convnet()
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), range(5), (2, 8, 8))
        mean, count = model[0][1].running_mean.clone(), model[0][1].num_batches_tracked.clone()
        reset_network(model, seed=0, statistics=statistics)
        assert torch.equal(model[0][1].running_mean, torch.zeros(6) if statistics else mean)
        assert count == 5
        assert model[0][1].num_batches_tracked == (0 if statistics else 5)


def test_wrappers_are_looked_through():
    plain, wrapped = mlp(), nn.DataParallel(mlp())
    reset_network(plain, seed=3)
    reset_network(wrapped, seed=3)
    assert same(plain, wrapped.module)


# -- the optimizer's memory ------------------------------------------------------------------------------------------

BUILD = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "SGD dampened": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, initial_accumulator_value=0.2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.05, t0=2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "Muon": lambda p: torch.optim.Muon([each for each in p if each.dim() == 2], lr=0.01),
    "UPGD": lambda p: UPGD(p, lr=0.05, sigma=0.01, seed=1),
    "ObGD": lambda p: ObGD(p, lr=0.5, lamda=0.5, beta2=0.99),
    "TRAC": lambda p: TRAC(torch.optim.Adam(p, lr=0.01), scale=0.01),
    "SGDScheduleFree": lambda p: schedulefree.SGDScheduleFree(p, lr=0.5, warmup_steps=3),
    "AdamWScheduleFree": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.05, warmup_steps=3),
    "RAdamScheduleFree": lambda p: schedulefree.RAdamScheduleFree(p, lr=0.05),
}


def built(name, model):
    optimizer = BUILD[name](list(model.parameters()))
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def test_every_optimizer_that_has_a_rule_is_tested():
    here = {
        each.partition(".")[2] for each in RULES if not each.startswith("timm.")
    }  # those: tests/integrations/test_timm.py
    assert here == {name.split()[0] for name in BUILD}


@pytest.mark.parametrize("name", BUILD)
def test_after_a_full_reset_training_is_that_of_a_new_network_and_a_new_optimizer(name):
    old, new = mlp(), mlp(seed=9)
    old_optimizer = built(name, old)
    train(old, old_optimizer, range(30))
    reset_network(old, old_optimizer, seed=9)
    assert same(old, new)
    new_optimizer = built(name, new)
    train(old, old_optimizer, range(30, 60))
    train(new, new_optimizer, range(30, 60))
    assert same(old, new)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_state_may_be_kept_or_only_averages_be_forgotten(name):
    for policy in ("keep", "zero", "fresh"):
        model = mlp()
        optimizer = built(name, model)
        train(model, optimizer, range(10))
        average = "momentum_buffer" if name == "SGD" else "exp_avg"
        held = optimizer.state[model[0].weight][average]
        reset_network(model, optimizer, seed=9, optimizer_state=policy)
        assert optimizer.state[model[0].weight][average] is held  # in place, for a captured graph
        assert held.any().item() is (policy == "keep")
        if name == "Adam":
            assert optimizer.state[model[0].weight]["step"] == (0 if policy == "fresh" else 10)


def test_resetting_the_optimizer_leaves_the_weights_and_may_be_for_some_of_them():
    model = mlp()
    optimizer = built("Adam", model)
    train(model, optimizer, range(10))
    before = copy.deepcopy(model)
    reset_optimizer(optimizer, model[4].parameters())
    assert same(model, before)
    assert [optimizer.state[each]["step"].item() for each in model.parameters()] == [10.0] * 4 + [0.0] * 2
    reset_optimizer(optimizer)
    assert [optimizer.state[each]["step"].item() for each in model.parameters()] == [0.0] * 6


@pytest.mark.parametrize(
    ("gradient", "restarted", "otherwise"),
    [
        (1.0, 10.0 / 1000.0**0.5, 1.0),  # m̂ = (0.9 + 0.1 g) / 0.1, v̂ = (0.999 + 0.001 g²) / 0.001
        (100.0, 109.0 / 10_999.0**0.5, 10.9 / 10.999**0.5),  # about 1 step size, and 3.3
    ],
)
def test_counts_that_start_over_make_the_next_steps_small_and_keep_averages(gradient, restarted, otherwise):
    """Adam-Rel, of an entry whose averages had come to m = v = 1."""

    def moved(restart):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=1.0, eps=0.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        for key, value in (("exp_avg", 1.0), ("exp_avg_sq", 1.0), ("step", 1e6)):
            optimizer.state[weight][key].fill_(value)
        if restart:
            reset_optimizer(optimizer, optimizer_state="counts")
            held = {key: value.item() for key, value in optimizer.state[weight].items()}
            assert held == {"exp_avg": 1.0, "exp_avg_sq": 1.0, "step": 0.0}
        before = weight.item()
        weight.grad.fill_(gradient)
        optimizer.step()
        return before - weight.item()

    assert moved(restart=True) == pytest.approx(restarted)
    assert moved(restart=False) == pytest.approx(otherwise)


@pytest.mark.parametrize("name", ["AdamW", "Adamax", "NAdam", "RAdam", "TRAC"])
def test_counts_start_over_of_all_that_correct_averages_by_them(name):
    model = mlp()
    optimizer = built(name, model)
    train(model, optimizer, range(10))
    counting = getattr(optimizer, "base_optimizer", optimizer)
    before = copy.deepcopy(dict(counting.state[model[0].weight]))
    outside = copy.deepcopy(dict(optimizer.state[model[0].weight]))
    reset_optimizer(optimizer, optimizer_state="counts")
    after = counting.state[model[0].weight]
    assert after["step"] == 0.0
    assert after.get("mu_product", 1.0) == 1.0
    assert all(torch.equal(after[key], before[key]) for key in before if key not in ("step", "mu_product"))
    if name == "TRAC":
        assert all(torch.equal(outside[key], held) for key, held in optimizer.state[model[0].weight].items())


def test_entries_of_young_units_are_corrected_by_the_count_that_starts_over():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    redo = ReDo(model, optimizer, example_inputs=torch.zeros(2, 6), tau=1.0, period=13, seed=1, trial=False)
    train(model, optimizer, range(15))
    reset_optimizer(optimizer, optimizer_state="counts")
    twin, plain = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(15, 22))
    train(twin, plain, range(15, 22))
    assert sum(sum(group["replaced"]) for group in redo.stats().values()) > 3
    assert same(model, twin)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "UPGD"])
def test_without_a_count_to_correct_by_counts_are_refused(name):
    model = mlp()
    with pytest.raises(ValueError, match=f"optimizer_state='counts': {name} corrects no averages by a count of steps"):
        reset_optimizer(built(name, model), optimizer_state="counts")
    with pytest.raises(ValueError, match="unknown optimizer_state 'counts'"):
        reset_network(model, built("Adam", model), seed=1, optimizer_state="counts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: torch.optim.LBFGS(model.parameters()), "no rule to forget the state of LBFGS"),
        (lambda model: torch.optim.SGD(mlp().parameters(), lr=0.1), "steps none of these parameters"),
        (
            lambda model: schedulefree.AdamWScheduleFree(model.parameters()),
            "counts steps for all parameters of a group",
        ),
    ],
)
def test_what_cannot_be_forgotten_is_an_error_and_nothing_is_written(change, message):
    model = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        reset_head(model[4], change(model), seed=0)
    assert same(model, before)


def test_unknown_state_is_an_error_and_keep_is_a_way_out():
    model = mlp()
    optimizer = built("Adam", model)
    optimizer.state[model[0].weight]["curvature"] = torch.ones(12, 6)
    with pytest.raises(ValueError, match="Adam keeps 'curvature', and no rule"):
        reset_network(model, optimizer, seed=0)
    reset_network(model, optimizer, seed=0, optimizer_state="keep")


# -- the head --------------------------------------------------------------------------------------------------------


def test_a_head_is_zeroed_with_its_momentum_and_nothing_else_is_touched():
    model = mlp()
    optimizer = built("SGD", model)
    train(model, optimizer, range(10))
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    before = copy.deepcopy(model)
    reset_head(model[4], optimizer, how="zero")
    assert not model[4].weight.any()
    assert not model[4].bias.any()
    assert not optimizer.state[model[4].weight]["momentum_buffer"].any()
    assert optimizer.state[model[2].weight]["momentum_buffer"].any()
    assert same(model[:4], before[:4])


def test_a_head_is_drawn_by_its_own_rule_or_by_init():
    model = mlp()
    reset_head(model[4], seed=6)
    torch.manual_seed(6)
    assert same(model[4], nn.Linear(9, 2))

    def article(module):
        nn.init.normal_(module.weight, std=(1 / 9) ** 0.5)
        nn.init.zeros_(module.bias)

    reset_head(model[4], seed=6, init=article)
    assert not model[4].bias.any()
    assert model[4].weight.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a seed"),
        ({"how": "shrink"}, "unknown how 'shrink'; known: draw, zero"),
        ({"how": "zero", "optimizer_state": "fill"}, "unknown optimizer_state 'fill'; known: fresh, zero, keep"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        reset_head(nn.Linear(2, 2), **settings)


# -- beside continual backprop ---------------------------------------------------------------------------------------


def with_cbp(model, optimizer="Adam", seed=1):
    stepper = built(optimizer, model)
    settings = {"replacement_rate": 0.05, "maturity_threshold": 5}
    return stepper, ContinualBackprop(model, stepper, groups=chain_groups(model), seed=seed, **settings)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_restarted_method_on_a_reset_network_is_a_new_one_on_a_new_network(optimizer):
    """But for the generator, which goes on: here it is set to where a new one starts."""
    old, new = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    old_optimizer, old_cbp = with_cbp(old, optimizer)
    train(old, old_optimizer, range(103), dtype=torch.float64)
    before = replaced(old_cbp)
    enough(old_cbp)
    reset_network(old, old_optimizer, seed=9)
    new.load_state_dict(old.state_dict())
    old_cbp.restart()
    assert replaced(old_cbp) == before
    assert not ages(old_cbp).any()
    old_cbp.generators[0].manual_seed(stream_key(1, "fresh units"))
    new_optimizer, new_cbp = with_cbp(new, optimizer)
    train(old, old_optimizer, range(100), dtype=torch.float64)
    train(new, new_optimizer, range(100), dtype=torch.float64)
    enough(new_cbp)
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert replaced(old_cbp) == {name: before[name] + count for name, count in replaced(new_cbp).items()}


def test_a_restarted_method_draws_other_weights_than_before():
    model = mlp()
    optimizer, cbp = with_cbp(model)
    state = cbp.generators[0].get_state()
    train(model, optimizer, range(60))
    cbp.restart()
    assert not torch.equal(cbp.generators[0].get_state(), state)


def test_a_head_of_its_own_count_makes_young_units_as_new_as_in_a_new_adam(monkeypatch):
    """Entries of the head that were reset just before have the head's age, not their own."""
    model = mlp(dtype=torch.float64)
    optimizer, cbp = with_cbp(model)
    train(model, optimizer, range(60), dtype=torch.float64)
    enough(cbp, least=10)
    monkeypatch.setattr(cbp, "select", lambda group, age, value: None)  # no more of them from here on
    train(model, optimizer, range(5), dtype=torch.float64)
    reset_head(model[4], optimizer, how="zero")
    alone = nn.Linear(9, 2).double()
    nn.init.zeros_(alone.weight)
    nn.init.zeros_(alone.bias)
    its_own = BUILD["Adam"](alone.parameters())
    for step in range(60, 80):
        x, y = batch(step, (6,), dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        for mine, theirs in zip(alone.parameters(), model[4].parameters(), strict=True):
            mine.grad = theirs.grad.clone()
        optimizer.step()
        its_own.step()
        torch.testing.assert_close(model[4].weight, alone.weight)
