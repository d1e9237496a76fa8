"""Best of N bias-matched draws: the compiled learners against the method written out in NumPy, and what they promise with it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numba import njit
from torch import nn

from pliant import ContinualBackprop, streams
from pliant.base.initial import GAINS, uniform_bound
from pliant.online import OnlineClassifier, OnlineEnsemble, OnlineMLP, fresh_weights
from pliant.online.candidates import EXAMPLES, middle, product, score_of

SEED, HIDDEN, INPUTS, LABELS = 7, (8, 6), 5, 3
RATE, MATURITY, DECAY, STEP_SIZE = 0.02, 10, 0.9, 0.02
PHI = {"relu": lambda z: np.maximum(z, 0.0), "tanh": np.tanh}
SLOPE = {"relu": lambda h: (h > 0) * 1.0, "tanh": lambda h: 1 - h * h}


@njit
def score_in_numba(a, feeding):  # what it calls is compiled for compiled functions alone
    return score_of(a, feeding)


@njit
def product_in_numba(A, place, count, B, first, C):
    product(A, place, count, B, first, C)


@njit
def middle_in_numba(a):
    return middle(a)


def compiled(**settings):
    shape = {
        "inputs": INPUTS,
        "hidden": HIDDEN,
        "outputs": LABELS,
        "learners": 1,
        "seed": SEED,
        "loss": "cross_entropy",
    }
    cbp = {"replacement_rate": RATE, "maturity_threshold": MATURITY, "decay_rate": DECAY, "candidates": 5}
    return OnlineEnsemble(**(shape | cbp | {"dtype": np.float64, "step_size": STEP_SIZE} | settings))


def examples(steps=500):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1, steps, INPUTS)) * (rng.random((1, steps, INPUTS)) < 0.7)
    return X, rng.integers(0, LABELS, (1, steps))


# ---------------------------------------------------------------- the method, in NumPy


def scores(draws, x, delta, phi):
    """Of draws (N, inputs) on inputs x (n, inputs), with gradients delta (n, next): score, NaN where it loses, and bias, (N,)."""
    z = x @ draws.T
    bias = -np.sort(z, axis=0)[(len(z) - 1) // 2]
    a = phi(z + bias)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.linalg.norm(delta.T @ a / len(a), axis=0) / a.std(axis=0)
    return np.where((a.std(axis=0) > 0) & np.isfinite(score), score, np.nan), bias


def best_unit(draws, x, delta, phi):
    """Incoming weights and bias of the fresh unit."""
    score, bias = scores(draws, x, delta, phi)
    if np.isnan(score).all():
        return draws[0], 0.0
    best = np.nanargmax(score)
    return draws[best], bias[best]


class InNumPy:
    """Continual backpropagation with candidates, one example at a time: a network of the weights that `online` begins with."""

    def __init__(self, online, candidates, activation, *, adam=False, dropout=0.0):
        layers = range(len(online.sizes) - 1)
        self.W = [online.weights(layer)[0].copy() for layer in layers]  # (in, out)
        self.b = [online.biases(layer)[0].copy() for layer in layers]
        self.candidates, self.activation, self.adam, self.dropout = candidates, activation, adam, dropout
        self.moments = [[np.zeros_like(each), np.zeros_like(each)] for each in (*self.W, *self.b)]
        self.taken = [np.zeros(size, int) for size in online.sizes]  # steps of each unit with its moments
        self.age, self.utility, self.mean = ([np.zeros(size) for size in HIDDEN] for _ in range(3))
        self.eligible, self.replaced, self.past, self.steps = [0, 0], [0, 0], [], 0

    def learn(self, x, label):
        h, z = self.forward(x, dropping=False)
        loss = np.log(np.exp(z - z.max()).sum()) - (z[label] - z.max())
        if self.dropout:
            h, z = self.forward(x, dropping=True)
        delta = [np.exp(z - z.max()) / np.exp(z - z.max()).sum() - np.eye(LABELS)[label]]
        for layer in (1, 0):
            kept = self.mask(layer) / (1 - self.dropout) if self.dropout else 1.0
            undropped = h[layer + 1] / np.where(kept == 0, 1.0, kept)
            delta.insert(0, (self.W[layer + 1] @ delta[0]) * kept * SLOPE[self.activation](undropped))
        self.past = [*self.past, (h, delta)][-256:]
        self.descend(h, delta)
        self.replace(h)
        self.steps += 1
        return loss

    def mask(self, layer):
        place = self.steps * sum(HIDDEN) + sum(HIDDEN[:layer])
        return streams.uniform(streams.stream_key(SEED, "dropout"), place, HIDDEN[layer]) >= self.dropout

    def forward(self, x, *, dropping):
        h = [x]
        for layer in (0, 1):
            h.append(PHI[self.activation](h[-1] @ self.W[layer] + self.b[layer]))
            if dropping:
                h[-1] = h[-1] * self.mask(layer) / (1 - self.dropout)
        return h, h[-1] @ self.W[2] + self.b[2]

    def descend(self, h, delta):
        gradients = [*(np.outer(h[k], delta[k]) for k in range(3)), *delta]
        parameters = [*self.W, *self.b]
        if not self.adam:
            for p, g in zip(parameters, gradients, strict=True):
                p -= STEP_SIZE * g
            return
        for taken in self.taken:
            taken += 1
        steps = [np.minimum(self.taken[k][:, None], self.taken[k + 1]) for k in range(3)] + self.taken[1:]
        for p, g, (m, v), t in zip(parameters, gradients, self.moments, steps, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= STEP_SIZE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def replace(self, h):
        chosen = []
        for layer in (0, 1):
            age, activity = self.age[layer], h[layer + 1]
            age += 1
            self.mean[layer] += (1 - DECAY) * (activity - self.mean[layer])
            new = np.abs(activity) * np.abs(self.W[layer + 1]).mean(axis=1)
            self.utility[layer] += (1 - DECAY) * (new - self.utility[layer])
            self.eligible[layer] += (age > MATURITY).sum()
            due = min(int(RATE * self.eligible[layer]) - self.replaced[layer], (age > MATURITY).sum())
            ranked = np.where(age > MATURITY, self.utility[layer] / (1 - DECAY**age), np.inf)
            chosen.append(np.argsort(ranked, kind="stable")[:due])
        for layer, units in enumerate(chosen):
            for i in units:
                self.b[layer + 1] += self.W[layer + 1][i] * self.mean[layer][i] / (1 - DECAY ** self.age[layer][i])
        for layer, units in enumerate(chosen):
            for i in units:
                x, delta = (np.array([each[what][layer + what] for each in self.past]) for what in (0, 1))
                self.W[layer][:, i], self.b[layer][i] = best_unit(self.draws(layer), x, delta, PHI[self.activation])
                self.replaced[layer] += 1
        for layer, units in enumerate(chosen):
            self.W[layer + 1][units] = 0
            for of_unit in (self.age[layer], self.utility[layer], self.mean[layer], self.taken[layer + 1]):
                of_unit[units] = 0
            for moment in (0, 1):
                self.moments[layer][moment][:, units] = 0
                self.moments[layer + 1][moment][units] = 0
                self.moments[3 + layer][moment][units] = 0

    def draws(self, layer):
        fan_in, first = len(self.W[layer]), self.candidates * self.replaced[layer]
        bound = uniform_bound("kaiming", fan_in, self.W[layer].shape[1], GAINS[self.activation])
        return np.array([fresh_weights(SEED, layer, first + n, fan_in, bound) for n in range(self.candidates)])


def assert_as_in_numpy(candidates, activation, optimizer, dropout=0.0):
    X, y = examples()
    online = compiled(candidates=candidates, activation=activation, optimizer=optimizer, dropout=dropout)
    plain = InNumPy(online, candidates, activation, adam=optimizer == "adam", dropout=dropout)
    losses = [plain.learn(x, label) for x, label in zip(X[0], y[0], strict=True)]
    np.testing.assert_allclose(online.partial_fit(X, y).loss[0], losses, rtol=0, atol=1e-9)
    assert (online.replacements[0] == plain.replaced).all()
    assert min(plain.replaced) >= 20
    for layer in range(3):
        np.testing.assert_allclose(online.weights(layer)[0], plain.W[layer], rtol=0, atol=1e-9)
        np.testing.assert_allclose(online.biases(layer)[0], plain.b[layer], rtol=0, atol=1e-9)


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("candidates", [1, 5, 20])  # 20: more than a vector
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_is_that_of_the_method_written_out(optimizer, activation, candidates):
    assert_as_in_numpy(candidates, activation, optimizer)


def test_with_dropout_too():
    assert_as_in_numpy(5, "relu", "sgd", dropout=0.2)


class AsDrawnHere:
    """An `init` of `pliant.ContinualBackprop` that draws what the compiled learner does: N draws of a unit after one another."""

    def __init__(self, online, candidates, activation):
        self.sizes, self.candidates, self.gain = online.sizes, candidates, GAINS[activation]
        self.asked, self.begun = [0, 0], [0, 0]  # draws of the units at hand; units before them

    def __call__(self, name, shape, generator):
        layer, fan_in = int(name.split(".")[0]) // 2, shape[1]
        bound, which = uniform_bound("kaiming", fan_in, self.sizes[layer + 1], self.gain), self.asked[layer]
        places = [(self.begun[layer] + unit) * self.candidates + which for unit in range(shape[0])]
        self.asked[layer] = (which + 1) % self.candidates
        self.begun[layer] += shape[0] * (self.asked[layer] == 0)
        return torch.tensor(np.array([fresh_weights(SEED, layer, place, fan_in, bound) for place in places]))


@pytest.mark.parametrize("candidates", [1, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_learning_is_that_of_pytorch(activation, optimizer, candidates):
    X, y = examples()
    online = compiled(candidates=candidates, optimizer=optimizer, activation=activation)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    net = nn.Sequential(nn.Linear(5, 8), act(), nn.Linear(8, 6), act(), nn.Linear(6, 3)).double()
    for layer in range(3):
        net[2 * layer].weight.data = torch.tensor(online.weights(layer)[0].T.copy())
        net[2 * layer].bias.data = torch.tensor(online.biases(layer)[0])
    opt = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](net.parameters(), lr=STEP_SIZE)
    cbp = ContinualBackprop(
        net, opt, example_inputs=torch.zeros(2, INPUTS, dtype=torch.float64), replacement_rate=RATE, candidates=candidates,
        maturity_threshold=MATURITY, decay_rate=DECAY, init=AsDrawnHere(online, candidates, activation),
    )  # fmt: skip
    losses = []
    for x, label in zip(torch.tensor(X[0]), torch.tensor(y[0]), strict=True):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x[None]), label[None])
        loss.backward()
        opt.step()
        losses.append(loss.item())
    np.testing.assert_allclose(online.partial_fit(X, y).loss[0], losses, rtol=0, atol=1e-8)
    assert min(sum(group["replaced"]) for group in cbp.stats().values()) >= 20
    for layer in range(3):
        np.testing.assert_allclose(online.weights(layer)[0].T, net[2 * layer].weight.detach(), rtol=0, atol=1e-8)
        np.testing.assert_allclose(online.biases(layer)[0], net[2 * layer].bias.detach(), rtol=0, atol=1e-8)


def test_the_draw_that_the_loss_asks_for_is_chosen_and_is_on_for_what_lies_above_the_median():
    x, delta = np.array([[0.0], [1.0], [2.0]]), np.array([[2.0], [0.0], [-1.0]])
    draws = np.array([[1.0], [-1.0]])  # one is on for the last example, the other for the first
    score, bias = scores(draws, x, delta, PHI["relu"])  # a = 0 0 1 and 1 0 0, of std sqrt(2) / 3
    np.testing.assert_allclose(score, [(1 / 3) / (np.sqrt(2) / 3), (2 / 3) / (np.sqrt(2) / 3)])
    np.testing.assert_array_equal(bias, [-1, 1])
    assert best_unit(draws, x, delta, PHI["relu"]) == (-1.0, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_compiled_score_is_a_gradient_over_a_deviation(dtype):
    for a, feeding, expected in (((0, 0, 1), -1, np.sqrt(0.5)), ((1, 0, 0), 2, np.sqrt(2)), ((0, 1, 0), 0, 0.0)):
        score = score_in_numba(np.array(a, dtype), np.array([0, feeding], dtype))
        assert score == pytest.approx(expected, rel=1e-6)
    for loses in ((3, 3, 3), (0, 0, 0), (np.nan, 1, 2), (np.inf, 1, 2)):
        assert score_in_numba(np.array(loses, dtype), np.ones(2, dtype)) == -1.0


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_the_compiled_product_is_that_of_matrices(rows):
    rng = np.random.default_rng(0)
    A, B, C = rng.normal(size=(rows, 30)), rng.normal(size=(20, 64)), np.zeros((rows, 32))
    product_in_numba(A, 3, 20, B, 16, C)
    np.testing.assert_allclose(C, A[:, 3:23] @ B[:, 16:48], rtol=0, atol=1e-13)


def test_the_compiled_median_is_the_lower_of_two():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 17, EXAMPLES):
        for a in (rng.normal(size=size), np.floor(3 * rng.random(size)), np.arange(size)[::-1] * 1.0):
            assert middle_in_numba(a.copy()) == np.sort(a)[(size - 1) // 2]
    for share in (0.1, 0.5, 1.0):  # it ends, whatever there is
        middle_in_numba(np.where(rng.random(EXAMPLES) < share, np.nan, rng.normal(size=EXAMPLES)))


def after_one_replacement(candidates, X, **settings):
    """A learner whose one hidden unit has just been replaced, for the first time, and the unit."""
    steps = X.shape[1]
    learners = compiled(
        candidates=candidates, hidden=(1,), replacement_rate=1.0, maturity_threshold=steps - 1, **settings
    )
    learners.partial_fit(X, np.arange(steps)[None] % LABELS)
    assert learners.replacements.tolist() == [[1]]
    return learners.weights(0)[0][:, 0], learners.biases(0)[0, 0]


def test_one_candidate_is_the_plain_draw_with_a_bias_and_is_on_for_half_of_the_last_examples():
    X = (
        np.random.default_rng(3).normal(size=(1, 700, INPUTS)) * np.linspace(1, 9, 700)[:, None] + 2
    )  # the first are smaller
    plain, none = after_one_replacement(0, X)
    w, bias = after_one_replacement(1, X)
    np.testing.assert_array_equal(w, plain)
    assert none == 0
    on = X[0] @ w + bias > 1e-12
    assert on[-256:].sum() == 128
    assert on[-300:].sum() != 150
    w, bias = after_one_replacement(1, X[:, :9])
    assert (X[0, :9] @ w + bias > 1e-12).sum() == 4  # of the nine that there were, the fifth is at the edge


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_where_all_draws_lose_the_unit_is_plain(activation):
    plain, _ = after_one_replacement(0, np.ones((1, 300, INPUTS)), activation=activation)
    w, bias = after_one_replacement(6, np.ones((1, 300, INPUTS)), activation=activation)
    np.testing.assert_array_equal(w, plain)
    assert bias == 0


@pytest.mark.parametrize("seed", range(5))
def test_many_candidates_find_a_unit_that_tells_more_of_the_labels_than_one(seed):
    X, _ = examples(300)
    y = (X[:, :, 0] > X[:, :, 1]) * 1

    def told(candidates):
        """Squared correlation of the fresh unit with the labels, which nothing else of the network knows."""
        shape = {"hidden": (1,), "replacement_rate": 1.0, "maturity_threshold": 299, "seed": seed}
        learners = compiled(candidates=candidates, **shape)
        learners.partial_fit(X, y)
        assert np.abs(learners.weights(1)).max() == 0
        activity = np.maximum(X[0] @ learners.weights(0)[0][:, 0] + learners.biases(0)[0, 0], 0)
        return np.corrcoef(activity, y[0])[0, 1] ** 2

    assert told(200) > max(told(1), 0.2)


# ---------------------------------------------------------------- what is promised


def test_a_learner_is_the_same_alone_and_among_others_in_any_order_and_in_threads():
    X, y = examples()
    shape = {
        "learners": 4,
        "seed": [SEED, 1, 2, 3],
        "candidates": [0, 1, 40, 5],
        "dtype": np.float32,
        "optimizer": "adam",
    }
    X = X.astype(np.float32)
    together, threaded = compiled(**shape), compiled(**shape, threads=3)
    loss = together.partial_fit(X, y).loss
    np.testing.assert_array_equal(threaded.partial_fit(X, y).loss, loss)
    assert (together.replacements >= 20).all()
    for r in range(4):
        alone = compiled(
            **(
                shape
                | {"learners": 1, "seed": shape["seed"][r], "candidates": shape["candidates"][r], "kernel": "rows"}
            )
        )
        np.testing.assert_array_equal(alone.partial_fit(X, y).loss[0], loss[r])
    backwards = compiled(**(shape | {name: shape[name][::-1] for name in ("seed", "candidates")}))
    np.testing.assert_array_equal(backwards.partial_fit(X, y).loss[::-1], loss)


@pytest.mark.parametrize(
    "more",
    [{}, {"optimizer": "adam"}, {"noise_std": 1e-3, "weight_decay": 0.01}, {"weight_clipping": 2.0}, {"optimizer": "upgd"},
     {"optimizer": "obgd"}, {"l2_init": 0.1}, {"dropout": 0.2}],
    ids=str,
)  # fmt: skip
def test_stopping_and_resuming_at_any_step_changes_nothing(more):
    X, y = examples(700)  # the oldest of the last 256 are overwritten more than once
    straight = compiled(learners=2, seed=[SEED, 1], candidates=[3, 0], **more)
    whole, resumed, begin = (
        straight.partial_fit(X, y).loss,
        compiled(learners=2, seed=[SEED, 1], candidates=[3, 0], **more),
        0,
    )
    found = []
    for end in (1, 2, 100, 256, 257, 600, 700):
        found.append(resumed.partial_fit(X[:, begin:end], y[:, begin:end]).loss)
        state, begin = pickle.loads(pickle.dumps(resumed.state_dict())), end
        resumed = compiled(learners=2, seed=[SEED, 1], candidates=[3, 0], **more)
        resumed.load_state_dict(state)
    np.testing.assert_array_equal(np.concatenate(found, axis=1), whole)
    for name, value in straight.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], value, err_msg=name)
    assert (straight.replacements >= 20).all()


def test_copies_go_on_alike_and_apart():
    X, y = examples(600)
    first = OnlineMLP(
        inputs=INPUTS, hidden=HIDDEN, outputs=LABELS, seed=1, loss="cross_entropy", replacement_rate=0.02, candidates=4
    )
    first.partial_fit(X[0, :300], y[0, :300])
    others = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    first.partial_fit(X[0, 300:], y[0, 300:])
    for other in others:
        np.testing.assert_array_equal(other.partial_fit(X[0, 300:], y[0, 300:]).loss_, first.loss_)
    assert (first.ensemble.replacements >= 5).all()


def test_without_candidates_nothing_is_remembered_and_states_of_before_go_on():
    plain, best = compiled(candidates=0), compiled(candidates=2)
    assert "past_inputs" not in plain.state_dict()
    assert plain._state.past_inputs.size == plain._state.past_deltas.size == 0
    with pytest.raises(ValueError, match="the state is of learners with candidates, and these have none"):
        plain.load_state_dict(best.state_dict())
    with pytest.raises(ValueError, match="the state lacks 'past_inputs'"):
        best.load_state_dict(plain.state_dict())


def test_settings_that_do_not_work_together_are_refused():
    for settings, message in (
        ({"normalization": "layer"}, "candidates do not work with normalization"),
        ({"normalization": "online"}, "candidates do not work with normalization"),
        ({"replacement_rate": None}, "candidates are of replaced units, and none is replaced"),
        ({"learners": 2, "replacement_rate": [0.0, 0.1], "candidates": [4, 0]}, "candidates are of replaced units"),
        ({"kernel": "lanes"}, "the lanes kernel supports no candidates"),
        ({"candidates": 2.5}, r"candidates must be whole draws, not 2\.5"),
        ({"candidates": -1}, "candidates must be finite and between 0"),
        ({"maturity_threshold": 1e300}, "maturity_threshold must be finite and between 0"),
        ({"candidates": 10**12}, r"candidates=1,000,000,000,000 of 1 learners would take .* GB of memory"),
        ({"candidates": [1, 2]}, "candidates has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(**settings)


# ---------------------------------------------------------------- learners that grow


def test_a_network_that_grows_remembers_zeros_for_what_was_not_there():
    model = OnlineClassifier(hidden=(4, 3), candidates=3, replacement_rate=0.01, maturity_threshold=10)
    rng = np.random.default_rng(0)

    def learn(steps, features, labels):
        for _ in range(steps):
            row = rng.normal(size=features)
            model.learn_one({f"f{j:02}": row[j] for j in range(features)}, int(rng.integers(labels)))

    learn(300, features=3, labels=2)
    before = model.state_dict()["network"]
    learn(1, features=40, labels=2)  # 37 new features: more than a vector
    learn(1, features=40, labels=30)
    after = model.state_dict()["network"]
    old, new = before["past_inputs"][0], after["past_inputs"][0]
    kept = np.ones(256, bool)
    kept[[300 % 256, 301 % 256]] = False
    np.testing.assert_array_equal(new[kept, :3], old[kept, :3])
    assert (new[kept, 3:48] == 0).all()
    np.testing.assert_array_equal(new[kept, 48:], old[kept, 16:])  # units of the first hidden layer
    np.testing.assert_array_equal(after["past_deltas"][0][kept, : 16 + 2], before["past_deltas"][0][kept, : 16 + 2])
    assert (after["past_deltas"][0][kept, 18:] == 0).all()
    assert new[301 % 256, :40].all()
    learn(700, features=40, labels=30)
    assert (model.replacements_ >= 20).all()


def test_the_rate_may_change_while_learning_and_the_candidates_may_not():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 4)), rng.integers(0, 2, 300)
    model = OnlineClassifier(hidden=(8,), candidates=3, replacement_rate=1e-3).partial_fit(X, y)
    model.set_params(replacement_rate=0.0).partial_fit(X, y)
    replaced, remembered = model.replacements_, model.state_dict()["network"]["past_inputs"]
    model.partial_fit(X[:256], y[:256])
    assert (model.replacements_ == replaced).all()
    assert (model.state_dict()["network"]["past_inputs"] != remembered)[..., :4].all()  # it goes on being remembered
    model.set_params(replacement_rate=0.05, maturity_threshold=0).partial_fit(X, y)
    assert (model.replacements_ > replaced + 20).all()
    with pytest.raises(ValueError, match="candidates was changed from 3 to 4 after learning had begun"):
        model.set_params(candidates=4).partial_fit(X, y)
