"""Continual backpropagation: what a replacement does, and what is kept of units. What every method promises: `promises.py`."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import BN, ContinualBackprop, chain_groups
from pliant.streams import stream_key
from tests.networks import NETWORKS, OPTIMIZERS, ages, batch, enough, mlp, replaced, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer="sgd", **settings):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return optimizer, ContinualBackprop(model, optimizer, groups=chain_groups(model), **{**OFTEN, **settings})


# -- what a replacement does ----------------------------------------------------------------------------------------------


def replace_now(model, x, **settings):
    """One step in which every hidden layer replaces units, with a zero gradient, so that nothing else moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.2, "maturity_threshold": 0, "seed": 1, **settings}
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model), **settings)
    model(x).sum().backward()
    optimizer.step()
    return cbp, [(age[0] == 0).nonzero().flatten().tolist() for age in cbp.ages().values()]


def test_a_unit_that_never_fires_can_be_replaced_without_moving_the_output():
    model = mlp()
    with torch.no_grad():
        model[0].bias[[2, 7]] = -1e3
        x, _ = batch(0, (6,))
        before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=2 / 12, maturity_threshold=0, seed=0
    )
    model(x).sum().backward()
    optimizer.step()
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(model(x), before)
    assert (model[0].weight[[2, 7]] != 0).all()
    assert not model[0].bias[[2, 7]].any()


def test_a_replaced_unit_leaves_the_mean_input_of_its_consumer_as_it_was():
    model = mlp()
    x, _ = batch(0, (6,), size=500)
    before = model[:3](x).mean(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.5, maturity_threshold=0, seed=0
    )
    model(x).sum().backward()
    optimizer.step()
    assert_close(model[:3](x).mean(0), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("padding", "kind"), [(0, "exact"), (1, "interior")])
def test_a_replaced_channel_hands_its_mean_over_exactly_without_padding_and_inside_with_it(padding, kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.Conv2d(6, 4, 3, padding=padding), nn.Flatten(), nn.Linear(4 * (2 + 2 * padding) ** 2, 1)
    )
    x = torch.ones(3, 1, 4, 4)
    before = model[:2](x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.5, maturity_threshold=0, seed=0
    )
    assert cbp.plan.rows[0].hand_over == kind
    model(x).sum().backward()
    optimizer.step()
    moved = (model[:2](x) - before).abs()
    inside = moved[:, :, padding : moved.shape[2] - padding, padding : moved.shape[3] - padding]
    assert inside.max() < 1e-5
    assert (moved.max() > 1e-2) == bool(padding)


def test_after_a_flatten_every_column_hands_over_its_own_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).expand(5, 1, 2, 2)
    before = model(x)
    replace_now(model, x, replacement_rate=1.0)
    assert not model[2].weight.any()
    assert_close(model(x), before)


def test_without_a_bias_the_mean_goes_into_the_running_mean_of_the_batch_norm_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.5, "maturity_threshold": 200, "seed": 0}
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model)[:1], **settings)
    assert cbp.plan.rows[0].group.hand_over == {"1.weight": BN("2")}
    for _ in range(201):
        model(x).sum().backward()
        before = model[:2](x).mean(0)
        optimizer.step()
    assert replaced(cbp)["0"] == 4
    after = model[:2](x).mean(0)
    assert (after - before).abs().max() > 0.1
    assert_close(model[2].running_mean, after)


def test_crossing_weights_of_adjacent_layers_end_at_zero():
    model = mlp()
    _, (first, second) = replace_now(model, batch(0, (6,))[0], replacement_rate=0.4)
    assert len(first) >= 2
    assert len(second) >= 2
    assert not model[2].weight[second][:, first].any()
    assert model[2].weight[second][:, [unit for unit in range(12) if unit not in first]].all()
    assert not model[2].bias[second].any()


def test_nan_is_really_gone_and_is_not_handed_over():
    model = mlp()
    with torch.no_grad():
        model[0].weight[3] = math.nan
        model[0].bias[3] = math.inf
        model[2].weight[:, 3] = math.nan
    x, _ = batch(0, (6,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model[2].weight]["momentum_buffer"] = torch.full_like(model[2].weight, math.nan)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.1, maturity_threshold=0, attach=False
    )
    assert model(x).isnan().all()
    cbp.step()
    assert ages(cbp)[0].tolist() == [1, 1, 1, 0, *[1] * 8]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(x).isfinite().all()
    assert not optimizer.state[model[2].weight]["momentum_buffer"][:, 3].any()


