import pytest
import torch
from torch import nn

from pliant import ContinualBackprop, Slice, Tap, UnitGroup
from pliant.nn import StackedConv2d, StackedLinear

RUNS = 8
WAYS = ("loop", "grouped", "product")


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def net(seeds, dtype, how):
    """A convolution and a linear layer for each seed."""
    conv = StackedConv2d(len(seeds), 3, 6, 3, stride=2, padding=1, how=how, dtype=dtype)
    linear = StackedLinear(len(seeds), 6 * 16, 4, dtype=dtype)
    for seed_of_layer, layer in enumerate((conv, linear)):
        layer.reset_parameters(generators(100 * seed + seed_of_layer for seed in seeds))
    return conv, linear


def outputs_and_gradients(layers, x):
    conv, linear = layers
    x = x.clone().requires_grad_()
    y = linear(torch.relu(conv(x)).flatten(2))
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for layer in layers for p in layer.parameters())]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("how", WAYS)
def test_a_stack_of_8_equals_8_networks_forward_and_in_gradients(how, dtype, tolerance):
    x = torch.randn(RUNS, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    stacked = outputs_and_gradients(net(range(RUNS), dtype, how), x)
    for run in range(RUNS):
        alone = outputs_and_gradients(net([run], dtype, how), x[run : run + 1])
        for ours, single in zip(stacked, alone, strict=True):
            scale = float(single.abs().max())
            assert torch.allclose(ours[run], single[0], rtol=0, atol=tolerance * scale)


def test_the_loop_gives_each_run_what_it_gets_alone_to_the_bit():
    x = torch.randn(RUNS, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stack = net(range(RUNS), torch.float32, "auto")[0](x)
    for run in range(RUNS):
        assert torch.equal(stack[run], net([run], torch.float32, "auto")[0](x[run : run + 1])[0])


def test_a_stack_of_one_is_the_layer_of_torch_and_keeps_its_memory_format():
    conv, plain = StackedConv2d(1, 3, 6, 3, stride=2, padding=1), nn.Conv2d(3, 6, 3, stride=2, padding=1)
    plain.load_state_dict({"weight": conv.weight[0].detach(), "bias": conv.bias[0].detach()})
    x = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
    y = conv(x[None])[0]
    assert torch.equal(y, plain(x))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("stacked", "plain"),
    [
        (lambda: StackedLinear(1, 30, 20), lambda: nn.Linear(30, 20)),
        (lambda: StackedConv2d(1, 3, 8, 5), lambda: nn.Conv2d(3, 8, 5)),
    ],
)
def test_a_run_starts_from_what_torch_draws_under_the_same_seed(stacked, plain):
    torch.manual_seed(3)
    expected = plain()
    found = stacked()
    found.reset_parameters(generators([3]))
    assert torch.allclose(found.weight[0], expected.weight, rtol=1e-6)
    assert torch.allclose(found.bias[0], expected.bias, rtol=1e-6)


def test_the_start_of_a_run_does_not_depend_on_the_stack():
    (conv, linear), (other_conv, other_linear) = net([4, 2, 7], torch.float32, "auto"), net([7], torch.float32, "auto")
    assert torch.equal(conv.weight[2], other_conv.weight[0])
    assert torch.equal(linear.bias[2], other_linear.bias[0])
    assert not torch.equal(conv.weight[0], conv.weight[1])


@pytest.mark.parametrize("how", WAYS)
def test_a_nan_stays_in_its_run(how):
    conv, linear = net(range(3), torch.float32, how)
    conv.weight.data[1, 0] = float("nan")
    x = torch.ones(3, 5, 3, 8, 8)
    y, *gradients = outputs_and_gradients((conv, linear), x)
    for values in (y, *gradients):
        assert [bool(values[run].isfinite().all()) for run in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StackedConv2d(2, 3, 8, 5, how="fast"), "unknown how 'fast'; known: auto, loop, grouped, product"),
        (lambda: StackedLinear(0, 3, 8), "runs must be 1 or more whole numbers, got 0"),
        (lambda: StackedLinear(2, 3, 8).reset_parameters(generators([0])), "1 generators for 2 runs"),
        (lambda: StackedLinear(2, 3, 8)(torch.zeros(3, 5, 3)), "of 2 runs takes 3 axes, the run first"),
        (lambda: StackedConv2d(2, 3, 8, 5)(torch.zeros(2, 3, 8, 8)), "takes 5 axes"),
    ],
)
def test_what_does_not_fit_is_an_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class Pair(nn.Module):
    def __init__(self, seeds):
        super().__init__()
        self.conv, self.linear = net(seeds, torch.float32, "auto")

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).flatten(2))


def replaced_and_weights(seeds):
    """60 steps of continual backpropagation on a stack, every run on its own data."""
    model = Pair(seeds)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    group = UnitGroup(
        *("conv", [Slice("conv.weight", 0), Slice("conv.bias", 0)], [Slice("linear.weight", 1, repeat=16)], Tap("linear")),
        runs=len(seeds),
    )  # fmt: skip
    cbp = ContinualBackprop(
        model, optimizer, groups=[group], replacement_rate=0.1, maturity_threshold=4, seed=list(seeds)
    )
    data = [torch.randn(60, 5, 3, 8, 8, generator=each) for each in generators(seeds)]
    for step in range(60):
        optimizer.zero_grad()
        x = torch.stack([run[step] for run in data])
        (model(x) - x.mean((2, 3, 4))[..., None]).square().mean((1, 2)).sum().backward()
        optimizer.step()
    return cbp.stats()["conv"]["replaced"], model


def test_continual_backprop_on_a_stack_replaces_in_each_run_what_it_replaces_alone():
    counts, stack = replaced_and_weights([5, 0, 9])
    for run, seed in enumerate([5, 0, 9]):
        count, alone = replaced_and_weights([seed])
        assert counts[run] == count[0] >= 20
        assert torch.allclose(stack.conv.weight[run], alone.conv.weight[0], rtol=0, atol=1e-5)
