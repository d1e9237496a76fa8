# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""A ReLU network with continual backpropagation whose utility and whose fresh units can be chosen; compiled.

For every batch, as in `pliant.online` (its learners give the same losses at batches of one example, plain settings):

    predict -> gradients -> remember the last examples -> optimizer step -> observe every hidden unit -> replace what is due

Symbols, of a hidden layer: h activity (examples, units); m its running mean, which a replacement hands over; g = dL/dh of each
example's own loss; delta = dL/dz of the layer that it feeds, z that layer's pre-activations; v outgoing, w incoming weights.

Utilities, in u the unit's running mean E over batches (decay rate .99), corrected for its start at 0:

    CONTRIBUTION  E[h] mean_k |v_k|                                    Dohare et al. (2024), eq. 1
    MATCHED       E[|g (h - m)|]                                       first-order cost of what a replacement does: h becomes m
    FISHER        sqrt E[(g (h - m))^2]                                the same, which does not vanish with the mean gradient
    REDUNDANCY    E[g^2] / [(C + r I)^-1]_ii,  C = cov(h)              loss after the other units have taken over
    TWO_SIDED     max over decay rates of FISHER over its layer's mean keeps what mattered long ago
    RANDOM        a uniform number

Generators. A is the activity relu(X w + b) of a draw on the last examples' inputs X of its layer:

    draws N       incoming weights from the initial distribution, b = 0; the best of N by an objective
    FUTURE        |E[delta A]| / std(A): the norm is that of the gradient of the outgoing weights, which start at 0
    UNEXPLAINED   |A - P A| / |A|, P A what the layer's units explain of A by ridge regression
    matched       b = -median(X w), so that the unit is on for half of the examples
    rescaled      before that, w is scaled so that std(X w) is the median of those of the layer's units
    MIRROR        (w, b) = -(w_j, b_j), j the most useful unit
    SPLIT         w = w_j + e, w_j becomes w_j - e, b = b_j, each with half of v_j; |e| = .1 |w_j|

Sources: Dohare et al., Nature 632 (2024); Hassibi and Stork, NIPS 1993 (REDUNDANCY, there of single weights).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pliant.online import OnlineEnsemble
from pliant.online.arithmetic import normals, uniform
from pliant.streams import stream_key

CONTRIBUTION, MATCHED, FISHER, REDUNDANCY, TWO_SIDED, RANDOM = range(6)
FIRST, FUTURE, UNEXPLAINED, MIRROR, SPLIT = range(5)
DECAYS = np.array(
    [0.99, 0.99, 0.99, 0.9999, 0.999999]
)  # of the averages: of CONTRIBUTION, of |g (h - m)|, and its square three times
RIDGE = 0.01  # r of REDUNDANCY and UNEXPLAINED, as a share of the mean variance and mean square of the units
SMALL = 4096  # multiplications from which BLAS is worth its call
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

compiled = njit(cache=True, error_model="numpy")
# What runs at every step allocates nothing, so Numba need not count references to all arrays of a state: half of a step's time.
lean = njit(cache=True, error_model="numpy", _nrt=False)


class Rules(NamedTuple):
    """Settings of one learner."""

    step_size: float = 0.01
    adam: bool = False
    labels: bool = False  # cross-entropy; else squared error
    weight_decay: float = 0.0  # coupled, of weights and biases
    noise_std: float = 0.0  # on every weight and bias after each step
    replacement_rate: float = 0.0  # of the mature units of a layer, per step
    maturity_threshold: int = 100  # steps
    utility: int = CONTRIBUTION
    objective: int = FIRST
    draws: int = 1
    matched: bool = False
    rescaled: bool = False


