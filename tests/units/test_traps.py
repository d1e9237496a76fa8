"""What other implementations of unit resets got wrong, D1 to D13; none of it may come back here."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pliant import ContinualBackprop
from pliant.units.trace import trace
from tests.networks import ages, enough, replaced
from tests.units.hard_cases import BY_NAME, Net


def attach(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None, **settings):
    """Continual backpropagation on what the tracer finds; by default with an optimizer that moves nothing."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.5, "maturity_threshold": 0, "seed": 1, **settings}
    return optimizer, ContinualBackprop(model, optimizer, example_inputs=x, **settings)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def fresh(cbp: ContinualBackprop, group: int = 0) -> list[int]:
    """Units that the last step replaced."""
    return (ages(cbp, group)[0] == 0).nonzero().flatten().tolist()


def first_replaced(model: nn.Module, optimizer: torch.optim.Optimizer, cbp: ContinualBackprop, x: Tensor) -> list[int]:
    """Train until units of the first group are replaced, and say which."""
    while not replaced(cbp)[cbp.groups[0].name]:
        step(model, optimizer, x)
    return fresh(cbp)


def small_mlp(width: int = 12, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width, bias=bias), nn.ReLU(), nn.Linear(width, 3, bias=bias))


def tensors(group) -> tuple[set[str], set[str]]:
    return {part.parameter for part in group.incoming}, {part.parameter for part in group.outgoing}


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def test_d1_outputs_of_a_network_without_telling_names_are_never_reset():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    optimizer, cbp = attach(model, X, replacement_rate=1.0, hand_over_mean=False)
    last = copy.deepcopy(model[4])
    for _ in range(3):
        step(model, optimizer, X)
    enough(cbp)
    assert torch.equal(model[4].bias, last.bias)
    assert not model[4].weight.any()  # every column belongs to a fresh unit: zero, not drawn anew
    assert all("4.weight" not in tensors(group)[0] for group in cbp.plan.groups)


def test_d2_a_block_s_second_convolution_is_paired_with_everything_that_reads_the_stream():
    model, x = BY_NAME["resnet-18, residual"].make()
    groups = [tensors(group) for group in trace(model, x, residual=True).groups]
    (stream,) = [outgoing for incoming, outgoing in groups if "layer1.1.conv2.weight" in incoming]
    assert stream == {
        *("layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight", "layer2.0.shortcut.0.weight")
    }
    (shortcut,) = [incoming for incoming, _ in groups if "layer2.0.shortcut.0.weight" in incoming]
    assert {"layer2.0.conv2.weight", "layer2.1.conv2.weight"} < shortcut


def test_d2_attention_s_output_is_not_taken_for_the_input_of_the_mlp():
    model, x = BY_NAME["encoder layer, norm first"].make()
    for group in trace(model, x).groups:
        assert "layer.self_attn.out_proj.weight" not in tensors(group)[0]


def test_d2_a_channel_before_a_flatten_owns_all_of_its_columns():
    model, x = BY_NAME["the paper's convnet"].make()
    optimizer, cbp = attach(model, x, replacement_rate=0.2, hand_over_mean=False)
    step(model, optimizer, x)
    channels = fresh(cbp, group=2)
    assert len(channels) == 1
    columns = [4 * channel + i for channel in channels for i in range(4)]
    dense = fresh(cbp, group=3)
    kept = [row for row in range(10) if row not in dense]
    assert not model[10].weight[:, columns].any()
    assert model[10].weight[kept][:, [i for i in range(32) if i not in columns]].all()


