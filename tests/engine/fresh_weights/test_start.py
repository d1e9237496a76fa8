"""Fresh units are of the size of those that a network started with."""

import logging
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from pliant import ContinualBackprop, ReDo, chain_groups
from pliant.engine.fresh_weights.start import differ
from pliant.nn import StackedLinear
from pliant.streams import stream_key
from pliant.units import Slice, Tap, UnitGroup
from pliant.units.bound import NamedModel
from tests.engine.fresh_weights.networks import Bell, Gated, Gpt, Raw, Vgg, VisionMlp, plain, words
from tests.units.hard_cases import Net

X = (8, 24)


def replaced_at_once(model, x, *, optimizer=None, weights=None, **settings):
    """Every unit is replaced in one step that moves nothing else; the method, detached."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    where = settings if "groups" in settings else {"example_inputs": x, **settings}
    cbp = ContinualBackprop(model, optimizer, replacement_rate=1.0, maturity_threshold=0, seed=3, **where)
    model(x).square().sum().backward()
    optimizer.step()
    assert all(
        min(each["replaced"]) == group.units for each, group in zip(cbp.stats().values(), cbp.groups, strict=True)
    )
    cbp.detach()
    return cbp


def starts(cbp):
    """How each group's incoming weights started, by the state; nothing where it does not say."""
    held = cbp.state_dict()["redraw"]["starts"] or []
    return {group.name: of_group for group, of_group in zip(cbp.groups, held, strict=bool(held))}


def near(weights, std):
    """Standard deviation about 0, to three standard errors of as many normal numbers."""
    return weights.square().mean().sqrt().item() == pytest.approx(std, rel=3 / math.sqrt(2 * weights.numel()))


def is_uniform(weights):
    """The fourth moment over the squared second is 1.8 of uniform numbers, 3 of normal ones."""
    return (weights.pow(4).mean() / weights.square().mean() ** 2).item() < 2.2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, logger="pliant")
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith("init:")]


# -- a fresh network ---------------------------------------------------------------------------------------------------


def test_a_fresh_unit_of_a_gpt_is_drawn_by_the_model_s_own_initializer(told):
    model = Gpt()
    cbp = replaced_at_once(model, words(), include="h.1.mlp.c_fc")
    assert near(model.h[1].mlp.c_fc.weight, 0.02)  # the module's reset would give 1/sqrt(3 x 32) = 0.102
    assert not is_uniform(model.h[1].mlp.c_fc.weight)
    assert not model.h[1].mlp.c_fc.bias.any()
    assert cbp.plan.rows[0].fresh_std == pytest.approx(0.02, rel=0.05)
    assert "init: Gpt._init_weights draws fresh units of 'h.1.mlp.c_fc'" in str(cbp.plan)
    assert told() == []


def test_a_parent_s_word_on_its_child_s_weights_counts():
    """What a block adds to the residual stream starts at 0.02 / sqrt(2 blocks) = 0.01."""
    model = Gpt()
    model.ln, model.head = nn.Identity(), nn.Linear(32, 40, bias=False)
    for block in model.h:
        block.ln = nn.Identity()
    model.apply(model._init_weights)
    group = UnitGroup(
        "stream",
        [
            Slice("wte.weight", 1),
            *(Slice(f"h.{k}.mlp.c_proj.{leaf}", 0) for k in (0, 1) for leaf in ("weight", "bias")),
        ],
        [Slice("h.0.mlp.c_fc.weight", 1), Slice("h.1.mlp.c_fc.weight", 1), Slice("head.weight", 1)],
        Tap("head"),
    )
    cbp = replaced_at_once(model, words(), groups=[group])
    assert starts(cbp) == {"stream": ["initializer by unit"] * 3}
    assert near(model.h[0].mlp.c_proj.weight, 0.01)
    assert near(model.h[1].mlp.c_proj.weight, 0.01)
    assert near(model.wte.weight, 0.02)