class State(NamedTuple):
    """Everything that learning changes, layer by layer; layer l has sizes[l] inputs, units and all."""

    weights: Any  # (inputs, outputs) each
    biases: Any  # (outputs,)
    moments: Any  # Adam's: first and second of the weights, (2, inputs, outputs); (0, 0, 0) without Adam
    bias_moments: Any
    powers: Any  # (2, units) beta^steps of each unit since it was drawn, inputs and outputs too
    averages: Any  # of hidden layers: (5, units), see DECAYS
    mean: Any  # (units,)
    age: Any  # (units,) steps
    h: Any  # (batch, units), inputs first: what the last forward pass computed
    g: Any  # (batch, units) gradient with respect to h, of each example's own loss
    delta: Any  # (batch, outputs) of each layer's pre-activations
    past: Any  # (buffer, units) inputs and hidden pre-activations of the last examples
    past_delta: Any  # (buffer, outputs)
    eligible: Any  # (hidden layers,) mature units, added up over steps
    replaced: Any
    seen: Any  # (2,) steps, examples
    fresh_key: Any  # (hidden layers,)
    score_key: Any
    noise_key: Any


def start(sizes, batch, buffer, seed, adam=False, dtype=np.float64) -> State:
    """A network as `pliant.online` starts it."""
    twin = OnlineEnsemble(
        inputs=sizes[0], hidden=tuple(sizes[1:-1]), outputs=sizes[-1], learners=1, seed=seed, dtype=dtype,
        loss="cross_entropy" if sizes[-1] > 1 else "squared_error",
    )  # fmt: skip
    layers, hidden = list(pairwise(sizes)), sizes[1:-1]

    def zeros(shapes):
        return tuple(np.zeros(shape, dtype) for shape in shapes)

    def keys(purpose):
        return np.array([stream_key(seed, purpose, layer) for layer in range(len(hidden))], np.uint64)

    return State(
        weights=tuple(np.ascontiguousarray(twin.weights(layer)[0], dtype) for layer in range(len(layers))),
        biases=tuple(np.array(twin.biases(layer)[0], dtype) for layer in range(len(layers))),
        moments=zeros((2, m, n) if adam else (0, 0, 0) for m, n in layers),
        bias_moments=zeros((2, n) if adam else (0, 0) for _, n in layers),
        powers=tuple(np.ones((2, n)) for n in sizes),
        averages=zeros((len(DECAYS), n) for n in hidden),
        mean=zeros((n,) for n in hidden),
        age=tuple(np.zeros(n, np.int64) for n in hidden),
        h=zeros((batch, n) for n in sizes),
        g=zeros((batch, n) for n in sizes),
        delta=zeros((batch, n) for _, n in layers),
        past=zeros((buffer, n) for n in sizes[:-1]),
        past_delta=zeros((buffer, n) for _, n in layers),
        eligible=np.zeros(len(hidden), np.int64),
        replaced=np.zeros(len(hidden), np.int64),
        seen=np.zeros(2, np.int64),
        fresh_key=keys("fresh weights"),
        score_key=keys("random utility"),
        noise_key=np.uint64(stream_key(seed, "noise")),
    )


# -- utilities: activity h and gradient g (examples, units) in, a number per unit out -----------------------------------


@lean
def replacement_cost(h, g, i, mean):
    """E|g (h - m)| and E[(g (h - m))^2] of unit i: the first-order cost of h becoming m."""
    size = square = h.dtype.type(0)
    for e in range(h.shape[0]):
        cost = g[e, i] * (h[e, i] - mean)
        size += abs(cost)
        square += cost * cost
    return size / h.dtype.type(h.shape[0]), square / h.dtype.type(h.shape[0])


@compiled
def two_sided(squares):
    """For squares of FISHER at several decay rates, (rates, units): the largest of each over its layer's mean."""
    best = np.zeros(squares.shape[1])
    for row in range(squares.shape[0]):
        root = np.sqrt(squares[row])
        typical = root.mean()
        for i in range(best.size):
            best[i] = max(best[i], root[i] / typical if typical > 0 else 0.0)
    return best


@compiled
def cost_after_others(h, g):
    """E[g^2] / [(cov(h) + r I)^-1]_ii, with r = RIDGE times the mean variance of the units."""
    centered = h - mean_of_columns(h)
    covariance = np.dot(centered.T, centered) / h.dtype.type(h.shape[0])
    ridge = RIDGE * np.trace(covariance) / h.shape[1] + 1e-12
    for i in range(h.shape[1]):
        covariance[i, i] += h.dtype.type(ridge)
    left = np.diag(np.linalg.inv(covariance))  # 1 / left: variance that the other units do not explain, and r
    return (mean_of_columns(g * g) / left).astype(np.float64)


