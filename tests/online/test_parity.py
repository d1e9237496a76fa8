"""The compiled learners are the PyTorch method: same losses and weights, replacements included."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pliant import ContinualBackprop, chain_groups
from pliant.base.initial import GAINS, uniform_bound
from pliant.online import OnlineEnsemble, fresh_weights
from pliant.online.settings import UTILITIES

TORCH = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "elu": nn.ELU, "swish": nn.SiLU, "selu": nn.SELU, "linear": nn.Identity,
}  # fmt: skip
STEPS, SEED = 500, 7


def learners(kernel="rows", hidden=(8, 6), outputs=2, dtype=np.float64, **settings):
    settings = {"replacement_rate": 0.02, "maturity_threshold": 10, "decay_rate": 0.9, "step_size": 0.02} | settings
    return OnlineEnsemble(
        inputs=5, hidden=hidden, outputs=outputs, learners=1, seed=SEED, kernel=kernel, dtype=dtype, **settings
    )


def examples(outputs=2, labels=False, steps=STEPS, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(1, steps, 5)) * (rng.random((1, steps, 5)) < 0.7)).astype(
        dtype
    )  # zeros are a case of their own
    y = rng.integers(0, outputs, (1, steps)) if labels else np.sin(X[..., :outputs] * 3)
    return X, y


def torch_run(online, X, y, activation="relu", optimizer="sgd", step_size=0.02, weight_decay=0.0, **method):
    """The same learner as a PyTorch loop; returns losses and the model."""
    sizes, dtype = online.sizes, torch.from_numpy(X).dtype
    pairs = list(pairwise(sizes))
    modules = [part for m, n in pairs for part in (nn.Linear(m, n, dtype=dtype), TORCH[activation]())]
    model = nn.Sequential(*modules[:-1])
    linear = [module for module in model if isinstance(module, nn.Linear)]
    for layer, module in enumerate(linear):
        module.weight.data.copy_(torch.from_numpy(online.weights(layer)[0].T))
        module.bias.data.copy_(torch.from_numpy(online.biases(layer)[0]))
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    opt = make(model.parameters(), lr=step_size, weight_decay=weight_decay)
    drawn = {}

    def init(name, shape, generator):
        layer = [f"{2 * k}.weight" for k in range(len(linear))].index(name)
        first, drawn[layer] = drawn.get(layer, 0), drawn.get(layer, 0) + shape[0]
        limit = uniform_bound("kaiming", shape[1], sizes[layer + 1], GAINS[activation])
        rows = [fresh_weights(SEED, layer, first + k, shape[1], limit) for k in range(shape[0])]
        return torch.from_numpy(np.stack(rows))

    method = {"replacement_rate": 0.02, "maturity_threshold": 10, "decay_rate": 0.9} | method
    ContinualBackprop(model, opt, groups=chain_groups(model), init=init, seed=SEED, **method)
    losses = []
    for x, target in zip(torch.from_numpy(X[0]), torch.from_numpy(y[0]), strict=True):
        opt.zero_grad()
        out = model(x[None])
        loss = (
            nn.functional.mse_loss(out, target[None]) if y.ndim == 3 else nn.functional.cross_entropy(out, target[None])
        )
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return np.array(losses), linear


def assert_same(online, X, y, atol, **torch_settings):
    losses, linear = torch_run(online, X, y, **torch_settings)
    progress = online.partial_fit(X, y)
    assert (online.replacements >= 20).all()
    np.testing.assert_allclose(progress.loss[0], losses, rtol=0, atol=atol)
    for layer, module in enumerate(linear):
        np.testing.assert_allclose(online.weights(layer)[0].T, module.weight.detach(), rtol=0, atol=atol)
        np.testing.assert_allclose(online.biases(layer)[0], module.bias.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("utility", [u for u in UTILITIES if u != "random"])
def test_every_utility_ranks_as_in_pytorch(kernel, optimizer, utility):
    online = learners(kernel, optimizer=optimizer, utility=utility)
    assert_same(online, *examples(), atol=1e-8, optimizer=optimizer, utility=utility)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
@pytest.mark.parametrize("activation", TORCH)
def test_every_activation_learns_as_in_pytorch(kernel, activation):
    online = learners(kernel, activation=activation)
    assert_same(online, *examples(), atol=1e-8, activation=activation)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_cross_entropy_and_weight_decay_are_those_of_pytorch(kernel, optimizer):
    online = learners(kernel, outputs=3, loss="cross_entropy", optimizer=optimizer, weight_decay=0.01)
    assert_same(online, *examples(3, labels=True), atol=1e-8, optimizer=optimizer, weight_decay=0.01)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
@pytest.mark.parametrize(
    "choice", [{"count": "bernoulli"}, {"hand_over_mean": False}, {"decay_rate": 0.0}, {"maturity_threshold": 0}]
)
def test_every_choice_of_the_method_means_the_same(kernel, choice):
    assert_same(learners(kernel, **choice), *examples(), atol=1e-8, **choice)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
def test_one_step_in_float32_is_that_of_pytorch_to_a_millionth(kernel):
    online = learners(kernel, dtype=np.float32)
    X, y = examples(steps=1, dtype=np.float32)
    losses, linear = torch_run(online, X, y.astype(np.float32))
    assert online.partial_fit(X, y.astype(np.float32)).loss[0, 0] == pytest.approx(losses[0], abs=1e-6)
    for layer, module in enumerate(linear):
        np.testing.assert_allclose(online.weights(layer)[0].T, module.weight.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step_size_and_decay", [(0.02, 0.5), (0.02, 45.0), (0.02, 50.0), (0.02, 60.0)])
def test_decay_of_any_strength_reaches_rows_that_are_not_used(step_size_and_decay):
    step_size, decay = step_size_and_decay  # a step keeps 0.99, 0.1, nothing, -0.2 of every weight
    online = learners(step_size=step_size, weight_decay=decay)
    X, y = examples()
    X[..., 2] *= np.arange(STEPS) % 97 == 0  # an input that is rarely there
    assert_same(online, X, y, atol=1e-8, weight_decay=decay)
    assert 0 < online.weight_magnitude().min() < 1
    sums = learners(step_size=step_size, weight_decay=decay).partial_fit(X, y, log_weights=True).weight_sums
    expected = [np.abs(online.weights(layer)).sum() for layer in range(3)]
    np.testing.assert_allclose(sums[0, -1], expected, rtol=1e-9)