def test_d3_schedulers_and_hooks_of_the_user_go_on_working():
    model, called = small_mlp(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer.register_step_post_hook(lambda *arguments: called.append("before"))
    _, cbp = attach(model, X, optimizer)
    optimizer.register_step_post_hook(lambda *arguments: called.append("after"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(5):
        step(model, optimizer, X)
        scheduler.step()
    enough(cbp)
    assert called == ["before", "after"] * 5
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 32)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_d3_a_norm_s_own_entries_start_over_with_their_unit(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), norm(12), nn.ReLU(), nn.Linear(12, 3))
    optimizer, cbp = attach(model, X)
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[1].bias.fill_(0.5)
    step(model, optimizer, X)
    chosen = fresh(cbp)
    others = [unit for unit in range(12) if unit not in chosen]
    assert len(chosen) == 6
    starts = {"weight": (1.0, 3.0), "bias": (0.0, 0.5)}
    for name, (start, before) in starts.items():
        assert (getattr(model[1], name)[chosen] == start).all()
        assert (getattr(model[1], name)[others] == before).all()
    if norm is nn.BatchNorm1d:
        assert not model[1].running_mean[chosen].any()
        assert (model[1].running_var[chosen] == 1.0).all()
        assert model[1].running_mean[others].all()


def test_d4_a_small_rate_replaces_its_share_in_the_long_run():
    """2,000 units at 1e-4 owe a fifth of a unit a step, so 20.8 in 104 steps."""
    model = small_mlp(width=2000)
    optimizer, cbp = attach(model, X, replacement_rate=1e-4)
    for _ in range(104):
        step(model, optimizer, X)
    assert replaced(cbp) == {"0": 20}


def test_d5_a_reset_redraws_rows_zeroes_columns_and_touches_nothing_else():
    model = small_mlp()
    before = copy.deepcopy(model)
    optimizer, cbp = attach(model, X, hand_over_mean=False, replacement_rate=0.25)
    step(model, optimizer, X)
    chosen = fresh(cbp)
    others = [unit for unit in range(12) if unit not in chosen]
    assert len(chosen) == 3
    rows = model[0].weight[chosen]
    assert (rows != before[0].weight[chosen]).all()
    assert (rows < 0).any()
    assert rows.abs().max() <= 6**-0.5  # what nn.Linear draws for 6 inputs
    assert not model[0].bias[chosen].any()
    assert not model[2].weight[:, chosen].any()
    assert torch.equal(model[0].weight[others], before[0].weight[others])
    assert torch.equal(model[0].bias[others], before[0].bias[others])
    assert torch.equal(model[2].weight[:, others], before[2].weight[:, others])
    assert torch.equal(model[2].bias, before[2].bias)


def test_d5_utility_looks_at_outgoing_weights_not_at_incoming_ones():
    model = small_mlp()
    with torch.no_grad():
        model[0].weight[4] *= 10.0
        model[2].weight[:, 4] = 0.0
    optimizer, cbp = attach(model, X, replacement_rate=0.1)
    step(model, optimizer, X)
    assert fresh(cbp) == [4]


def test_d6_layers_without_bias_smaller_batches_and_copies_are_fine():
    model = small_mlp(bias=False)
    names = list(model.state_dict())
    optimizer, cbp = attach(model, X, replacement_rate=0.2)
    for size in (8, 8, 3, 1, 8, 8, 8, 8, 8, 8):
        step(model, optimizer, X[:size])
        copied = copy.deepcopy(model)
        assert torch.equal(copied(X), model(X))
    enough(cbp)
    assert list(model.state_dict()) == names


def test_d7_the_default_is_what_the_documentation_says():
    defaults = {name: each.default for name, each in inspect.signature(ContinualBackprop).parameters.items()}
    assert (defaults["decay_rate"], defaults["replacement_rate"], defaults["maturity_threshold"]) == (0.99, 1e-4, 1000)


def test_d7_nothing_is_reset_before_the_optimizer_has_stepped():
    model = small_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    _, cbp = attach(model, X, optimizer)
    before = copy.deepcopy(model.state_dict())
    model(X).square().mean().backward()
    assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())
    assert replaced(cbp) == {"0": 0}
    optimizer.step()
    assert replaced(cbp) == {"0": 6}


def test_d8_both_moments_of_a_replaced_filter_are_forgotten_coming_and_going():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(4, 2, 5, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    _, cbp = attach(model, x, optimizer, replacement_rate=0.1, maturity_threshold=3)
    chosen = first_replaced(model, optimizer, cbp, x)
    others = [unit for unit in range(6) if unit not in chosen]
    for name in ("exp_avg", "exp_avg_sq"):
        moments = {parameter: optimizer.state[parameter][name] for parameter in model.parameters()}
        assert not moments[model[0].weight][chosen].any()
        assert not moments[model[0].bias][chosen].any()
        assert not moments[model[2].weight][:, chosen].any()
        assert moments[model[0].weight][others].any()
        assert moments[model[2].weight][:, others].any()


def token_mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 6))