def test_an_activation_that_was_infinite_once_makes_its_unit_the_least_useful():
    model = mlp()
    _, cbp = attached(model, attach=False, replacement_rate=1 / 60)
    for activity in (torch.full((1, 12), math.inf), *[torch.ones(1, 12)] * 9):
        activity[0, [0, 1, 2, *range(4, 12)]] = 1.0
        model[2](activity)
        cbp.step()
    assert ages(cbp)[0].argmin() == 3
    assert replaced(cbp)["0"] == 1


def test_own_batch_norm_is_reset_and_the_others_are_not():
    build, shape = NETWORKS["convnet"]
    model = build()
    stepper, cbp = attached(model, replacement_rate=0.0)
    train(model, stepper, range(20), shape)
    norm = model[0][1]
    before = copy.deepcopy(norm)
    cbp.detach()
    _, (units, *_) = replace_now(model, batch(0, shape)[0], replacement_rate=0.4)
    others = [unit for unit in range(6) if unit not in units]
    assert len(units) == 2
    assert norm.weight[units].tolist() == [1.0, 1.0]
    assert norm.running_var[units].tolist() == [1.0, 1.0]
    assert not norm.bias[units].any()
    assert not norm.running_mean[units].any()
    assert torch.equal(norm.weight[others], before.weight[others])


def test_gradients_of_a_replaced_unit_are_cleared():
    model = mlp()
    _, (first, _) = replace_now(model, batch(0, (6,))[0])
    others = [unit for unit in range(12) if unit not in first]
    assert not model[0].weight.grad[first].any()
    assert not model[2].weight.grad[:, first].any()
    assert model[2].weight.grad[:, others].any()


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        ("module", 6**-0.5),
        ("default", 6**-0.5),
        ("lecun", 0.5**0.5),
        ("kaiming", 1.0),
        ("xavier", 2**0.5 * (6 / 18) ** 0.5),
    ],
)
def test_init_names_give_their_bounds(init, bound):
    model = mlp()
    replace_now(model, batch(0, (6,))[0], replacement_rate=1.0, init=init)
    largest = model[0].weight.abs().max().item()
    assert 0.9 * bound < largest <= bound
    assert abs(model[0].weight.mean().item()) < 0.25 * bound


def test_init_takes_a_callable_that_sees_name_shape_and_generator():
    asked = []

    def init(name, shape, generator):
        asked.append((name, shape))
        return torch.full(shape, 3.0)

    model = mlp()
    _, (first, second) = replace_now(model, batch(0, (6,))[0], init=init)
    assert asked == [("0.weight", (len(first), 6)), ("2.weight", (len(second), 12))]
    assert (model[0].weight[first] == 3.0).all()


def test_init_module_draws_what_the_layer_s_own_reset_draws_and_not_from_the_global_generator():
    class Scaled(nn.Linear):
        def reset_parameters(self):
            nn.init.normal_(self.weight, 5.0, 0.1)
            nn.init.zeros_(self.bias)

    model = nn.Sequential(Scaled(6, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model[2].weight[:, [3, 7]] = 0.0  # the least useful
    _, cbp = attached(model, attach=False, replacement_rate=2 / 40, maturity_threshold=0)
    before = torch.get_rng_state()
    nn.init.zeros_(model[0].weight.data)
    nn.init.ones_(model[0].bias.data)
    model(torch.ones(2, 6)).sum().backward()
    cbp.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [3, 7]
    fresh = model[0].weight[[3, 7]]
    assert fresh.mean().item() == pytest.approx(5.0, abs=0.2)
    assert not torch.equal(fresh[0], fresh[1])
    assert cbp.plan.rows[0].fresh_std == pytest.approx(0.1, rel=0.2)


def test_fresh_units_are_not_those_that_the_same_seed_began_with():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 1))
    first = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model), replacement_rate=0.5, maturity_threshold=2)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    new = model[0].weight[(model[0].weight != first).any(dim=1)]
    assert len(new) >= 20
    assert sum(cbp.stats()["0"]["replaced"]) >= 20
    assert not (new[:, None] == first).any()


