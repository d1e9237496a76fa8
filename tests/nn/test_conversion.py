"""`pliant.nn.convert`: what the converted network computes, what stays, and what is refused with nothing changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from pliant import ContinualBackprop, trace
from pliant.nn import AID, CReLU, DeepFourier, InputNorm, SmoothLeakyReLU, convert
from tests.networks import enough, recurrent, train
from tests.units.cases.table import Net


def mlp(act=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), act(), nn.Linear(12, 8), act(), nn.Linear(8, 2))


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


class Block(nn.Module):
    """A transformer block in its usual form."""

    def __init__(self):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


def transformer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Block(), Block(), nn.Linear(8, 2))


VECTOR, IMAGE, TOKENS = torch.randn(4, 6), torch.randn(4, 2, 8, 8), torch.randn(2, 5, 6)
NETWORKS = {"mlp": (mlp, VECTOR), "convnet": (convnet, IMAGE), "transformer": (transformer, TOKENS)}
DOUBLING = {"crelu": CReLU, "deep_fourier": DeepFourier}
POINTWISE = {"aid": AID, "smooth_leaky_relu": SmoothLeakyReLU}


def kinds(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("activation", [*DOUBLING, *POINTWISE])
def test_every_hidden_activation_is_exchanged_and_every_layer_has_its_units(name, activation):
    make, x = NETWORKS[name]
    model = make()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = convert(model, x, activation=activation)
    assert all(torch.equal(before[key], held) for key, held in model.state_dict().items())  # the network given stays
    assert torch.equal(drawn, torch.get_rng_state())
    old = kinds(model, nn.ReLU | nn.GELU)
    assert kinds(found.model, DOUBLING.get(activation) or POINTWISE[activation]) == old
    assert not kinds(found.model, nn.ReLU | nn.GELU)
    plans = [trace(each, x) for each in (model, found.model)]
    factor = 2 if activation in DOUBLING else 1
    assert [row.units for row in plans[0].rows] == [factor * row.units for row in plans[1].rows]
    assert {row.verdict for row in plans[1].verify(found.model, x).rows} == {"exact"} if name == "mlp" else True
    assert found.model(x).shape == model(x).shape


def test_a_converted_mlp_by_hand():
    model = mlp()
    new = convert(model, VECTOR, activation="crelu", seed=3).model
    z = VECTOR @ new[0].weight.T + new[0].bias
    h = torch.cat([z.clamp(min=0), -z.clamp(max=0)], 1)
    z = h @ new[2].weight.T + new[2].bias
    h = torch.cat([z.clamp(min=0), -z.clamp(max=0)], 1)
    assert_close(new(VECTOR), h @ model[4].weight.T + model[4].bias)


def test_halved_layers_are_drawn_by_the_seed_and_all_else_is_kept():
    model = mlp()
    new = convert(model, VECTOR, activation="deep_fourier", seed=3).model
    torch.manual_seed(3)
    for layer, (inputs, units) in ((new[0], (6, 6)), (new[2], (12, 4))):
        fresh = nn.Linear(inputs, units)
        assert torch.equal(layer.weight, fresh.weight)
        assert torch.equal(layer.bias, fresh.bias)
    assert torch.equal(new[4].weight, model[4].weight)


def test_elementwise_activations_keep_all_weights():
    model = mlp(nn.Tanh)
    new = convert(model, VECTOR, activation=AID(p=0.75)).model.eval()
    x = VECTOR
    for layer in (model[0], model[2]):
        z = layer(x)
        x = 0.75 * z.clamp(min=0) + 0.25 * z.clamp(max=0)
    assert_close(new(VECTOR), model[4](x))
    assert new[1] is not new[3]


def test_channels_are_halved_with_their_norms_and_what_reads_them_stays():
    new = convert(convnet(), IMAGE, activation="crelu").model
    assert (new[0].out_channels, new[1].num_features, new[2].dim) == (3, 3, -3)
    assert (new[4].in_channels, new[4].out_channels, new[5].num_channels, new[5].num_groups) == (6, 4, 4, 2)
    assert new[4].bias is None
    assert new[8].in_features == 32


def test_the_axis_is_that_of_the_units_where_the_activation_is_applied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.ReLU(), nn.Linear(6 * 36, 2))
    new = convert(model, IMAGE, activation="crelu").model
    assert (new[0].out_channels, new[2].dim) == (3, -1)
    assert new(IMAGE).shape == (4, 2)


def test_what_modules_and_layers_were_they_stay():
    model = convnet().double().eval()
    model[0].requires_grad_(False)
    x = IMAGE.double()
    model[4].train()
    # a frozen layer has no units to replace, so that only what is elementwise can be exchanged
    new = convert(model, x, activation="smooth_leaky_relu", input_norm=True).model
    assert not new.training
    assert not any(parameter.requires_grad for parameter in new.network[0].parameters())
    model[0].requires_grad_(True)
    new = convert(model, x, activation="crelu").model
    assert new[0].weight.dtype == torch.float64
    assert [each.training for each in new] == [each.training for each in model]


def test_one_activation_for_several_layers_is_exchanged_for_all_of_them():
    model = Net(
        lambda net, x: net.head(net.act(net.b(net.act(net.a(x))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 4), act=nn.ReLU(), head=nn.Linear(4, 2),
    )  # fmt: skip
    new = convert(model, VECTOR, activation="crelu").model
    assert (new.a.out_features, new.b.out_features) == (4, 2)
    model.again = model.act
    new = convert(model, VECTOR, activation="aid").model
    assert isinstance(new.act, AID)
    assert new.again is new.act


def test_layers_side_by_side_are_each_halved():
    model = Net(
        lambda net, x: net.head(torch.cat([net.f(net.a(x)), net.g(net.b(x))], 1)),
        a=nn.Linear(6, 8), b=nn.Linear(6, 4), f=nn.ReLU(), g=nn.Tanh(), head=nn.Linear(12, 2),
    )  # fmt: skip
    new = convert(model, VECTOR, activation="deep_fourier").model
    assert (new.a.out_features, new.b.out_features) == (4, 2)


def test_outputs_gates_and_recurrent_layers_are_left_and_said_to_be():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.hidden, self.act = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 8), nn.ELU()
            self.gate, self.sigmoid = nn.Linear(8, 8), nn.Sigmoid()
            self.head, self.squash = nn.Linear(8, 2), nn.Tanh()

        def forward(self, x):
            h = self.core(x)[0]
            h = self.act(self.hidden(h)) * self.sigmoid(self.gate(h))
            return self.squash(self.head(h)), torch.tanh(self.head(h))

    found = convert(Policy(), TOKENS, activation="aid")
    assert [each.name for each in found.changes] == ["act"]
    assert dict(found.left) == {
        "core": "the functions of a recurrent layer are its own",
        "sigmoid": "a gate, or an output between 0 and 1",
        "squash": "it does not lie between weights",
    }
    assert "squash  it does not lie" in str(found)
    assert found.to_dict()["changes"][0] == {
        "name": "act",
        "before": "ELU(alpha=1.0)",
        "after": "AID(p=0.99)",
        "weights": "",
    }


def test_the_fast_path_of_an_encoder_layer_computes_the_new_activation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation=nn.GELU())
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 2))
    new = convert(model, TOKENS, activation="smooth_leaky_relu").model
    with torch.no_grad():
        slow, fast = new(TOKENS), copy.deepcopy(new).eval()(TOKENS)
    assert_close(fast, slow)


def test_converted_units_are_replaced_by_continual_backpropagation():
    model = convert(mlp(), VECTOR, activation="crelu", layer_norm=True, input_norm=True).model
    cbp = ContinualBackprop(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        example_inputs=VECTOR,
        replacement_rate=0.2,
        maturity_threshold=2,
        seed=0,
    )
    train(model, cbp.optimizers[0], range(80))
    enough(cbp)
    assert model.input_norm.count == 80 * 8


# -- norms -----------------------------------------------------------------------------------------------------------


def test_a_layer_norm_stands_before_each_activation():
    model = mlp()
    new = convert(model, VECTOR, layer_norm=True).model
    x = VECTOR
    for layer in (model[0], model[2]):
        z = layer(x)
        x = ((z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).relu()
    assert_close(new(VECTOR), model[4](x))


def test_of_channels_it_is_a_norm_over_channels_and_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))
    new = convert(model, IMAGE, layer_norm=True).model
    assert_close(new(IMAGE), model[3](F.layer_norm(model[0](IMAGE), (6, 6, 6)).relu().flatten(1)))


def test_a_layer_norm_of_halved_units_normalizes_what_is_left_of_them():
    new = convert(mlp(), VECTOR, activation="crelu", layer_norm=True).model
    assert [new[1][0].normalized_shape, new[3][0].normalized_shape] == [(6,), (4,)]


def test_inputs_are_normalized_before_the_network():
    model = mlp()
    found = convert(model, VECTOR, input_norm=True)
    twin, x = InputNorm(6), 5.0 * VECTOR + 3.0
    assert_close(found.model(x), model(twin(x)))
    assert_close(found.model.input_norm.var, twin.var)
    own = InputNorm(6, decay=0.9)
    sequences = convert(transformer(), TOKENS, input_norm=own).model
    sequences(TOKENS)
    assert (sequences.input_norm.decay, sequences.input_norm.count.item(), own.count.item()) == (0.9, 10, 0)


def test_a_chain_that_begins_with_a_linear_layer_needs_no_examples():
    assert kinds(convert(mlp(), activation="crelu").model, CReLU) == ["1", "3"]
    with pytest.raises(ValueError, match=r"^give example_inputs: what this Block takes is not known"):
        convert(Block(), activation="crelu")
    with pytest.raises(ValueError, match=r"^give example_inputs: what this Sequential takes is not known"):
        convert(nn.Sequential(nn.Flatten()), activation="crelu")


def test_several_examples_show_every_branch():
    model = Net(
        lambda net, x: net.head(net.act(net.a(x)) if len(x) > 3 else net.other(net.b(x))),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), act=nn.ReLU(), other=nn.ReLU(), head=nn.Linear(8, 2),
    )  # fmt: skip
    assert len(convert(model, [VECTOR, VECTOR[:2]], activation="aid").changes) == 2
    with pytest.raises(ValueError, match=r"^convert: 'other' \(ReLU\) never ran with the example inputs"):
        convert(model, VECTOR, activation="aid")


# -- what is refused -------------------------------------------------------------------------------------------------


def residual():
    return Net(
        lambda net, x: net.head(net.act(net.a(x) + net.b(net.inner(net.a(x))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 8), inner=nn.Tanh(), act=nn.ReLU(), head=nn.Linear(8, 2),
    )  # fmt: skip


def gated():
    return Net(
        lambda net, x: net.down(net.act(net.gate(x)) * net.up(x)),
        gate=nn.Linear(6, 8), up=nn.Linear(6, 8), act=nn.SiLU(), down=nn.Linear(8, 2),
    )  # fmt: skip


def read_raw():
    return Net(
        lambda net, x: net.head(net.act(net.a(x))) + net.skip(net.a(x)),
        a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 2), skip=nn.Linear(8, 2),
    )  # fmt: skip


def read_raw_at_any_width():
    return Net(
        lambda net, x: net.head(net.act(net.a(x))) + net.skip(net.a(x).view(len(x), 4, -1).mean(-1)),
        a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 2), skip=nn.Linear(4, 2),
    )  # fmt: skip


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    return model


def computed():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def functional_norm():
    return Net(
        lambda net, x: net.head(net.act(F.layer_norm(net.a(x), (8,)))),
        a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 2),
    )  # fmt: skip


def shared_norm():
    return Net(
        lambda net, x: net.head(net.act(net.norm(net.b(net.act(net.norm(net.a(x))))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 8), norm=nn.LayerNorm(8, elementwise_affine=False), act=nn.ReLU(), head=nn.Linear(8, 2),
    )  # fmt: skip


def never_runs():
    return Net(
        lambda net, x: net.head(net.act(net.a(x))),
        a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 2), other=nn.Sequential(nn.Linear(8, 2), nn.ReLU()),
    )  # fmt: skip


def joined():
    return Net(
        lambda net, x: net.head(net.act(torch.cat([net.a(x), x], 1))),
        a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(14, 2),
    )  # fmt: skip


def on_outputs_too():
    return Net(
        lambda net, x: net.act(net.head(net.act(net.a(x)))),
        a=nn.Linear(6, 8), act=nn.Tanh(), head=nn.Linear(8, 2),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )


def odd():
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2))


def function():
    return Net(lambda net, x: net.head(F.relu(net.a(x))), a=nn.Linear(6, 4), head=nn.Linear(4, 2))


def not_registered():
    act = nn.ReLU()
    return Net(lambda net, x: net.head(act(net.a(x))), a=nn.Linear(6, 4), head=nn.Linear(4, 2))


def encoder():
    return nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, batch_first=True), nn.Linear(8, 2))


NO = "cannot be exchanged for an activation that is twice as wide: "
REFUSED = {
    "a function": (function, VECTOR, "Net calls relu as a function"),
    "a function of an encoder layer": (encoder, TOKENS, r"'1' \(TransformerEncoderLayer\) calls relu as a function"),
    "a module that is not registered": (not_registered, VECTOR, "Net calls relu as a function"),
    "an odd number of units": (odd, VECTOR, f"'1' {NO}'0' has 7 units, which cannot be halved"),
    "a residual sum": (residual, VECTOR, f"'inner' {NO}it is applied to units of 'a.weight' and 'b.weight' together"),
    "a gate": (gated, VECTOR, rf"'act' {NO}the units of 'gate' are not its alone \('up.bias', 'up.weight'"),
    "units read before the activation": (read_raw, VECTOR, "'skip' cannot run as converted with the example inputs"),
    "means of units read before it": (
        read_raw_at_any_width,
        VECTOR,
        "'a' cannot be halved: some of what reads its units",
    ),
    "a shared weight": (tied, VECTOR, f"'1' {NO}the weight of '0' is computed, or shared with another layer"),
    "a layer before a computed weight": (computed, VECTOR, f"'1' {NO}the units of '0' are left alone by trace"),
    "a computed weight": (lambda: computed()[2:], torch.ones(4, 12), f"'3' {NO}'2.parametrizations.weight' is a Param"),
    "a norm that is a function": (
        functional_norm,
        VECTOR,
        "Net, which normalizes the units of 'a', does so by the function",
    ),
    "a norm of two layers": (
        shared_norm,
        VECTOR,
        r"'norm' \(LayerNorm\), which normalizes the units of 'a', cannot be",
    ),
    "a module that never ran": (never_runs, VECTOR, r"'other.1' \(ReLU\) never ran with the example inputs"),
    "units beside inputs": (joined, VECTOR, f"'act' {NO}what it is applied to holds more than the units of 'a'"),
    "hidden units and outputs": (on_outputs_too, VECTOR, r"'act' \(Tanh\) is applied to hidden units and to outputs"),
    "a depthwise convolution": (
        depthwise,
        IMAGE,
        rf"'1' {NO}the units of '0' are not its alone \('2.bias', '2.weight'",
    ),
    "twice as wide already": (lambda: convert(mlp(), activation="crelu").model, VECTOR, "'1' is a CReLU already"),
    "no activation": (lambda: nn.Sequential(nn.Linear(6, 4)), VECTOR, "Sequential has no activation of hidden units"),
    "a recurrent network with functions": (recurrent, TOKENS, "Recurrent calls relu as a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_named_and_nothing_is_changed(name):
    torch.manual_seed(0)
    make, x, said = REFUSED[name]
    model = make()
    before, drawn, looks = copy.deepcopy(model.state_dict()), torch.get_rng_state(), repr(model)
    with pytest.raises(ValueError, match=f"^convert: {said}") as error:
        convert(model, x, activation="crelu")
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], held) for key, held in model.state_dict().items())
    assert repr(model) == looks
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_second_norm_and_a_shared_place_are_refused():
    with pytest.raises(ValueError, match=r"^convert: '1' \(BatchNorm2d\) normalizes already what '2' is applied to"):
        convert(convnet(), IMAGE, layer_norm=True)
    model = Net(
        lambda net, x: net.head(net.act(net.b(net.act(net.a(x))))),
        a=nn.Linear(6, 8), b=nn.Linear(8, 4), act=nn.ReLU(), head=nn.Linear(4, 2),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"^convert: 'act' serves 'a.weight' and 'b.weight', which need a layer norm each"
    ):
        convert(model, VECTOR, layer_norm=True)


@pytest.mark.parametrize("x", [torch.ones(2, 3, dtype=torch.int64), (VECTOR, VECTOR), torch.ones(6)])
def test_inputs_that_are_not_one_tensor_of_real_numbers_are_refused(x):
    model = Net(lambda net, *inputs: net.head(inputs[0].float().sum() + torch.ones(6)), head=nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"^input_norm: Net does not take one tensor of real numbers"):
        convert(model, x, input_norm=True)


@pytest.mark.parametrize(("x", "said"), [([], "is an empty list"), (torch.ones(0, 6), "holds no example")])
def test_examples_that_show_nothing_are_refused(x, said):
    with pytest.raises(ValueError, match=f"^convert: example_inputs {said}"):
        convert(mlp(), x, input_norm=True)


def test_settings_that_convert_nothing_or_are_unknown_are_refused():
    with pytest.raises(ValueError, match=r"^nothing to convert: give activation="):
        convert(mlp(), VECTOR)
    with pytest.raises(ValueError, match=r"^unknown activation 'crelo' \(did you mean 'crelu'\?\)"):
        convert(mlp(), VECTOR, activation="crelo")
    with pytest.raises(ValueError, match=r"^activation must be a name or an elementwise module"):
        convert(mlp(), VECTOR, activation=nn.Linear(3, 3))