def test_a_model_within_another_is_initialized_as_it_would_be_alone():
    model = Net(lambda net, x: net.inner(x), inner=Gpt())
    cbp = replaced_at_once(model, words(), include="inner.h.0.mlp.c_fc")
    assert near(model.inner.h[0].mlp.c_fc.weight, 0.02)
    assert starts(cbp) == {"inner.h.0.mlp.c_fc": ["initializer by unit"]}


def test_a_truncated_normal_distribution_stays_truncated():
    model = VisionMlp()
    replaced_at_once(model, torch.randn(8, 48))
    assert near(model.fc1.weight, 0.88 * 0.02)  # of N(0, 0.02) cut at two deviations
    assert 0.038 < model.fc1.weight.abs().max() <= 0.04


def test_an_initializer_that_depends_on_how_many_units_there_are_draws_all_and_some_are_taken():
    model = Vgg()
    cbp = replaced_at_once(model, torch.randn(4, 3, 8, 8))
    assert starts(cbp) == {"features.0": ["initializer"]}
    assert near(model.features[0].weight, math.sqrt(2 / (32 * 9)))


@pytest.mark.parametrize(
    ("how", "std"),
    [
        (lambda weight: nn.init.normal_(weight, std=0.02), 0.02),
        (lambda weight: nn.init.orthogonal_(weight, gain=math.sqrt(2)), math.sqrt(2 / 64)),
        (lambda weight: nn.init.uniform_(weight, -0.01, 0.01), 0.01 / math.sqrt(3)),
        (lambda weight: nn.init.eye_(weight), math.sqrt(1 / 64)),
        (lambda weight: nn.init.kaiming_normal_(weight), math.sqrt(2 / 64)),
    ],
)
def test_without_an_initializer_the_reset_s_own_law_is_drawn_at_the_scale_found(how, std, told):
    model = plain(how)
    cbp = replaced_at_once(model, torch.randn(*X), include="2")
    assert near(model[2].weight, std)
    assert is_uniform(model[2].weight)
    assert "init: the scale found at construction is that of fresh units of '2'" in str(cbp.plan)
    assert told() == []


def test_each_weight_of_a_gate_keeps_its_own_scale():
    model = Gated(gate=0.02, value=0.3)
    cbp = replaced_at_once(model, torch.randn(*X))
    assert [group.name for group in cbp.groups] == ["gate"]
    assert near(model.gate.weight, 0.02)
    assert near(model.value.weight, 0.3)


def test_a_weight_whose_reset_holds_keeps_it_beside_one_whose_does_not():
    model = Gated(gate=0.02, value=1 / math.sqrt(3 * 24))
    assert starts(replaced_at_once(model, torch.randn(*X)))["gate"] == [pytest.approx(0.02, rel=0.1), "reset"]


def test_a_raw_parameter_starts_at_the_scale_found():
    model = Raw(std=0.02)
    replaced_at_once(model, torch.randn(*X))
    assert near(model.w, 0.02)
    model = Raw(std=1 / math.sqrt(3 * 24))
    assert starts(replaced_at_once(model, torch.randn(*X))) == {"w": ["reset"]}


