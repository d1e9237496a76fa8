"""Against the released engines: golden values, equality where the design agrees, and where it is right and they are wrong."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import ContinualBackprop, chain_groups
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits
from tests.networks import ages
from tests.reference_engines import ConvEngine, DenseEngine, Layer

W = [[0.5, -1.0], [2.0, 0.25], [-0.3, 0.1]]
V = [[1.0, -0.5, 0.2], [0.0, 0.25, -0.4]]
FEATURES = [[[1.0, 0, 2], [3, 0.5, 0]], [[0.0, 1, 1], [2, 0, 4]], [[1.0, 1, 0], [1, 2, 0]]]
GOLDEN = {
    "weight": [[0.5, 0.375, 0.3]] * 3,
    "contribution": [[1, 0.09375, 0.3], [0.736842, 0.143092, 0.536842], [0.649446, 0.297855, 0.338745]],
    "adaptation": [[1.333333, 0.888889, 5]] * 3,
    "zero_contribution": [[0.5, 0.09375, 0.3], [0.5, 0.143092, 0.378947], [0.370644, 0.187945, 0.364113]],
    "adaptable_contribution": [
        [0.666667, 0.083333, 1.5],
        [0.666667, 0.127193, 1.894737],
        [0.494192, 0.167063, 1.820563],
    ],
    "feature_by_input": [[1.333333, 0.222222, 5], [1.333333, 0.339181, 6.315789], [0.988385, 0.4455, 6.068542]],
}


def tiny(**kwargs):
    """The network of the golden values, with continual backpropagation stepped by hand."""
    model = nn.Sequential(OrderedDict(fc1=nn.Linear(2, 3), relu=nn.ReLU(), fc2=nn.Linear(3, 2))).double()
    with torch.no_grad():
        model.fc1.weight.copy_(tensor(W))
        model.fc2.weight.copy_(tensor(V))
        model.fc2.bias.copy_(tensor([-1.0, 1.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, ContinualBackprop(model, optimizer, groups=chain_groups(model), attach=False, **kwargs)


def observe(model, cbp, call):
    model.fc2(tensor(FEATURES[call % 3], dtype=torch.float64))
    cbp.step()


def tiny_reference(**kwargs):
    layer = Layer(*(tensor(x, dtype=torch.float64) for x in (W, [0.0] * 3, V, [-1.0, 1.0])))
    return layer, DenseEngine([layer], draw=lambda index, count: torch.zeros(count, 2, dtype=torch.float64), **kwargs)


@pytest.mark.parametrize("utility", GOLDEN)
def test_utilities_have_the_golden_values(utility):
    model, cbp = tiny(utility=utility, decay_rate=0.9, maturity_threshold=100)
    layer, reference = tiny_reference(utility=utility, decay=0.9, maturity=100, rate=1e-4)
    for call in range(3):
        observe(model, cbp, call)
        reference([tensor(FEATURES[call], dtype=torch.float64)])
        golden = tensor(GOLDEN[utility][call], dtype=torch.float64)
        assert_close(cbp.score.value(cbp.groups[0], [])[0], golden, rtol=1e-5, atol=1e-6)
        assert_close(layer.u_hat, golden, rtol=1e-5, atol=1e-6)
    assert_close(layer.mu, tensor([0.352, 0.21525, 0.306], dtype=torch.float64))
    uncorrected = cbp.score.mean(cbp.groups[0])[0, :, 0] * (1 - 0.9**3)
    assert_close(uncorrected, layer.mu)


def test_replacements_have_the_golden_timing():
    model, cbp = tiny(decay_rate=0.9, maturity_threshold=2, replacement_rate=0.2, hand_over_mean=False)
    layer, reference = tiny_reference(utility="contribution", decay=0.9, maturity=2, rate=0.2)
    seen, counters = [], []
    for call in range(7):
        observe(model, cbp, call)
        reference([tensor(FEATURES[call % 3], dtype=torch.float64)])
        seen.append(ages(cbp)[0].tolist())
        counters.append(round(layer.accumulated, 6))
    assert layer.replaced == [1, 2]
    assert seen == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 0, 4], [5, 1, 5], [6, 2, 0], [7, 3, 1]]
    assert counters == [0, 0, 0.6, 0.2, 0.6, 0.0, 0.4]


def test_the_mean_is_handed_over_where_the_released_engine_adds_zero():
    model, cbp = tiny(decay_rate=0.9, maturity_threshold=2, replacement_rate=0.2)
    layer, reference = tiny_reference(utility="contribution", decay=0.9, maturity=2, rate=0.2)
    for call in range(4):
        observe(model, cbp, call)
        reference([tensor(FEATURES[call % 3], dtype=torch.float64)])
    assert_close(model.fc2.bias.detach(), tensor([-1.3180065, 1.1590033], dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert layer.replaced == [1]
    assert layer.c.tolist() == [-1.0, 1.0]


def test_channel_two_of_four_positions_owns_flattened_inputs_8_to_11():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    (group,) = chain_groups(model)
    columns = torch.arange(12.0).expand(2, 12)
    channel = SelectedUnits(torch.tensor([0]), torch.tensor([2]), torch.ones(1), [1])
    assert BoundGroup(group, model).outgoing[0].read(channel, columns)[0, :, 0].tolist() == [8, 9, 10, 11]


class SharedDraws:
    """The same fresh rows for both engines, in order of use."""

    def __init__(self, size, dtype=torch.float64):
        rows = torch.randn(4000, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
        self.rows = {"ours": iter(rows), "reference": iter(rows)}

    def take(self, who, count, shape):
        rows = [next(self.rows[who])[: math.prod(shape)].reshape(shape) for _ in range(count)]
        return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)


def chain(kind):
    torch.manual_seed(3)
    dense = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    flatten = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    conv = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    return {"dense": dense, "conv then dense": flatten, "conv then conv": conv}[kind].double()


def batches(model, steps):
    shape = (8, 6) if isinstance(model[0], nn.Linear) else (8, 2, 6, 6)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield (
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randn(8, 2, generator=generator, dtype=torch.float64),
        )


def descend(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


CASES = [
    *(("dense", utility) for utility in GOLDEN),
    *(
        ("conv then conv", utility)
        for utility in ("contribution", "adaptation", "zero_contribution", "adaptable_contribution")
    ),
    # the released engine centres all columns of a channel on one mean, ours on each column's own: see the test after this one
    *(("conv then dense", utility) for utility in ("contribution", "adaptation")),
]


@pytest.mark.parametrize(("kind", "utility"), CASES)
def test_training_equals_the_released_engine_where_the_design_agrees(kind, utility):
    """Momentum kept, nothing handed over, and (for convolutions) every unit counted; one replaced layer, so no weights cross."""
    ours, theirs = chain(kind), chain(kind)
    spec = chain_groups(ours)[0]
    draws = SharedDraws(size=200)
    row = ours[0].weight.shape[1:]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (ours, theirs)]
    settings = {"utility": utility, "decay_rate": 0.9, "maturity_threshold": 7}
    cbp = ContinualBackprop(
        ours,
        optimizers[0],
        groups=[spec],
        replacement_rate=1 / 64,  # exact in binary, so that the released running sum does not drift either
        eligible="mature" if kind == "dense" else "all",
        hand_over_mean=False,
        optimizer_state="keep",
        init=lambda name, shape, generator: draws.take("ours", shape[0], shape[1:]),
        **settings,
    )
    consumer = theirs.get_submodule(spec.tap.module)
    layer = Layer(
        *(p.data for p in (theirs[0].weight, theirs[0].bias, consumer.weight, consumer.bias)), k=spec.outgoing[0].repeat
    )
    engine = (DenseEngine if kind == "dense" else ConvEngine)(
        [layer],
        rate=1 / 64,
        decay=0.9,
        maturity=7,
        utility=utility,
        draw=lambda index, count: draws.take("reference", count, row),
    )
    for x, y in batches(ours, steps=400):
        features = []
        handle = consumer.register_forward_pre_hook(
            lambda module, args, features=features: features.append(args[0].detach())
        )
        descend(ours, optimizers[0], x, y)
        descend(theirs, optimizers[1], x, y)
        handle.remove()
        engine(features)
    assert len(layer.replaced) >= 20
    assert cbp.stats()["0"]["replaced"] == [len(layer.replaced)]
    for mine, released in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(mine, released, rtol=1e-9, atol=1e-10)


def test_after_a_flatten_each_column_is_centred_on_its_own_mean():
    """Two positions that always read 0 and 2 never move, so nothing is centred away; one mean for both would give |1| each."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(4, 1))
    cbp = ContinualBackprop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        groups=chain_groups(model),
        utility="zero_contribution",
        attach=False,
    )
    for _ in range(3):
        model[2](tensor([[0.0, 2.0, 1.0, 1.0]]))
        cbp.step()
    assert_close(cbp.score.value(cbp.groups[0], [])[0], torch.zeros(2))


