"""Optimizers, pulls, norms and dropout of the compiled learners are those of PyTorch, replacements included."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pliant import L2, ContinualBackprop, WeightClipping, streams
from pliant.base.initial import GAINS, uniform_bound
from pliant.online import OnlineEnsemble, fresh_weights
from pliant.optimizers import UPGD, ObGD
from pliant.units.groups import AffineEntry, Slice, Tap, UnitGroup

SEED, STEPS, HIDDEN = 7, 500, (8, 6)
CBP = {"replacement_rate": 0.02, "maturity_threshold": 10, "decay_rate": 0.9}


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0),
    "upgd": partial(UPGD, beta_utility=0.9, sigma=0.0),
    "obgd": partial(ObGD, kappa=2.0),
}


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
              activation="relu", cbp=False, attach=None):  # fmt: skip
    """Losses of the network with every unit, whether it was right, and the network after the last step."""
    torch.set_default_dtype(torch.float64)
    try:
        net = Net(online, normalization, activation, decays)
        decay = {"weight_decay": weight_decay} if weight_decay else {}
        opt = OPTIMIZERS[optimizer](net.parameters(), lr=0.02, **decay)
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
        if attach is not None:
            attach(net, opt)
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


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["adamw", "upgd"])
def test_an_optimizer_with_decoupled_decay_is_that_of_pytorch(optimizer, weight_decay, cbp):
    own = {"beta_utility": 0.9, "sigma": 0.0} if optimizer == "upgd" else {}
    online = compiled(optimizer=optimizer, weight_decay=weight_decay, **own, **(CBP if cbp else {}))
    assert_same(online, optimizer=optimizer, weight_decay=weight_decay, cbp=cbp)


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_a_step_bounded_by_overshooting_is_that_of_pytorch(normalization, cbp):
    online = compiled(optimizer="obgd", normalization=normalization, **(CBP if cbp else {}))
    assert_same(online, optimizer="obgd", normalization=normalization, cbp=cbp)
    free = compiled(normalization=normalization, **(CBP if cbp else {}))
    free.partial_fit(*examples())
    assert np.abs(free.weights(0) - online.weights(0)).max() > 0.01  # steps were bounded


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_l2_init_pulls_every_parameter_to_where_it_began_as_in_pytorch(normalization, optimizer, cbp):
    settings = {"normalization": normalization, "optimizer": optimizer, "weight_decay": 0.05}
    online = compiled(l2_init=0.1, **settings, **(CBP if cbp else {}))

    def attach(net, opt):
        L2(net, opt, strength=0.1, toward="initial")

    assert_same(online, attach=attach, cbp=cbp, **settings)


@pytest.mark.parametrize("cbp", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "obgd"])
def test_clipped_weights_are_those_of_pytorch(optimizer, decay, cbp):
    decay = {} if optimizer == "obgd" else {"weight_decay": decay}
    online = compiled(weight_clipping=0.7, optimizer=optimizer, **decay, **(CBP if cbp else {}))

    def attach(net, opt):
        WeightClipping(net, opt, kappa=0.7)

    assert_same(online, attach=attach, optimizer=optimizer, cbp=cbp, **decay)
    free = compiled(optimizer=optimizer, **decay, **(CBP if cbp else {}))
    free.partial_fit(*examples())
    bound = 0.7 / np.sqrt(5)
    assert np.abs(online.weights(0)).max() <= bound + 1e-12 < np.abs(free.weights(0)).max() + 1e-12


def test_the_noise_of_upgd_has_the_size_it_should_and_spares_the_useful():
    X, y = np.zeros((1, 1, 5)), np.zeros((1, 1), np.int64)  # no gradient but that of the biases
    still, noisy = (compiled(optimizer="upgd", sigma=sigma, hidden=(200,)) for sigma in (0.0, 3.0))
    for each in (still, noisy):
        each.partial_fit(X, y)
    moved = noisy.weights(0) - still.weights(0)  # weights of no utility: half of 0.02 times 3 times a normal number
    assert moved.std() == pytest.approx(0.03, rel=0.1)
    assert abs(moved.mean()) < 0.005


def test_what_upgd_and_its_noise_learn_resumes_exactly_and_alone_is_as_among_others():
    X, y = examples()
    shape = {"learners": 3, "seed": [SEED, 1, 2], "optimizer": "upgd", "sigma": [0.0, 0.5, 1.0], **CBP}
    straight = compiled(**shape)
    loss = straight.partial_fit(X, y).loss
    first = compiled(**shape)
    first.partial_fit(X[:, :123], y[:, :123])
    resumed = compiled(**shape)
    resumed.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(resumed.partial_fit(X[:, 123:], y[:, 123:]).loss, loss[:, 123:])
    alone = compiled(**(shape | {"learners": 1, "seed": 2, "sigma": 1.0}))
    np.testing.assert_array_equal(alone.partial_fit(X, y).loss[0], loss[2])


def test_learners_with_and_without_l2_init_and_clipping_share_an_ensemble():
    X, y = examples()
    shape = {"learners": 3, "seed": SEED, "l2_init": [0.0, 0.1, 0.0], "weight_clipping": [0.0, 0.0, 1.0], **CBP}
    together = compiled(**shape)
    together.partial_fit(X, y)
    for r in range(3):
        alone = compiled(
            **(shape | {"learners": 1, "seed": SEED + r} | {k: shape[k][r] for k in ("l2_init", "weight_clipping")})
        )
        alone.partial_fit(X, y)
        np.testing.assert_allclose(alone.weights(1)[0], together.weights(1)[r], rtol=0, atol=1e-9)


def test_settings_that_do_not_work_together_are_refused():
    for settings, message in (
        ({"optimizer": "upgd", "normalization": "layer"}, "optimizer 'upgd' does not work with normalization"),
        ({"optimizer": "upgd", "l2_init": 0.1}, "optimizer 'upgd' does not work with l2_init"),
        ({"optimizer": "obgd", "weight_decay": 0.1}, "optimizer 'obgd' does not work with weight_decay"),
        ({"weight_clipping": 1.0, "noise_std": 0.1}, "weight_clipping does not work with noise_std"),
        ({"optimizer": "upgd", "beta_utility": 1.0}, "beta_utility must be at least 0 and, in float64, below 1"),
        ({"optimizer": "upgd", "kernel": "lanes"}, "the lanes kernel supports no upgd"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(**settings)