def test_a_reset_of_a_module_s_own_keeps_its_shape_at_the_scale_found():
    model = nn.Sequential(Bell(24, 64), nn.ReLU(), nn.Linear(64, 2))
    assert starts(replaced_at_once(model, torch.randn(*X))) == {"0": ["reset"]}
    model = nn.Sequential(Bell(24, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.normal_(model[0].weight, std=0.1)
    replaced_at_once(model, torch.randn(*X))
    assert near(model[0].weight, 0.1)
    assert not is_uniform(model[0].weight)


def test_recurrent_weights_keep_their_scale_beside_those_that_read_the_input():
    def run(net, x):
        return net.head(net.core(x)[0])

    model = Net(run, core=nn.GRU(24, 64, batch_first=True), head=nn.Linear(64, 2))
    nn.init.orthogonal_(model.core.weight_hh_l0, gain=3.0)  # 3 / sqrt(3 x 64); the reset's: 1 / sqrt(3 x 64)
    cbp = replaced_at_once(model, torch.randn(4, 5, 24))
    assert starts(cbp) == {cbp.groups[0].name: ["reset", pytest.approx(3 / math.sqrt(3 * 64), rel=0.01)]}


def test_runs_side_by_side_have_one_scale():
    model = Net(
        lambda net, x: net.last(net.first(x).relu()), first=StackedLinear(3, 24, 64), last=StackedLinear(3, 64, 2)
    )
    for layer in (model.first, model.last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    group = UnitGroup(
        "first", [Slice("first.weight", 0), Slice("first.bias", 0)], [Slice("last.weight", 1)], Tap("last"), runs=3
    )
    cbp = replaced_at_once(model, torch.randn(3, *X), groups=[group])
    assert starts(cbp) == {"first": [pytest.approx(0.02, rel=0.05)]}
    assert all(near(of_run, 0.02) for of_run in model.first.weight)


def test_what_is_found_holds_for_every_method():
    model = plain()
    redo = ReDo(model, torch.optim.SGD(model.parameters(), lr=0.0), example_inputs=torch.randn(*X), tau=10.0, period=1)
    model(torch.randn(*X)).sum().backward()
    redo.step()
    assert redo.plan.rows[0].fresh_std == pytest.approx(0.02, rel=0.1)
    assert near(model[0].weight, 0.02)


# -- networks that start from their modules' resets --------------------------------------------------------------------


def test_where_the_reset_holds_its_draws_are_what_they_were_to_the_bit():
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    cbp = replaced_at_once(model, torch.randn(*X), groups=chain_groups(model))
    assert starts(cbp) == {"0": ["reset"], "2": ["reset"]}
    generator = torch.Generator().manual_seed(stream_key(3, "fresh units"))
    bound = 1 / math.sqrt(24)
    drawn = torch.empty(64, 24).uniform_(-bound, bound, generator=generator)  # in the order of utility
    assert sorted(model[0].weight.tolist()) == sorted(drawn.tolist())


@pytest.mark.parametrize("units", [2, 4, 8, 64])
def test_layers_of_any_size_that_torch_drew_keep_their_reset(units):
    for seed in range(50):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1))
        cbp = ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=chain_groups(model))
        assert starts(cbp) == {"0": ["reset"]}


def test_the_limit_is_a_quarter_and_three_sampling_errors():
    n = 800  # log 1.25 + 3 / 40 = 0.29814
    assert not differ(math.exp(0.298), 1.0, n)
    assert differ(math.exp(0.2983), 1.0, n)
    assert not differ(math.exp(-0.298), 1.0, n)
    assert differ(math.exp(-0.2983), 1.0, n)


def test_a_layer_that_starts_from_zero_is_drawn_by_its_reset(told):
    model = plain(nn.init.zeros_)
    cbp = replaced_at_once(model, torch.randn(*X), include="0")
    assert starts(cbp) == {"0": ["reset"]}
    assert near(model[0].weight, 1 / math.sqrt(3 * 24))
    assert told() == []


def test_an_init_that_is_named_is_drawn_whatever_is_found(told):
    model = plain()
    cbp = replaced_at_once(model, torch.randn(*X), include="0", init="default")
    assert near(model[0].weight, 1 / math.sqrt(3 * 24))
    assert starts(cbp) == {}
    assert told() == []


def test_looking_changes_nothing():
    model, x = Gpt(), words()
    held, random = [each.clone() for each in model.parameters()], torch.get_rng_state()
    ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=x)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(held, model.parameters(), strict=True))


# -- initializers that cannot be used -----------------------------------------------------------------------------------


def scale_found(model, x):
    """Of the first group: the number in the state, or what is drawn in its place."""
    cbp = replaced_at_once(model, x)
    return starts(cbp)[cbp.groups[0].name][0]


