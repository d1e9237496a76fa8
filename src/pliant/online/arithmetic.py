# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Compiled arithmetic that both kernels share: flat arrays in, flat arrays out.

No function may assume that numbers are finite (no `fastmath=True`): a diverged learner has to be detected.
"""

from __future__ import annotations

import math

import numpy as np

from pliant.online.compiling import compiled, reordered

RELU, LEAKY_RELU, TANH, SIGMOID, ELU, SWISH, SELU, LINEAR = range(8)
SQUARED_ERROR, CROSS_ENTROPY = range(2)
SGD, ADAM, UPGD, OBGD = range(4)  # the optimizer
NO_ACTIVITY, PLAIN, CENTERED, RANDOM = range(4)  # the form of activity that a utility uses
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


# ---------------------------------------------------------------- random numbers: `pliant.streams`, compiled


@compiled
def uniform(key, counter):
    """Number `counter` of the stream `key`, in [0, 1)."""
    z = key + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@compiled
def normals(key, counter):
    """Two independent standard normal numbers, of pair `counter` of the stream `key` (Box and Muller)."""
    radius = math.sqrt(-2.0 * math.log1p(-uniform(key, 2 * counter)))
    angle = 2.0 * math.pi * uniform(key, 2 * counter + 1)
    return radius * math.cos(angle), radius * math.sin(angle)


# ---------------------------------------------------------------- units


@compiled
def activate(kind, h, slope):
    """Replace pre-activations `h` by activations, and fill `slope` with the derivatives there."""
    zero, one = h.dtype.type(0), h.dtype.type(1)
    if kind == RELU:
        for i in range(h.size):
            slope[i] = one if h[i] > zero else zero
            h[i] = zero if h[i] < zero else h[i]
    elif kind == LEAKY_RELU:
        leak = h.dtype.type(0.01)
        for i in range(h.size):
            slope[i] = one if h[i] > zero else leak
            h[i] = leak * h[i] if h[i] < zero else h[i]
    elif kind == TANH:
        for i in range(h.size):
            h[i] = math.tanh(h[i])
            slope[i] = one - h[i] * h[i]
    elif kind == SIGMOID:
        for i in range(h.size):
            h[i] = one / (one + math.exp(-h[i]))
            slope[i] = h[i] * (one - h[i])
    elif kind == SWISH:
        for i in range(h.size):
            gate = one / (one + math.exp(-h[i]))
            slope[i] = gate * (one + h[i] * (one - gate))
            h[i] = h[i] * gate
    elif kind == ELU or kind == SELU:  # noqa: SIM109 (a tuple takes long to compile)
        scale = h.dtype.type(SELU_SCALE if kind == SELU else 1.0)
        alpha = h.dtype.type(SELU_SCALE * SELU_ALPHA if kind == SELU else 1.0)
        for i in range(h.size):
            slope[i] = scale if h[i] > zero else alpha * math.exp(h[i])
            h[i] = scale * h[i] if h[i] > zero else alpha * math.expm1(h[i])
    else:
        slope[:] = one


@compiled
def observe(activity, has_outgoing, has_incoming, h, decay, outgoing, incoming, age, power, mean, utility, score):
    """Increase every unit's age and update its running averages, all (units,).

    `outgoing` and `incoming` are mean |w|, used only where the utility needs them; `score` is scratch memory.
    """
    one = h.dtype.type(1)
    for i in range(h.size):
        age[i] += 1
    for i in range(h.size):
        power[i] *= decay[i]
        mean[i] = decay[i] * mean[i] + (one - decay[i]) * h[i]
    if activity == PLAIN:
        for i in range(h.size):
            score[i] = abs(h[i])
    elif activity == CENTERED:
        for i in range(h.size):
            score[i] = abs(h[i] - mean[i] / (one - power[i]))
    else:
        score[:] = one if activity == NO_ACTIVITY else one - one
    if has_outgoing:
        for i in range(h.size):
            score[i] *= outgoing[i]
    if has_incoming:
        for i in range(h.size):
            score[i] /= incoming[i]
    for i in range(h.size):
        utility[i] = decay[i] * utility[i] + (one - decay[i]) * score[i]


@compiled
def count_due(bernoulli, key, step, rate, mature, eligible, replaced):
    """Units to replace now: those due, or floor(x) + Bernoulli(x - floor(x)), x = rate mature; at most all mature ones."""
    if not bernoulli:
        return min(int(rate * eligible) - replaced, mature)
    expected = rate * mature
    return min(int(expected) + (uniform(key, step) < expected - int(expected)), mature)


# ---------------------------------------------------------------- outputs and inputs


@compiled
def measure(kind, z, target, label, delta):
    """Loss of the outputs `z` and, in `delta`, its gradient; whether the largest output is the labeled one.

    Where the loss is not finite the prediction counts as wrong: NaN has no largest output.
    """
    if kind == SQUARED_ERROR:
        total = z.dtype.type(0)
        for o in range(z.size):
            error = z[o] - target[o]
            delta[o] = error * z.dtype.type(2.0 / z.size)
            total += error * error
        return total / z.dtype.type(z.size), False
    best, total = 0, z.dtype.type(0)
    for o in range(z.size):
        best = o if z[o] > z[best] else best
    for o in range(z.size):
        delta[o] = math.exp(z[o] - z[best])
        total += delta[o]
    for o in range(z.size):
        delta[o] /= total
    delta[label] -= z.dtype.type(1)
    loss = math.log(total) - (z[label] - z[best])
    return loss, best == label and np.isfinite(loss)


@compiled
def list_active(x, skip_zeros, active):
    """Write the indices of the inputs to use into `active`; returns how many."""
    count = 0
    for j in range(x.size):
        active[count] = j
        count += 1 if x[j] != 0 or not skip_zeros else 0
    return count


# ---------------------------------------------------------------- arrays


@compiled
def copy(a, b):
    """a[:] = b, without Numba's provision for arrays that overlap."""
    for i in range(a.size):
        a[i] = b[i]


@compiled
def multiply(a, b):
    for i in range(a.size):
        a[i] *= b[i]


@compiled
def scale_by(a, number):
    for i in range(a.size):
        a[i] *= number


@compiled
def divide(a, number, quotient):
    """quotient[:] = a / number."""
    divisor = a.dtype.type(number)
    for i in range(a.size):
        quotient[i] = a[i] / divisor


@reordered
def total(a):
    result = a.dtype.type(0)
    for i in range(a.size):
        result += a[i]
    return result


@reordered
def total_size(a):
    result = a.dtype.type(0)
    for i in range(a.size):
        result += abs(a[i])
    return result


@compiled
def count_above(a, threshold):
    count = 0
    for i in range(a.size):
        count += a[i] > threshold
    return count


@compiled
def any_above_zero(a):
    found = False
    for i in range(a.size):
        found |= a[i] > 0
    return found
