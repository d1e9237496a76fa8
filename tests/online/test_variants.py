"""Layer norm, online normalization and dropout in the compiled learners are those of plain PyTorch, replacements included."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pliant import ContinualBackprop, streams
from pliant.base.initial import GAINS, uniform_bound
from pliant.online import OnlineEnsemble, fresh_weights
from pliant.units.groups import AffineEntry, Slice, Tap, UnitGroup

SEED, STEPS, HIDDEN = 7, 500, (8, 6)
CBP = {"replacement_rate": 0.02, "maturity_threshold": 10, "decay_rate": 0.9}


class OneByOne(torch.autograd.Function):
    """Chiley et al. (2019), from the equations: normalize by past statistics, steer the gradient by the control process."""

    @staticmethod
    def forward(ctx, x, norm):
        ctx.norm, ctx.sigma = norm, (norm.variance + 1e-5).sqrt()
        ctx.y = (x - norm.mean) / ctx.sigma
        if norm.training:
            away = x - norm.mean
            norm.variance = norm.decay_forward * (norm.variance + (1 - norm.decay_forward) * away**2)
            norm.mean = norm.decay_forward * norm.mean + (1 - norm.decay_forward) * x
        return ctx.y

    @staticmethod
    def backward(ctx, g):
        norm, left = ctx.norm, 1 - ctx.norm.decay_backward
        g = g - left * norm.e_y * ctx.y
        norm.e_y = norm.e_y + g * ctx.y
        dx = g / ctx.sigma - left * norm.e_1
        norm.e_1 = norm.e_1 + dx
        return dx, None


class OnlineNorm(nn.Module):
    def __init__(self, units, decay_forward, decay_backward):
        super().__init__()
        self.decay_forward, self.decay_backward = decay_forward, decay_backward
        self.weight, self.bias = nn.Parameter(torch.ones(units)), nn.Parameter(torch.zeros(units))
        self.mean, self.e_y, self.e_1 = torch.zeros(units), torch.zeros(units), torch.zeros(units)
        self.variance = torch.ones(units)

    def forward(self, x):
        u = self.weight * OneByOne.apply(x, self) + self.bias
        return u / ((u * u).mean() + 1e-5).sqrt()

    def start_over(self, units):
        for value, start in ((self.mean, 0), (self.e_y, 0), (self.e_1, 0), (self.variance, 1)):
            value[units] = start


class Net(nn.Module):
    """The same network, one example at a time; `mask` is the step's dropout."""

    def __init__(self, online, normalization, activation, decays):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(online.sizes))
        make = {"none": lambda n: nn.Identity(), "layer": nn.LayerNorm, "online": lambda n: OnlineNorm(n, *decays)}
        self.norms = nn.ModuleList(make[normalization](n) for n in online.sizes[1:-1])
        self.act, self.mask, self.dropout = getattr(torch, activation), None, 0.0
        for layer, linear in enumerate(self.linears):
            linear.weight.data = torch.tensor(online.weights(layer)[0].T.copy())
            linear.bias.data = torch.tensor(online.biases(layer)[0])

    def forward(self, x):
        begin = 0
        for linear, norm in zip(self.linears[:-1], self.norms, strict=True):
            x = self.act(norm(linear(x)))
            if self.mask is not None:
                x = x * self.mask[begin : begin + len(x)] / (1 - self.dropout)
                begin += len(x)
        return self.linears[-1](x)


def groups(net):
    found = []
    for k in range(len(net.norms)):
        named = f"linears.{k}.weight", f"linears.{k}.bias", f"linears.{k + 1}.weight"
        own = [AffineEntry(Slice(f"norms.{k}.{name}", 0), value) for name, value in (("weight", 1.0), ("bias", 0.0))]
        found.append(UnitGroup(
            f"linears.{k}", [Slice(named[0], 0), Slice(named[1], 0)], [Slice(named[2], 1)], Tap(f"linears.{k + 1}"),
            affine=() if isinstance(net.norms[k], nn.Identity) else own, kind="approximate",
        ))  # fmt: skip
    return found


def examples(steps=STEPS):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1, steps, 5)) * (rng.random((1, steps, 5)) < 0.7)
    return X, rng.integers(0, 3, (1, steps))


def compiled(**settings):
    common = {"inputs": 5, "hidden": HIDDEN, "outputs": 3, "learners": 1, "seed": SEED, "loss": "cross_entropy"}
    return OnlineEnsemble(**(common | {"dtype": np.float64, "step_size": 0.02, "kernel": "rows"} | settings))


def torch_run(online, X, y, *, optimizer="sgd", weight_decay=0.0, normalization="none", decays=(0.99, 0.99), dropout=0.0,
              activation="relu", cbp=False):  # fmt: skip
    """Losses of the network with every unit, whether it was right, and the network after the last step."""
    torch.set_default_dtype(torch.float64)
    try:
        net = Net(online, normalization, activation, decays)
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        opt = make(net.parameters(), lr=0.02, weight_decay=weight_decay)
        drawn, replaced = [0] * len(HIDDEN), {}

        def init(name, shape, generator):
            layer, bound = int(name.split(".")[1]), 0.0
            bound = uniform_bound("kaiming", shape[1], online.sizes[layer + 1], GAINS[activation])
            rows = [fresh_weights(SEED, layer, drawn[layer] + k, shape[1], bound) for k in range(shape[0])]
            drawn[layer] += shape[0]
            replaced[layer] = torch.tensor(np.stack(rows))
            return replaced[layer]

        if cbp:
            ContinualBackprop(net, opt, groups=groups(net), init=init, seed=SEED, strict=False, **CBP)
        units, key = sum(HIDDEN), streams.stream_key(SEED, "dropout")
        losses, hits = [], []
        for t, (x, label) in enumerate(zip(torch.tensor(X[0]), torch.tensor(y[0]), strict=True)):
            if dropout:
                with torch.no_grad():
                    whole = net.eval()(x)
                net.train().mask = torch.tensor(streams.uniform(key, t * units, units) >= dropout)
                net.dropout = dropout
            opt.zero_grad()
            out = net(x)
            loss = nn.functional.cross_entropy(out, label)
            loss.backward()
            replaced.clear()
            opt.step()
            net.mask = None
            for k, rows in replaced.items() if normalization == "online" else ():
                W = net.linears[k].weight
                for row in rows:  # weights from units that were replaced at this step are zero
                    net.norms[k].start_over(((row == W) | (W == 0)).all(dim=1))
            seen = whole if dropout else out
            losses.append(nn.functional.cross_entropy(seen, label).item())
            hits.append(bool(seen.argmax() == label))
        return np.array(losses), np.array(hits), net
    finally:
        torch.set_default_dtype(torch.float32)