def test_an_initializer_that_is_not_what_the_network_started_from_is_not_used():
    model = Gpt(std=0.02)
    for block in model.h:
        nn.init.normal_(block.mlp.c_fc.weight, std=0.3)
    assert scale_found(model, words()) == pytest.approx(0.3, rel=0.05)


def test_an_initializer_that_leaves_the_weight_alone_is_not_used():
    class Model(Raw):
        def _init_weights(self, module):
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)

    assert scale_found(Model(std=0.02), torch.randn(*X)) == pytest.approx(0.02, rel=0.1)


def test_an_initializer_that_cannot_be_called_is_not_used():
    class Model(Raw):
        def _init_weights(self, module):
            raise RuntimeError("not now")

    assert scale_found(Model(std=0.02), torch.randn(*X)) == pytest.approx(0.02, rel=0.1)


def test_an_initializer_may_ask_for_the_module_s_name():
    class Model(Raw):
        def _init_weights(self, module, name):
            if isinstance(module, Raw) and name == "":
                nn.init.normal_(module.w, std=0.02)

    assert scale_found(Model(std=0.02), torch.randn(*X)) == "initializer by unit"


# -- a network that has trained -----------------------------------------------------------------------------------------


def stepped(model):
    """By an optimizer that remembers it; weights stay as they are."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(torch.randn(*X)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def with_norm(change):
    model = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), *plain())
    nn.init.zeros_(model[0].bias)
    with torch.no_grad():
        change(model[1])
    return model


@pytest.mark.parametrize(
    ("build", "optimizer", "why"),
    [
        (plain, stepped, "Adam has stepped already"),
        (lambda: with_norm(lambda norm: norm.weight[0].mul_(1.001)), None, "the norm '1' has a weight that is not 1"),
        (lambda: with_norm(lambda norm: norm.bias[0].add_(0.001)), None, "the norm '1' has a bias that is not 0"),
        (lambda: with_norm(lambda norm: norm.requires_grad_(False).weight.mul_(2.0)), None, "the norm '1'"),
    ],
)
def test_a_network_that_has_trained_does_not_tell_its_scale_and_one_warning_says_so(build, optimizer, why, told):
    model = build()
    last = f"{len(model) - 3}"
    cbp = replaced_at_once(model, torch.randn(*X), optimizer=optimizer and optimizer(model), include=last)
    assert near(model[int(last)].weight, 1 / math.sqrt(3 * 64))
    assert starts(cbp) == {last: ["reset"]}
    (warning,) = told()
    assert "say so with init=" in warning
    assert why in warning
    assert warning in cbp.plan.notes


def test_reset_draws_by_the_resets_whatever_the_weights_are_and_says_nothing(told):
    for build, optimizer in ((plain, stepped), (plain, None)):
        model = build()
        last = f"{len(model) - 3}"
        cbp = replaced_at_once(
            model, torch.randn(*X), optimizer=optimizer and optimizer(model), include=last, init="reset"
        )
        assert near(model[int(last)].weight, 1 / math.sqrt(3 * 64))
        assert told() == []
        assert cbp.plan.notes == []
        cbp.load_state_dict(cbp.state_dict())


def test_a_bias_beyond_its_reset_s_bound_shows_training(told):
    model = plain()
    with torch.no_grad():
        model[4].bias[0] = 1.01 / math.sqrt(64)
    replaced_at_once(model, torch.randn(*X), include="0")
    assert "the bias '4.bias' is beyond 0.125, the bound of its reset" in told()[0]
    with torch.no_grad():
        nn.init.normal_(model[0].weight, std=0.02)
        model[4].bias[0] = 0.99 / math.sqrt(64)
    assert starts(replaced_at_once(model, torch.randn(*X), include="0")) != {"0": ["reset"]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rate", [3e-4, 3e-3])
def test_weights_that_grew_are_never_the_scale_even_if_nothing_else_is_left_of_training(bias, rate, told):
    """A checkpoint without its optimizer, without norms, and without biases or with small ones."""
    model = plain(bias=bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    x = torch.randn(256, 24)
    y = (x[:, :1] * x[:, 1:2]).sign() * torch.tensor([1.0, -1.0])
    while model[2].weight.std() < 0.08:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    cbp = ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=chain_groups(model))
    assert starts(cbp) == {"0": ["reset"], "2": ["reset"]}
    assert len(told()) == 1


def test_a_network_that_has_run_but_not_trained_is_fresh():
    model = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), *plain())
    model(torch.randn(*X)).sum().backward()
    assert starts(replaced_at_once(model, torch.randn(*X), include="2")) == {"2": [pytest.approx(0.02, rel=0.1)]}


# -- saving -------------------------------------------------------------------------------------------------------------


def trained(model, optimizer, method, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(40, (4, 6), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()


def begun(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    often = {"replacement_rate": 0.02, "maturity_threshold": 3, "seed": 1}
    return optimizer, ContinualBackprop(model, optimizer, example_inputs=words(), **often)


@pytest.mark.parametrize("initializer", [True, False])
def test_the_scale_is_part_of_the_state_and_wins_on_load(initializer):
    """The network that loads has trained: by itself it would draw by its modules' resets."""
    build = Gpt if initializer else lambda: with_scale(Gpt(std=0.1), 0.02)
    torch.manual_seed(0)
    straight = build()
    optimizer, method = begun(straight)
    trained(straight, optimizer, method, range(20))
    held = deepcopy([each.state_dict() for each in (straight, optimizer, method)])
    torch.manual_seed(1)
    resumed = build()
    resumed.load_state_dict(held[0])
    again = torch.optim.Adam(resumed.parameters(), lr=1e-2)
    again.load_state_dict(held[1])
    cbp = ContinualBackprop(resumed, again, example_inputs=words(), replacement_rate=0.02, maturity_threshold=3, seed=1)
    assert cbp.plan.rows[0].fresh_std == pytest.approx(1 / math.sqrt(3 * 32))
    cbp.load_state_dict(held[2])
    assert cbp.plan.rows[0].fresh_std == pytest.approx(0.02, rel=0.05)
    assert not any("not known" in note for note in cbp.plan.notes)
    trained(straight, optimizer, method, range(20, 60))
    trained(resumed, again, cbp, range(20, 60))
    assert all(each["replaced"][0] >= 20 for each in cbp.stats().values())
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def with_scale(model, std):
    for block in model.h:
        nn.init.normal_(block.mlp.c_fc.weight, std=std)
    return model