def test_d9_units_of_a_sequence_are_its_features_not_its_tokens():
    model = token_mlp()
    x = torch.randn(3, 5, 6)
    (row,) = trace(model, x).rows
    assert row.units == 64
    optimizer, cbp = attach(model, x, replacement_rate=0.0, decay_rate=0.0)
    step(model, optimizer, x)
    h = nn.functional.gelu(model[0](x))
    expected = h.abs().mean((0, 1)) * model[2].weight.abs().mean(0)
    assert_close(cbp.score.value(cbp.groups[0], cbp.generators)[0], expected.detach())


def test_d10_optimizer_state_is_found_by_parameter_not_by_position():
    """The optimizer lists parameters backwards, one of them is no unit's, and the module registers its layers in disorder."""
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.a(torch.relu(net.z(x))) * net.scale,
        a=nn.Linear(12, 12),
        scale=nn.Parameter(torch.ones(1)),
        z=nn.Linear(6, 12),
    )
    optimizer = torch.optim.Adam(list(model.parameters())[::-1], lr=0.01)
    _, cbp = attach(model, X, optimizer, replacement_rate=0.1, maturity_threshold=3)
    chosen = first_replaced(model, optimizer, cbp, X)
    others = [unit for unit in range(12) if unit not in chosen]
    rows, columns = (optimizer.state[layer.weight]["exp_avg"] for layer in (model.z, model.a))
    assert not rows[chosen].any()
    assert not columns[:, chosen].any()
    assert rows[others].any()
    assert columns[:, others].all(0).any()


def test_d11_a_newly_mature_unit_is_ranked_by_its_corrected_utility():
    """Weights and inputs stand still, so every utility must read what it is from the first step on, not 1% of it."""
    model = small_mlp()
    optimizer, cbp = attach(model, X, replacement_rate=0.0, decay_rate=0.99)
    step(model, optimizer, X)
    first = cbp.score.value(cbp.groups[0], cbp.generators).clone()
    assert first.max() > 0.01
    for _ in range(50):
        step(model, optimizer, X)
    assert_close(cbp.score.value(cbp.groups[0], cbp.generators), first, rtol=1e-4, atol=1e-7)


def test_d12_a_reset_unit_takes_full_first_steps():
    """Adam's first step is the step size for every weight, whatever the replaced unit's moments were."""
    model = small_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    _, cbp = attach(model, X, optimizer, replacement_rate=0.05, maturity_threshold=30, hand_over_mean=False)
    chosen = first_replaced(model, optimizer, cbp, X)
    assert not model[2].weight[:, chosen].any()
    alive = [unit for unit in chosen if model[1](model[0](X))[:, unit].any()]
    assert alive
    step(model, optimizer, X)
    assert_close(model[2].weight[:, alive].abs(), torch.full((3, len(alive)), 0.01), rtol=1e-3, atol=0)


def test_d13_observing_draws_no_random_number_and_moves_no_dropout_mask():
    def losses(watched: bool) -> tuple[list[float], Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            attach(model, X, optimizer, replacement_rate=0.0)
        seen = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(X).square().mean()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen, torch.get_rng_state()

    (plain, plain_state), (watched, watched_state) = losses(False), losses(True)
    assert plain == watched
    assert torch.equal(plain_state, watched_state)
    assert len(set(plain)) == 20


def test_d13_a_reset_draws_from_its_own_generator_so_the_masks_stay_those_of_plain_training():
    def states(rate: float) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))
        optimizer, cbp = attach(model, X, replacement_rate=rate)
        for _ in range(10):
            step(model, optimizer, X)
        assert (sum(replaced(cbp).values()) >= 20) == (rate > 0)
        return torch.get_rng_state()

    assert torch.equal(states(0.0), states(0.5))