def assert_same(online, atol=1e-8, **settings):
    X, y = examples()
    losses, hits, net = torch_run(online, X, y, **settings)
    progress = online.partial_fit(X, y)
    if settings.get("cbp"):
        assert (online.replacements >= 20).all()
    np.testing.assert_allclose(progress.loss[0], losses, rtol=0, atol=atol)
    np.testing.assert_array_equal(progress.correct[0], hits)
    for layer, linear in enumerate(net.linears):
        np.testing.assert_allclose(online.weights(layer)[0].T, linear.weight.detach(), rtol=0, atol=atol)
        np.testing.assert_allclose(online.biases(layer)[0], linear.bias.detach(), rtol=0, atol=atol)
    for layer, norm in enumerate(net.norms):
        if settings.get("normalization", "none") == "none":
            break
        mine = online.norm(layer)
        np.testing.assert_allclose(mine["scale"][0], norm.weight.detach(), rtol=0, atol=atol)
        np.testing.assert_allclose(mine["shift"][0], norm.bias.detach(), rtol=0, atol=atol)
        if settings["normalization"] == "online":
            np.testing.assert_allclose(mine["mean"][0], norm.mean, rtol=0, atol=atol)
            np.testing.assert_allclose(mine["variance"][0], norm.variance, rtol=0, atol=atol)
    np.testing.assert_array_equal(online.predict(X)[0, :50], [net.eval()(x).argmax() for x in torch.tensor(X[0, :50])])


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("normalization", ["layer", "online"])
def test_a_normalized_network_learns_as_in_pytorch(normalization, optimizer, cbp):
    online = compiled(normalization=normalization, optimizer=optimizer, **(CBP if cbp else {}))
    assert_same(online, normalization=normalization, optimizer=optimizer, cbp=cbp)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_decay_reaches_scales_and_shifts_too(optimizer):
    online = compiled(normalization="layer", weight_decay=0.05, optimizer=optimizer)
    assert_same(online, normalization="layer", weight_decay=0.05, optimizer=optimizer)


@pytest.mark.parametrize("activation", ["tanh", "selu"])
def test_the_decays_of_online_normalization_and_any_activation_mean_the_same(activation):
    online = compiled(normalization="online", online_norm_decay=(0.9, 0.8), activation=activation)
    assert_same(online, normalization="online", decays=(0.9, 0.8), activation=activation)


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_dropout_learns_without_the_units_that_are_out_and_is_measured_with_all(optimizer, cbp):
    online = compiled(dropout=0.3, optimizer=optimizer, **(CBP if cbp else {}))
    assert_same(online, dropout=0.3, optimizer=optimizer, cbp=cbp)


def test_dropout_normalization_and_decay_go_together():
    online = compiled(dropout=0.2, normalization="online", weight_decay=0.05, activation="tanh")
    assert_same(online, dropout=0.2, normalization="online", weight_decay=0.05, activation="tanh")


def test_normalized_learners_resume_exactly_and_alone_are_as_among_others():
    X, y = examples()
    shape = {"learners": 3, "seed": [SEED, 1, 2], "normalization": "online", "dropout": [0.0, 0.2, 0.5], **CBP}
    straight = compiled(**shape)
    loss = straight.partial_fit(X, y).loss
    assert (straight.replacements >= 20).all()
    first = compiled(**shape)
    first.partial_fit(X[:, :123], y[:, :123])
    first.predict(X)
    resumed = compiled(**shape)
    resumed.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(resumed.partial_fit(X[:, 123:], y[:, 123:]).loss, loss[:, 123:])
    for name, value in straight.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], value, err_msg=name)
    alone = compiled(**(shape | {"learners": 1, "seed": 2, "dropout": 0.5}))
    np.testing.assert_array_equal(alone.partial_fit(X, y).loss[0], loss[2])


def test_what_only_one_kernel_knows_decides_which_one_is_taken():
    assert compiled(kernel="auto").kernel == "lanes"
    assert compiled(kernel="auto", dropout=0.1).kernel == "rows"
    assert compiled(kernel="auto", normalization="layer").kernel == "rows"
    with pytest.raises(ValueError, match="lanes kernel supports no normalization and no dropout; use kernel='rows'"):
        compiled(kernel="lanes", dropout=0.1, normalization="layer")
    with pytest.raises(
        ValueError, match=r"dropout must be below 1 in float64, not 1\.0: a layer without units learns nothing"
    ):
        compiled(dropout=1.0)
    with pytest.raises(
        ValueError, match=r"online_norm_decay\[1\] must be at least 0 and, in float(32|64), below 1, not 1.5"
    ):
        compiled(normalization="online", online_norm_decay=(0.9, 1.5))
    with pytest.raises(ValueError, match="unknown normalization 'batch'; known: none, layer, online"):
        compiled(normalization="batch")