def test_a_state_that_knows_no_scale_goes_on_with_the_resets_it_drew_by():
    model = Gpt()
    _, method = begun(model)
    state = {name: value for name, value in method.state_dict().items() if name != "redraw"}
    state["format"] = 1  # which knew none
    assert method.plan.rows[0].fresh_std == pytest.approx(0.02, rel=0.05)
    method.load_state_dict(state)
    assert starts(method) == {"h.0.mlp.c_fc": ["reset"], "h.1.mlp.c_fc": ["reset"]}
    assert method.plan.rows[0].fresh_std == pytest.approx(1 / math.sqrt(3 * 32))


def test_a_state_whose_initializer_the_model_has_not_is_refused_and_changes_nothing():
    _, method = begun(Gpt())
    state = method.state_dict()

    class Bare(Gpt):
        _init_weights = None

        def apply(self, function):
            return self

    bare = Bare()
    _, other = begun(bare)
    with pytest.raises(ValueError, match="by the model's own initializer, and nothing that holds it has one"):
        other.load_state_dict(state)
    assert starts(other) == {"h.0.mlp.c_fc": ["reset"], "h.1.mlp.c_fc": ["reset"]}


def test_ranks_take_what_rank_0_found():
    model = plain()
    method = ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=chain_groups(model))
    rank_0 = [0.5, "reset"]
    method.redraw.bind(NamedModel(model), method.groups, method.optimizers, lambda found: rank_0)
    assert starts(method) == {"0": [0.5], "2": ["reset"]}