@compiled
def mean_of_columns(a):
    total = np.zeros(a.shape[1], a.dtype)
    for e in range(a.shape[0]):
        total += a[e]
    return total / a.dtype.type(a.shape[0])


@compiled
def usefulness(state, layer, utility):
    """The utility of each unit of a hidden layer, (units,)."""
    averages, age = state.averages[layer], state.age[layer]
    corrected = np.empty(averages.shape)
    for row in range(averages.shape[0]):
        corrected[row] = averages[row] / (1.0 - DECAYS[row] ** age)
    if utility == CONTRIBUTION:
        return corrected[0]
    if utility == MATCHED:
        return corrected[1]
    if utility == FISHER:
        return np.sqrt(corrected[2])
    if utility == TWO_SIDED:
        return two_sided(corrected[2:])
    if utility == REDUNDANCY:
        n = min(state.seen[1], state.past[0].shape[0])
        h = np.maximum(state.past[layer + 1][:n], averages.dtype.type(0))
        return cost_after_others(h, np.dot(state.past_delta[layer + 1][:n], state.weights[layer + 1].T))
    return np.array([uniform(state.score_key[layer], (state.seen[0] - 1) * age.size + i) for i in range(age.size)])


@compiled
def least_useful(utility, age, threshold, chosen, count):
    """Write the `count` units of lowest utility and age above the threshold into `chosen`; ties go to the lowest index."""
    for k in range(count):
        best = -1
        for i in range(age.size):
            taken = age[i] <= threshold
            for before in range(k):
                taken |= chosen[before] == i
            if not taken and (best < 0 or utility[i] < utility[best]):
                best = i
        chosen[k] = best


# -- generators: pre-activations a (examples, draws) of draws without bias ----------------------------------------------


@compiled
def deviations(a):
    """Standard deviation of each column."""
    centered = a - mean_of_columns(a)
    return np.sqrt(mean_of_columns(centered * centered))


@compiled
def scales(a, units):
    """What brings the deviation of each draw to the median of those of the layer's units (examples, units)."""
    own, goal = deviations(a), np.median(deviations(units))
    return np.where((own > 0) & (goal > 0), goal / own, a.dtype.type(1)).astype(a.dtype)


@compiled
def centers(a):
    """-median of each column: the bias with which a unit is on for half of the examples."""
    return np.array([-np.median(np.ascontiguousarray(a[:, n])) for n in range(a.shape[1])]).astype(a.dtype)


@compiled
def future_gradient(activity, delta):
    """|E[delta A]| / std(A) of each draw; 0 for one that never changes."""
    gradient = np.dot(np.ascontiguousarray(activity.T), delta) / delta.dtype.type(delta.shape[0])
    spread, score = deviations(activity), np.zeros(activity.shape[1])
    for n in range(score.size):
        if spread[n] > 0:
            score[n] = np.sqrt((gradient[n] * gradient[n]).sum()) / spread[n]
    return score


@compiled
def unexplained(activity, units):
    """|A - P A| / |A| of each draw: P A = H (H'H + r I)^-1 H'A, r RIDGE times the mean square of the units; 0 for A = 0."""
    gram = np.dot(units.T, units)
    ridge = RIDGE * np.trace(gram) / gram.shape[0] + 1e-12
    for i in range(gram.shape[0]):
        gram[i, i] += gram.dtype.type(ridge)
    rest = activity - np.dot(units, np.linalg.solve(gram, np.dot(units.T, activity)))
    size, score = mean_of_columns(activity * activity), mean_of_columns(rest * rest)
    return np.where(size > 0, np.sqrt(score / np.where(size > 0, size, 1)), 0.0)


