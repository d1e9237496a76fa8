# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Normalization before a hidden layer's activation, forward and back, for one example at a time.

z are the pre-activations of a layer of n units, γ and β the learned scale and shift of each unit, a the input of the activation.

layer     y = (z - mean z) / sqrt(var z + ε),   a = γ y + β           mean and variance (over n) of this example's units

online    y = (z - μ) / σ,  σ = sqrt(v + ε),    u = γ y + β,    a = u / ζ,  ζ = sqrt(mean u^2 + ε)
          then, for each unit:   v <- α_f v + α_f (1 - α_f) (z - μ)^2,     μ <- α_f μ + (1 - α_f) z
          and on the way back, from g = ∂loss/∂y:
                                 g <- g - (1 - α_b) e_y y,                 e_y <- e_y + g y
                    ∂loss/∂z  =  g / σ - (1 - α_b) e_1,                    e_1 <- e_1 + ∂loss/∂z

Source: Ba, Kiros and Hinton, 2016 (layer norm, as in `torch.nn.LayerNorm`); Chiley et al., NeurIPS 2019 (online
normalization: exponential averages forward, a control process back, then layer scaling by ζ). μ and the e start at
0, v and γ at 1. Departures: ε = 1e-5 in both roots, as in torch; γ and β come before the layer scaling, as in the
authors' code. Statistics change only where a step is taken, so a prediction changes nothing.
"""

from __future__ import annotations

import math

from pliant.online.arithmetic import copy, total
from pliant.online.compiling import compiled, reordered

NONE, LAYER, ONLINE = range(3)
SCALE, SHIFT = range(2)  # of `LearnerState.affine`
MEAN, VARIANCE, ALONG_Y, ALONG_ONE = range(4)  # of `LearnerState.statistics`: μ, v, e_y and e_1
EPS = 1e-5


@reordered
def total_product(a, b):
    result = a.dtype.type(0)
    for i in range(a.size):
        result += a[i] * b[i]
    return result


@compiled
def normalize(kind, z, scale, shift, mean, variance, y, a):
    """Replace pre-activations `z` by the input of the activation, also kept in `a`; fill `y`; all (units,).

    Returns the divisor that the units share: sqrt(var z + ε) of a layer norm, ζ of online normalization.
    """
    n, real = z.size, z.dtype.type
    eps = real(EPS)
    if kind == LAYER:
        level = total(z) / real(n)
        for i in range(n):
            y[i] = z[i] - level
        divisor = real(math.sqrt(total_product(y, y) / real(n) + eps))
        for i in range(n):
            y[i] /= divisor
            a[i] = scale[i] * y[i] + shift[i]
    else:
        for i in range(n):
            y[i] = (z[i] - mean[i]) / real(math.sqrt(variance[i] + eps))
            a[i] = scale[i] * y[i] + shift[i]
        divisor = real(math.sqrt(total_product(a, a) / real(n) + eps))
        for i in range(n):
            a[i] /= divisor
    copy(z, a)
    return divisor


@compiled
def layer_norm_back(g, scale, y, divisor, d_scale, d_shift):
    """Replace `g`, the gradient with respect to a, by that with respect to z; fill the gradients of γ and β; all (units,)."""
    n, real = g.size, g.dtype.type
    for i in range(n):
        d_scale[i], d_shift[i] = g[i] * y[i], g[i]
        g[i] *= scale[i]
    level, along = total(g) / real(n), total_product(g, y) / real(n)
    for i in range(n):
        g[i] = (g[i] - level - y[i] * along) / divisor


@compiled
def online_norm_back(
    g, scale, mean, variance, e_y, e_1, y, a, divisor, decay_forward, decay_backward, d_scale, d_shift
):
    """The same for online normalization, with its update: statistics and control variables change."""
    n, real, one = g.size, g.dtype.type, g.dtype.type(1)
    along = total_product(g, a) / real(n)
    for i in range(n):
        d_shift[i] = (g[i] - a[i] * along) / divisor
        d_scale[i] = d_shift[i] * y[i]
        sigma = real(math.sqrt(variance[i] + real(EPS)))
        steered = scale[i] * d_shift[i] - (one - decay_backward) * e_y[i] * y[i]
        e_y[i] += steered * y[i]
        g[i] = steered / sigma - (one - decay_backward) * e_1[i]
        e_1[i] += g[i]
        away = sigma * y[i]  # z - μ
        variance[i] = decay_forward * variance[i] + decay_forward * (one - decay_forward) * (away * away)
        mean[i] += (one - decay_forward) * away


@compiled
def forget_norm(affine, statistics, unit):
    """A replaced unit's own scale, shift and statistics start over; (2, units) and (4, units or none)."""
    affine[SCALE, unit], affine[SHIFT, unit] = 1, 0
    if statistics.shape[1] > 0:
        statistics[MEAN, unit], statistics[VARIANCE, unit] = 0, 1
        statistics[ALONG_Y, unit], statistics[ALONG_ONE, unit] = 0, 0