def test_kaiming_uses_the_gain_of_the_activation_and_xavier_both_sides_of_a_convolution():
    drawn = {}
    for init in ("kaiming", "xavier"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 64, 3), nn.Tanh(), nn.Conv2d(64, 2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        cbp = ContinualBackprop(
            model,
            optimizer,
            groups=chain_groups(model),
            init=init,
            replacement_rate=1.0,
            maturity_threshold=0,
            attach=False,
        )
        model(torch.randn(4, 2, 5, 5)).sum().backward()
        cbp.step()
        drawn[init] = model[0].weight.abs().max().item()
    assert drawn["kaiming"] == pytest.approx(5 / 3 * (3 / 18) ** 0.5, rel=0.02)
    assert drawn["xavier"] == pytest.approx(5 / 3 * (6 / (18 + 64 * 9)) ** 0.5, rel=0.02)


def test_layers_without_bias_work_and_hand_nothing_over():
    model = mlp(bias=False)
    stepper, cbp = attached(model)
    train(model, stepper, range(120))
    enough(cbp)
    assert [row.hand_over for row in cbp.plan.rows] == ["none", "none"]


# -- what it keeps of units -----------------------------------------------------------------------------------------------


def test_at_rate_zero_it_observes_and_draws_nothing():
    model = mlp()
    stepper, cbp = attached(model, replacement_rate=0.0)
    before = cbp.state_dict()["generators"][0]
    train(model, stepper, range(30))
    assert torch.equal(cbp.state_dict()["generators"][0], before)
    assert all((age == 30).all() for age in cbp.ages().values())
    assert all((utility > 0).any() for utility in cbp.utilities().values())


def test_passes_of_a_step_weigh_by_their_examples():
    """Three examples of activity 1, then one of 5: the mean is (3 + 5) / 4 = 2, that of the passes would be 3."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    _, cbp = attached(model, attach=False, decay_rate=0.0)
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.ones(3, 1))
    model[1](torch.full((1, 1), 5.0))
    cbp.step()
    assert cbp.utilities()["0"].item() == 2.0


def test_steps_weigh_alike_however_small_their_batch():
    """A mean of 1 over four examples, then of 5 over one; with η = 0.5 their weights are 0.25 and 0.5: 2.75 / 0.75."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    _, cbp = attached(model, attach=False, decay_rate=0.5)
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.ones(4, 1))
    cbp.step()
    model[1](torch.full((1, 1), 5.0))
    cbp.step()
    assert cbp.utilities()["0"].item() == pytest.approx(2.75 / 0.75)


def test_accumulated_passes_are_centred_on_the_passes_so_far():
    """One unit that reads 1, then 3: first centred on 1, then on the mean 2, so (0 + 1) / 2; joint, on 2 throughout: 1."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    cbp = ContinualBackprop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        groups=chain_groups(model),
        utility="zero_contribution",
        attach=False,
    )
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.tensor([[1.0]]))
    model[1](torch.tensor([[3.0]]))
    cbp.step()
    assert_close(cbp.utilities()["0"], torch.tensor([[0.5]]))


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_utilities_are_kept_in_float32_or_better(dtype, kept):
    model = mlp(dtype=dtype)
    optimizer, cbp = attached(model)
    train(model, optimizer, range(60), dtype=dtype)
    enough(cbp, least=10)
    assert {utility.dtype for utility in cbp.utilities().values()} == {kept}


def test_random_utility_is_drawn_from_the_method_s_own_generator_and_anew_at_each_replacement():
    model = mlp()
    optimizer, cbp = attached(model, utility="random", replacement_rate=1 / 12, maturity_threshold=0)
    own = torch.Generator().manual_seed(stream_key(cbp.seeds[0], "fresh units"))
    drawn = cbp.utilities()["0"]
    assert torch.equal(drawn[0], torch.rand(12, generator=own))
    assert torch.equal(cbp.utilities()["0"], drawn)  # to look is not to draw
    train(model, optimizer, [0])
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [drawn[0].argmin().item()]
    assert not torch.equal(cbp.utilities()["0"], drawn)


def test_stats_say_what_was_replaced_and_when():
    model = mlp()
    optimizer, cbp = attached(model, replacement_rate=0.02, maturity_threshold=3)
    assert cbp.stats()["0"]["last_replaced_at"] is None
    for step in range(30):
        before = replaced(cbp)["0"]
        train(model, optimizer, [step])
        if replaced(cbp)["0"] > before:
            assert cbp.stats()["0"]["last_replaced_at"] == step + 1
    assert cbp.stats()["0"]["steps"] == 30
    assert cbp.stats()["0"]["last_replaced_at"] <= 30