@compiled
def fresh_unit(state, rules, layer, i):
    """Give unit i of a hidden layer new incoming weights and a bias."""
    W, bias = state.weights[layer], state.biases[layer]
    kind, inputs, n = W.dtype.type, W.shape[0], min(state.seen[1], state.past[0].shape[0])
    bound, first = np.sqrt(6.0 / inputs), state.replaced[layer] * inputs
    draws, shift = np.empty((inputs, rules.draws), W.dtype), np.zeros(rules.draws, W.dtype)
    for c in range(rules.draws):
        key = state.fresh_key[layer] + np.uint64(c)
        for j in range(inputs):
            draws[j, c] = (2.0 * uniform(key, first + j) - 1.0) * bound
    best = 0
    if rules.draws > 1 or rules.matched:
        x, z = state.past[layer][:n], state.past[layer + 1][:n]
        a = np.dot(x if layer == 0 else np.maximum(x, kind(0)), draws)
        if rules.rescaled:
            scale = scales(a, z)
            a, draws = a * scale, draws * scale
        if rules.matched:
            shift = centers(a)
        activity = np.maximum(a + shift, kind(0))
        if rules.objective == FUTURE:
            best = np.argmax(future_gradient(activity, state.past_delta[layer + 1][:n]))
        if rules.objective == UNEXPLAINED:
            best = np.argmax(unexplained(activity, np.maximum(z, kind(0))))
    for j in range(inputs):
        W[j, i] = draws[j, best]
    bias[i] = shift[best]


@compiled
def mirror(W, bias, i, j):
    """Unit i is on where unit j is off."""
    W[:, i] = -W[:, j]
    bias[i] = -bias[j]


@compiled
def split(W, bias, V, i, j, key, first):
    """Units i and j share what j did, a little apart."""
    direction = np.array([2.0 * uniform(key, first + k) - 1.0 for k in range(W.shape[0])])
    apart = 0.1 * np.sqrt((W[:, j] ** 2).sum() / (direction**2).sum()) * direction
    W[:, i] = W[:, j] + apart
    W[:, j] -= apart
    bias[i] = bias[j]
    V[j] /= 2
    V[i] = V[j]


# -- a step -------------------------------------------------------------------------------------------------------------


@compiled
def product(a, b, out):
    """out = a b."""
    if a.shape[0] * a.shape[1] * b.shape[1] > SMALL:
        np.dot(a, b, out)
        return
    for i in range(a.shape[0]):
        for k in range(b.shape[1]):
            out[i, k] = 0
        for j in range(a.shape[1]):
            if a[i, j] != 0:
                for k in range(b.shape[1]):
                    out[i, k] += a[i, j] * b[j, k]


@lean
def write(out, first, a):
    """out[first : first + examples] = a."""
    for e in range(a.shape[0]):
        for k in range(a.shape[1]):
            out[first + e, k] = a[e, k]


@lean
def column_mean(a, k):
    total = a.dtype.type(0)
    for e in range(a.shape[0]):
        total += a[e, k]
    return total / a.dtype.type(a.shape[0])


@lean
def activate(state, layer, first):
    """From products in h of the layer's outputs to activity; pre-activations of hidden units are remembered."""
    z, bias, hidden = state.h[layer + 1], state.biases[layer], layer < len(state.age)
    for e in range(z.shape[0]):
        for k in range(z.shape[1]):
            z[e, k] += bias[k]
    if hidden:
        write(state.past[layer + 1], first, z)
        for e in range(z.shape[0]):
            for k in range(z.shape[1]):
                z[e, k] = max(z[e, k], z.dtype.type(0))


@compiled
def output_delta(z, target, label, labels, delta):
    """Gradient of each example's loss with respect to the outputs z; returns the sum of losses, and of hits."""
    loss, hits = 0.0, 0
    for e in range(z.shape[0]):
        if labels:
            best = np.argmax(z[e])
            delta[e] = np.exp(z[e] - z[e, best])
            total = delta[e].sum()
            loss += np.log(total) - (z[e, label[e]] - z[e, best])
            hits += best == label[e]
            delta[e] /= total
            delta[e, label[e]] -= 1
        else:
            for k in range(z.shape[1]):
                error = z[e, k] - target[e, k]
                loss += error * error / z.shape[1]
                delta[e, k] = 2 * error / z.shape[1]
    return loss, hits


@lean
def slope_of(state, layer):
    """From `g` of a hidden layer to the `delta` of what computes it."""
    h, g, delta = state.h[layer + 1], state.g[layer + 1], state.delta[layer]
    for e in range(h.shape[0]):
        for i in range(h.shape[1]):
            delta[e, i] = g[e, i] if h[e, i] > 0 else 0