def test_crossing_weights_end_at_zero_where_the_released_engine_leaves_them_random():
    layers = [Layer(torch.ones(2, 3), torch.zeros(2), torch.ones(2, 2), torch.zeros(2))]
    layers.append(Layer(layers[0].v, torch.zeros(2), torch.ones(1, 2), torch.zeros(1)))
    released = DenseEngine(
        layers,
        rate=0.5,
        decay=0.9,
        maturity=0,
        utility="weight",
        draw=lambda i, n: torch.full((n, layers[i].w.shape[1]), 7.0),
    )
    released([torch.ones(1, 2), torch.ones(1, 2)])
    assert layers[0].replaced == layers[1].replaced == [0]
    assert layers[0].v[0, 0] == 7.0  # Q17

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cbp = ContinualBackprop(
        model,
        optimizer,
        groups=chain_groups(model),
        replacement_rate=0.5,
        maturity_threshold=0,
        init=lambda name, shape, generator: torch.full(shape, 7.0),
    )
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    first, second = ((age[0] == 0).nonzero().item() for age in cbp.ages().values())
    assert model[1].weight[second, first] == 0.0
    assert model[1].weight[second, 1 - first] == 7.0


def test_more_due_than_mature_is_owed_where_the_released_conv_engine_fails():
    layer = Layer(torch.ones(4, 3), torch.zeros(4), torch.ones(1, 4), torch.zeros(1))
    released = ConvEngine(
        [layer], rate=0.4, decay=0.9, maturity=5, utility="weight", draw=lambda i, n: torch.ones(n, 3)
    )
    for _ in range(11):
        released([torch.ones(1, 4)])
    assert len(layer.replaced) == 4
    with pytest.raises(RuntimeError, match="out of range"):
        released([torch.ones(1, 4)])
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model), replacement_rate=0.4, maturity_threshold=5, eligible="all"
    )
    for _ in range(50):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert cbp.stats()["0"]["replaced"][0] >= 20