@lean
def descend(state, rules, gradients):
    """A step of SGD or Adam on the mean gradient of the batch."""
    kind, counter = state.weights[0].dtype.type, 0
    share, rate, decay = kind(1.0 / state.h[0].shape[0]), kind(rules.step_size), kind(rules.weight_decay)
    for layer in range(len(state.weights)):
        W, bias, delta, gradient = state.weights[layer], state.biases[layer], state.delta[layer], gradients[layer]
        if rules.adam:
            rows, columns = state.powers[layer], state.powers[layer + 1]
            age_by(columns)
            if layer == 0:
                age_by(rows)
            for k in range(bias.size):
                moment, slope = state.bias_moments[layer][:, k], column_mean(delta, k) + decay * bias[k]
                bias[k] -= adam_step(moment, slope, rate, columns[0, k], columns[1, k])
            for j in range(W.shape[0]):
                for k in range(W.shape[1]):
                    old1, old2 = max(rows[0, j], columns[0, k]), max(rows[1, j], columns[1, k])
                    moment = state.moments[layer][:, j, k]
                    W[j, k] -= adam_step(moment, share * gradient[j, k] + decay * W[j, k], rate, old1, old2)
        else:
            for k in range(bias.size):
                bias[k] -= rate * (column_mean(delta, k) + decay * bias[k])
            for j in range(W.shape[0]):
                for k in range(W.shape[1]):
                    W[j, k] -= rate * (share * gradient[j, k] + decay * W[j, k])
        if rules.noise_std > 0:
            counter = disturb(state, rules.noise_std, W.reshape(-1), counter)
            counter = disturb(state, rules.noise_std, bias, counter)


@lean
def age_by(powers):
    """beta^steps one step later."""
    for i in range(powers.shape[1]):
        powers[0, i] *= BETA1
        powers[1, i] *= BETA2


@lean
def adam_step(moment, gradient, rate, power1, power2):
    """The step of one entry; its moments are updated, `power1` and `power2` correct them for their start at 0."""
    moment[0] = BETA1 * moment[0] + (1 - BETA1) * gradient
    moment[1] = BETA2 * moment[1] + (1 - BETA2) * gradient * gradient
    return rate * (moment[0] / (1 - power1)) / (np.sqrt(moment[1] / (1 - power2)) + EPSILON)


@lean
def disturb(state, noise_std, entries, counter):
    """Adds normal noise; returns the first number of the step's noise that is left."""
    for k in range(entries.size):
        entries[k] += noise_std * normals(state.noise_key, (state.seen[0] << 24) + counter + k)[0]
    return counter + entries.size


@lean
def observe(state, layer):
    """Ages and running averages of a hidden layer."""
    h, g, mean, age = state.h[layer + 1], state.g[layer + 1], state.mean[layer], state.age[layer]
    averages, V, kind = state.averages[layer], state.weights[layer + 1], state.mean[layer].dtype.type
    for i in range(age.size):
        now, outgoing = column_mean(h, i), kind(0)
        for k in range(V.shape[1]):
            outgoing += abs(V[i, k])
        age[i] += 1
        mean[i] = kind(DECAYS[0]) * mean[i] + kind(1 - DECAYS[0]) * now
        size, square = replacement_cost(h, g, i, mean[i] / kind(1 - DECAYS[0] ** age[i]))
        values = (now * outgoing / kind(V.shape[1]), size, square, square, square)
        for row in range(DECAYS.size):
            averages[row, i] = DECAYS[row] * averages[row, i] + (1 - DECAYS[row]) * values[row]


@lean
def due(state, rules, layer):
    """How many units of a hidden layer are to be replaced now."""
    mature = 0
    for i in range(state.age[layer].size):
        mature += state.age[layer][i] > rules.maturity_threshold
    state.eligible[layer] += mature
    return min(int(rules.replacement_rate * state.eligible[layer]) - state.replaced[layer], mature)


@compiled
def replace(state, rules, counts, chosen, models):
    """Replace `counts` units of each layer: each phase in all layers before the next. The other arrays are scratch memory."""
    hidden = len(state.age)
    for layer in range(hidden):
        if counts[layer] > 0:
            utility = usefulness(state, layer, rules.utility)
            least_useful(utility, state.age[layer], rules.maturity_threshold, chosen[layer], counts[layer])
            models[layer] = np.argmax(utility)
    for layer in range(hidden):
        for k in range(counts[layer]):
            hand_over(state, layer, chosen[layer, k])
    for layer in range(hidden):
        for k in range(counts[layer]):
            if rules.objective == MIRROR:
                mirror(state.weights[layer], state.biases[layer], chosen[layer, k], models[layer])
            elif rules.objective != SPLIT:
                fresh_unit(state, rules, layer, chosen[layer, k])
            state.replaced[layer] += 1
    for layer in range(hidden):
        for k in range(counts[layer]):
            forget(state, layer, chosen[layer, k])
            if rules.objective == SPLIT:
                W, V, first = (
                    state.weights[layer],
                    state.weights[layer + 1],
                    state.replaced[layer] * state.h[layer].shape[1],
                )
                split(W, state.biases[layer], V, chosen[layer, k], models[layer], state.fresh_key[layer], first)
            remember_unit(state, layer, chosen[layer, k])


@compiled
def hand_over(state, layer, i):
    """The biases of the next layer take over the unit's mean contribution."""
    V, bias = state.weights[layer + 1], state.biases[layer + 1]
    mean = state.mean[layer][i] / (1 - DECAYS[0] ** state.age[layer][i])
    for k in range(bias.size):
        bias[k] += V[i, k] * mean


@compiled
def forget(state, layer, i):
    """Outgoing weights, running averages and optimizer state of the unit become 0."""
    state.weights[layer + 1][i] = 0
    state.averages[layer][:, i] = 0
    state.mean[layer][i] = 0
    state.age[layer][i] = 0
    state.powers[layer + 1][:, i] = 1
    if state.moments[layer].size > 0:
        state.moments[layer][:, :, i] = 0
        state.bias_moments[layer][:, i] = 0
        state.moments[layer + 1][:, i] = 0


@compiled
def remember_unit(state, layer, i):
    """The last pre-activations of a unit become what its new weights would have given."""
    W, x, z, zero = state.weights[layer], state.past[layer], state.past[layer + 1], state.mean[layer].dtype.type(0)
    for e in range(min(state.seen[1], x.shape[0])):
        z[e, i] = state.biases[layer][i]
        for j in range(x.shape[1]):
            z[e, i] += (x[e, j] if layer == 0 else max(x[e, j], zero)) * W[j, i]


@compiled
def learn(state, rules, gradients, x, target, label, losses):
    """Learn from examples x, batch after batch; fills the loss of each batch, (batches,), and returns the sum of hits."""
    batch, hidden, layers, hits = state.h[0].shape[0], len(state.age), len(state.weights), 0
    most = max([each.size for each in state.age])
    counts, models, chosen = np.zeros(hidden, np.int64), np.zeros(hidden, np.int64), np.zeros((hidden, most), np.int64)
    for begin in range(0, x.shape[0], batch):
        end, first = begin + batch, state.seen[1] % state.past[0].shape[0]
        write(state.h[0], 0, x[begin:end])
        write(state.past[0], first, x[begin:end])
        for layer in range(layers):
            product(state.h[layer], state.weights[layer], state.h[layer + 1])
            activate(state, layer, first)
        loss, right = output_delta(state.h[-1], target[begin:end], label[begin:end], rules.labels, state.delta[-1])
        losses[begin // batch] = loss / batch
        hits += right
        for layer in range(hidden - 1, -1, -1):
            product(state.delta[layer + 1], state.weights[layer + 1].T, state.g[layer + 1])
            slope_of(state, layer)
        for layer in range(layers):
            write(state.past_delta[layer], first, state.delta[layer])
            product(state.h[layer].T, state.delta[layer], gradients[layer])
        state.seen[0] += 1
        state.seen[1] += batch
        descend(state, rules, gradients)
        units = 0
        for layer in range(hidden):
            observe(state, layer)
            counts[layer] = due(state, rules, layer)
            units += counts[layer]
        if units > 0:
            replace(state, rules, counts, chosen, models)
    return hits
