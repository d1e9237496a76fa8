# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The kernel for any shape: one learner at a time, vector instructions along the outputs of a layer.

For every example:

    predict -> loss -> gradient and optimizer step, in one pass over the weights
    -> observe every hidden unit -> count what is due -> replace it

An input of exactly zero costs nothing: its row of weights is neither read nor written. The pass that updates a row also
adds up its |w|, which continual backpropagation needs for a unit's outgoing weights. Updates of every weight at every
step are therefore avoided: decay is one number for all weights (`pliant.online.passes`), noise is added when a row is
used (`pliant.online.noise`). Adam does change every weight at every step, and costs a pass over all of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pliant.online import norms
from pliant.online.arithmetic import (
    ADAM,
    CROSS_ENTROPY,
    OBGD,
    RELU,
    UPGD,
    activate,
    any_above_zero,
    copy,
    count_above,
    count_due,
    divide,
    list_active,
    measure,
    multiply,
    observe,
    scale_by,
    total,
    total_size,
)
from pliant.online.candidates import EXAMPLES, padded, redraw_best, remember
from pliant.online.compiling import addresses, cached, compiled, on_demand
from pliant.online.dropout import drop
from pliant.online.learner import (
    LearnerState,
    Net,
    Rules,
    adam_entry,
    aligned,
    choose_and_hand_over,
    matrix,
    replace,
    zero_and_forget,
)  # fmt: skip
from pliant.online.noise import REFRESH, missed_std, padded_pairs, settle_all, settle_rows
from pliant.online.passes import (
    adam_rows,
    add_columns,
    add_rows,
    descend_rows,
    descend_rows_and_columns,
    pass_back,
    pulled_rows,
)
from pliant.online.reference import by_reference, call
from pliant.online.upgd import protected_rows, utility_rows
from pliant.online.vectors import LANES, load, spread

SMALLEST = 2.0**-10  # of `LearnerState.shrunk`; below, and above its inverse, the stored weights are scaled themselves
# parts compiled on demand
SETTLE, SETTLE_ALL, DROP, NORMALIZE, NORMALIZE_BACK, WHOLE, BOUND, REPLACE, CLIP, REDRAW = range(10)
NOTHING = 2.0**-60  # in place of a decay factor of 0: stored weights have to be divided by it


@compiled
def add_up(net, parameters, row_sum, column_sum):
    """Sums of |w| along all rows and columns of a learner, from scratch."""
    row_sum[:] = 0
    column_sum[:] = 0
    for layer in range(net.sizes.size - 1):
        W = matrix(net, parameters, layer)
        add_columns(W, column_sum[net.unit_at[layer + 1] - net.unit_at[1] : net.unit_at[layer + 2] - net.unit_at[1]])
        for j in range(net.sizes[layer]):
            row_sum[net.unit_at[layer] + j] = total_size(W[j])


@compiled
def forward(net, rules, state, work, r, step, dropping):
    """Activations of every unit from the inputs in `work.h`; lists in `work.active` the units of each layer that are not zero."""
    p, h, active, count = state.parameters[r], work.h, work.active, work.count
    layers, shrunk = net.sizes.size - 1, work.h.dtype.type(state.shrunk[r])
    place = step * (net.sizes[1:-1].sum() if dropping else 0)
    for layer in range(layers):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        x, rows, units = h[begin : begin + net.sizes[layer]], active[begin:middle], net.sizes[layer + 1]
        # A zero in a hidden layer is skipped only where its slope is zero too, so that nothing flows back through it.
        count[layer] = list_active(x, layer == 0 or net.activation == RELU, rows)
        if rules.noise_std[r] > 0:
            call(work.parts[SETTLE], (net, rules, state, work), (r, layer, step))
        add_rows(matrix(net, p, layer), x, rows, count[layer], shrunk, h[middle:end])
        if layer + 1 < layers:
            z, slope = h[middle : middle + units], work.slope[middle : middle + units]
            if net.normalization != norms.NONE:
                call(work.parts[NORMALIZE], (net, rules, state, work), (r, layer, step))
            activate(net.activation, z, slope)
            if dropping:
                call(work.parts[DROP], (net, rules, state, work), (r, layer, place))
                place += units


@on_demand
def settle_layer(net, rules, state, work, r, layer, step):
    """Give the rows that a layer is about to use the noise of the steps before `step`."""
    begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
    # A row's own sum is taken by the step that follows, unless dropout then leaves the row out.
    sums = state.row_sum[r, begin : middle if rules.dropout[r] > 0 else begin]
    columns = state.column_sum[r, middle - net.unit_at[1] : (end if net.incoming else middle) - net.unit_at[1]]
    settle_rows(
        net, state.parameters[r], layer, work.active[begin:middle], work.count[layer], state.settled[r], step, work.missed,
        state.shrunk[r], rules.noise_key[r], work.normal, sums, columns,
    )  # fmt: skip


@on_demand
def settle_all_layers(net, rules, state, work, r, layer, step):
    """The same for every row of the learner, sums left alone; `layer` is not read."""
    settle_all(
        net, state.parameters[r], work.active, state.settled[r], step, work.missed, state.shrunk[r], rules.noise_key[r],
        work.normal,
    )  # fmt: skip


@on_demand
def drop_units(net, rules, state, work, r, layer, place):
    """Leave units of hidden layer `layer` out, by the random numbers from `place` on."""
    begin = net.unit_at[layer + 1]
    end = begin + net.sizes[layer + 1]
    drop(rules.dropout[r], rules.dropout_key[r], place, work.h[begin:end], work.slope[begin:end])


@on_demand
def normalize_layer(net, rules, state, work, r, layer, step):
    """`norms.normalize` of the pre-activations of hidden layer `layer`."""
    begin, u = net.unit_at[layer + 1], net.unit_at[layer + 1] - net.unit_at[1]
    z = work.h[begin : begin + net.sizes[layer + 1]]
    affine, statistics, of = state.affine[r], state.statistics[r], slice(u, u + z.size)
    work.divisor[layer] = norms.normalize(
        net.normalization, z, affine[norms.SCALE][of], affine[norms.SHIFT][of],
        statistics[norms.MEAN][of], statistics[norms.VARIANCE][of], work.normalized[of], work.given[of],
    )  # fmt: skip


@on_demand
def normalize_layer_back(net, rules, state, work, r, layer, step):
    """The same back: `work.delta` becomes the gradient of pre-activations; fills those of scale and shift."""
    begin, u = net.unit_at[layer + 1], net.unit_at[layer + 1] - net.unit_at[1]
    g = work.delta[begin : begin + net.sizes[layer + 1]]
    of, scale, y, divisor = slice(u, u + g.size), state.affine[r, norms.SCALE], work.normalized, work.divisor[layer]
    if net.normalization == norms.LAYER:
        norms.layer_norm_back(g, scale[of], y[of], divisor, work.d_scale[of], work.d_shift[of])
    else:
        statistics = state.statistics[r]
        norms.online_norm_back(
            g, scale[of], statistics[norms.MEAN][of], statistics[norms.VARIANCE][of], statistics[norms.ALONG_Y][of],
            statistics[norms.ALONG_ONE][of], y[of], work.given[of], divisor, net.decay_forward, net.decay_backward,
            work.d_scale[of], work.d_shift[of],
        )  # fmt: skip


@compiled
def descend(net, rules, state, work, r, step_size):
    """Gradient of every layer and SGD step on its rows, last layer first, each weight read and written once."""
    p, row_sum, column_sum, h, delta = state.parameters[r], state.row_sum[r], state.column_sum[r], work.h, work.delta
    real = h.dtype.type
    keep = 1.0 - np.float64(step_size) * np.float64(rules.weight_decay[r])
    keep = NOTHING if keep == 0 else keep
    before, after = state.shrunk[r], state.shrunk[r] * keep
    shrunk, stored_step = real(before), real(step_size / after)
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end, units = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2], net.sizes[layer]
        W, x, d, back = matrix(net, p, layer), h[begin:middle], delta[middle:end], delta[begin : begin + units]
        rows, count, sums = work.active[begin:middle], work.count[layer], row_sum[begin:middle]
        back[:] = 0
        if net.incoming:
            columns = column_sum[middle - net.unit_at[1] : end - net.unit_at[1]]
            descend_rows_and_columns(W, x, rows, count, d, stored_step, shrunk, back, sums, columns)
        else:
            descend_rows(W, x, rows, count, d, stored_step, shrunk, layer > 0, back, sums)
        for o in range(net.sizes[layer + 1]):
            W[units, o] = real(keep) * W[units, o] - step_size * d[o]
        if layer > 0:
            multiply(back, work.slope[begin:middle])
            if net.normalization != norms.NONE:
                call(work.parts[NORMALIZE_BACK], (net, rules, state, work), (r, layer - 1, 0))
    if net.normalization != norms.NONE:
        descend_affine(state.affine[r], real(keep), step_size, work.d_scale, work.d_shift)
    state.shrunk[r] = after
    if not SMALLEST < after < 1 / SMALLEST:
        shrink(net, p, row_sum, column_sum, real(after))
        state.shrunk[r] = 1.0


@compiled
def descend_affine(affine, keep, step_size, d_scale, d_shift):
    """SGD's step on the scales and shifts of all norms, (2, units)."""
    for u in range(d_scale.size):
        affine[norms.SCALE, u] = keep * affine[norms.SCALE, u] - step_size * d_scale[u]
        affine[norms.SHIFT, u] = keep * affine[norms.SHIFT, u] - step_size * d_shift[u]


@compiled
def shrink(net, parameters, row_sum, column_sum, shrunk):
    """Multiply all stored weights, biases left out, and their sums."""
    for layer in range(net.sizes.size - 1):
        begin, width = net.weight_at[layer], net.unit_at[layer + 2] - net.unit_at[layer + 1]
        scale_by(parameters[begin : begin + net.sizes[layer] * width], shrunk)
    scale_by(row_sum, abs(shrunk))
    scale_by(column_sum, abs(shrunk))


@compiled
def adam_rates(beta1, beta2, step_size, power, rate, scale, first):
    """Count one step; step size and scale of Adam's moments for units after so many steps of their own, (all units,)."""
    hidden = power.shape[1] - 1
    for u in range(hidden + 1):
        power[0, u] *= beta1
        power[1, u] *= beta2
    rate[:] = step_size / (1.0 - power[0, hidden])  # inputs and outputs are never reset
    scale[:] = 1.0 / math.sqrt(1.0 - power[1, hidden])
    for u in range(hidden):
        rate[first + u] = step_size / (1.0 - power[0, u])
        scale[first + u] = 1.0 / math.sqrt(1.0 - power[1, u])


@compiled
def pass_slope(net, rules, state, work, r, layer):
    """The gradient of the pre-activations below `layer` from that of the activations, in `work.delta`."""
    if layer > 0:
        begin = net.unit_at[layer]
        multiply(work.delta[begin : begin + net.sizes[layer]], work.slope[begin : net.unit_at[layer + 1]])
        if net.normalization != norms.NONE:
            call(work.parts[NORMALIZE_BACK], (net, rules, state, work), (r, layer - 1, 0))


@compiled
def add_incoming(net, state, r, layer):
    """Sums of |w| along the columns of `layer`, from scratch, if a utility uses them."""
    if net.incoming:
        columns = state.column_sum[r, net.unit_at[layer + 1] - net.unit_at[1] : net.unit_at[layer + 2] - net.unit_at[1]]
        columns[:] = 0
        add_columns(matrix(net, state.parameters[r], layer), columns)


@on_demand
def pulled(net, rules, state, work, r, layer, step):
    """SGD's step with L2 Init, which moves every weight at every step; `layer` and `step` are not read."""
    delta, step_size, decay, pull = work.delta, rules.step_size[r], rules.weight_decay[r], rules.l2_init[r]
    p, initial = state.parameters[r], rules.initial[r]
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        pulled_rows(
            matrix(net, p, layer), matrix(net, initial, layer), work.h[begin:middle], delta[middle:end], step_size, decay, pull,
            delta[begin:middle], state.row_sum[r, begin:middle],
        )  # fmt: skip
        pass_slope(net, rules, state, work, r, layer)
        add_incoming(net, state, r, layer)
    if net.normalization != norms.NONE:
        pull_affine(state.affine[r], pull, work.d_scale, work.d_shift)
        descend_affine(state.affine[r], delta.dtype.type(1) - step_size * decay, step_size, work.d_scale, work.d_shift)


@compiled
def pull_affine(affine, pull, d_scale, d_shift):
    """L2 Init's part of the gradients of scales and shifts, which start at 1 and 0."""
    for u in range(d_scale.size):
        d_scale[u] += pull * (affine[norms.SCALE, u] - affine.dtype.type(1))
        d_shift[u] += pull * affine[norms.SHIFT, u]


@on_demand
def adam(net, rules, state, work, r, layer, step):
    """The same with Adam, whose moments move every weight at every step; `layer` and `step` are not read."""
    p, delta, rate, scale, pull = state.parameters[r], work.delta, work.rate, work.scale, rules.l2_init[r]
    initial = rules.initial[r] if pull > 0 else p  # pulled to themselves: not at all
    decay, keep = rules.weight_decay[r], delta.dtype.type(1)
    if net.decoupled:
        decay, keep = delta.dtype.type(0), keep - rules.step_size[r] * decay
    adam_rates(net.beta1, net.beta2, rules.step_size[r], state.beta_power[r], rate, scale, net.unit_at[1])
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        M, V = matrix(net, state.moment1[r], layer), matrix(net, state.moment2[r], layer)
        adam_rows(
            matrix(net, p, layer), matrix(net, initial, layer), M, V, work.h[begin:middle], delta[middle:end], keep, decay, pull,
            net.beta1, net.beta2, net.eps, rate[begin:middle], rate[middle:end], scale[begin:middle], scale[middle:end],
            delta[begin:middle], state.row_sum[r, begin:middle],
        )  # fmt: skip
        pass_slope(net, rules, state, work, r, layer)
        add_incoming(net, state, r, layer)
    if net.normalization != norms.NONE:
        pull_affine(state.affine[r], pull, work.d_scale, work.d_shift)
        for which, gradient in ((norms.SCALE, work.d_scale), (norms.SHIFT, work.d_shift)):
            a, m, v = state.affine[r, which], state.affine_moment1[r, which], state.affine_moment2[r, which]
            for c in range(a.size // LANES):
                first, old = net.unit_at[1] // LANES, load(a, c)
                g = load(gradient, c) + spread(decay) * old
                adam_entry(
                    a, m, v, c, spread(keep) * old, g, net.beta1, net.beta2, net.eps, load(rate, first + c),
                    load(scale, first + c),
                )  # fmt: skip


@on_demand
def upgd(net, rules, state, work, r, layer, step):
    """UPGD's step: the utilities of all weights, then all weights by their share of the largest; `layer` is not read."""
    p, delta, layers, real = state.parameters[r], work.delta, net.sizes.size - 1, work.h.dtype.type
    power = state.beta_power[r, 0]
    power[-1] *= net.beta_utility
    correction, top = real(1.0 / (1.0 - power[-1])), real(-np.inf)
    for layer in range(layers - 1, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        top = utility_rows(
            matrix(net, p, layer), matrix(net, state.moment1[r], layer), work.h[begin:middle], delta[middle:end],
            net.beta_utility, correction, net.sizes[layer + 1], delta[begin:middle], top, work.most,
        )  # fmt: skip
        pass_slope(net, rules, state, work, r, layer)
    top = max(abs(top), np.finfo(real).tiny)
    keep, row = real(1) - rules.step_size[r] * rules.weight_decay[r], step * (net.sizes[:-1].sum() + layers)
    for layer in range(layers):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        protected_rows(
            matrix(net, p, layer), matrix(net, state.moment1[r], layer), work.h[begin:middle], delta[middle:end],
            rules.step_size[r], keep, correction, real(top), net.sizes[layer + 1], rules.sigma[r], rules.noise_key[r], row,
            work.normal, work.noise, state.row_sum[r, begin:middle],
        )  # fmt: skip
        row += net.sizes[layer] + 1
        add_incoming(net, state, r, layer)


@on_demand
def bound_step(net, rules, state, work, r, layer, step):
    """ObGD's step size for this example, into `work.bounded`; `layer` and `step` are not read.

        α / max(1, α κ ||g||₁),     ||g||₁ = Σ over layers (1 + ||x||₁) ||δ||₁, and that of the norms' parameters

    Source: Elsayed, Vasan and Mahmood, 2024 (arXiv 2410.14606), without traces: g is the gradient of the loss.
    """
    p, h, delta, real = state.parameters[r], work.h, work.delta, work.h.dtype.type
    norm = real(0)
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end, units = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2], net.sizes[layer]
        norm += (total_size(h[begin : begin + units]) + real(1)) * total_size(
            delta[middle : middle + net.sizes[layer + 1]]
        )
        if layer > 0:
            pass_back(
                matrix(net, p, layer), work.active[begin:middle], work.count[layer], delta[middle:end],
                real(state.shrunk[r]), delta[begin : begin + units],
            )  # fmt: skip
            pass_slope(net, rules, state, work, r, layer)
    if net.normalization != norms.NONE:
        norm += total_size(work.d_scale) + total_size(work.d_shift)
    work.bounded[0] = rules.step_size[r] / max(real(1), rules.step_size[r] * rules.kappa[r] * norm)


@on_demand
def clip(net, rules, state, work, r, everywhere, step):
    """Weight clipping of the rows in use and of the biases, or of all rows; `step` is not read.

    Source: `pliant.methods.weight_clipping`. The parameters of norms have no bound.
    """
    shrunk, real = abs(state.shrunk[r]), work.h.dtype.type
    for layer in range(net.sizes.size - 1):
        W, inputs, outputs = matrix(net, state.parameters[r], layer), net.sizes[layer], net.sizes[layer + 1]
        columns = state.column_sum[r, net.unit_at[layer + 1] - net.unit_at[1] :]
        bound, first = rules.weight_clipping[r] / math.sqrt(inputs), net.unit_at[layer]
        for a in range(inputs if everywhere else work.count[layer]):
            j = a if everywhere else work.active[first + a]
            clip_row(W[j], outputs, real(bound / shrunk), columns)
            state.row_sum[r, first + j] = total_size(W[j])
        clip_row(W[inputs], outputs, real(bound), work.unused)


@compiled
def clip_row(row, outputs, bound, columns):
    """Clip a row's numbers; `columns`, sums of their sizes, follow."""
    for o in range(outputs):
        old = row[o]
        row[o] = bound if old > bound else -bound if old < -bound else old
        columns[o] += abs(row[o]) - abs(old)


@compiled
def settle_learner(net, rules, state, work, r, step):
    """All noise of the steps before `step`, and the sums of |w| with it."""
    call(work.parts[SETTLE_ALL], (net, rules, state, work), (r, 0, step))
    add_up(net, state.parameters[r], state.row_sum[r], state.column_sum[r])


@compiled
def observe_rows(net, state, work, r):
    """Observe all hidden layers after the update."""
    shrunk = state.shrunk[r]
    for layer in range(net.sizes.size - 2):
        begin, end = net.unit_at[layer + 1], net.unit_at[layer + 1] + net.sizes[layer + 1]
        u, v = begin - net.unit_at[1], end - net.unit_at[1]
        if net.outgoing:
            divide(state.row_sum[r, begin:end], net.sizes[layer + 2] / shrunk, work.outgoing[u:v])
        if net.incoming:
            divide(state.column_sum[r, u:v], net.sizes[layer] / shrunk, work.incoming[u:v])
        observe(
            net.activity, net.outgoing, net.incoming, work.h[begin:end], work.decay[u:v], work.outgoing[u:v],
            work.incoming[u:v], state.age[r, u:v], state.decay_power[r, u:v], state.mean[r, u:v], state.utility[r, u:v],
            work.score[u:v],
        )  # fmt: skip


@compiled
def count_rows(net, rate, threshold, keys, age, step, eligible, replaced, due):
    """Count the units due in every hidden layer. True if there are any."""
    some = False
    for layer in range(due.size):
        begin = net.unit_at[layer + 1] - net.unit_at[1]
        mature = count_above(age[begin : begin + net.sizes[layer + 1]], threshold)
        eligible[layer] += mature
        due[layer] = count_due(net.bernoulli, keys[layer], step, rate, mature, eligible[layer], replaced[layer])
        some |= due[layer] > 0
    return some


@compiled
def replace_rows(net, rules, state, work, r, step):
    """Replace the units due after step `step`; noise of that step and before belongs to the old weights."""
    if rules.noise_std[r] > 0:
        settle_learner(net, rules, state, work, r, step + 1)
    if rules.candidates[r] > 0:
        choose_and_hand_over(net, rules, state, r, step, work.due, work.chosen, work.rank)
        call(work.parts[REDRAW], (net, rules, state, work), (r, 0, step))
        zero_and_forget(net, state, r, work.due, work.chosen)
    else:
        replace(net, rules, state, r, step, work.due, work.chosen, work.rank)
    if not np.isfinite(total(state.row_sum[r]) + total(state.column_sum[r])):
        add_up(net, state.parameters[r], state.row_sum[r], state.column_sum[r])


@on_demand
def observe_and_replace(net, rules, state, work, r, layer, step):
    """Observe all hidden units after the update of step `step`, count what is due, replace it; `layer` is not read."""
    observe_rows(net, state, work, r)
    if count_rows(
        net, rules.replacement_rate[r], rules.maturity_threshold[r], rules.count_key[r], state.age[r], step,
        state.eligible[r], state.replaced[r], work.due,
    ):  # fmt: skip
        replace_rows(net, rules, state, work, r, step)


PARTS = {
    SETTLE: settle_layer,
    SETTLE_ALL: settle_all_layers,
    DROP: drop_units,
    NORMALIZE: normalize_layer,
    NORMALIZE_BACK: normalize_layer_back,
    BOUND: bound_step,
    REPLACE: observe_and_replace,
    CLIP: clip,
    REDRAW: redraw_best,
}
WHOLE_STEPS = {ADAM: adam, UPGD: upgd}  # optimizers that move every weight at every step; with L2 Init SGD does too


class RowsWork(NamedTuple):
    """Scratch memory of `learn_rows`."""

    h: Any  # (units,) activations, inputs first
    slope: Any
    delta: Any  # gradient with respect to pre-activations
    rate: Any  # of Adam
    scale: Any
    outgoing: Any  # mean |w|
    incoming: Any
    score: Any
    decay: Any  # decay rate, for each unit
    normalized: Any  # (hidden units,) y of `norms`, like the next three
    given: Any  # a of `norms`
    d_scale: Any
    d_shift: Any
    divisor: Any  # (hidden layers,) of `norms`
    normal: Any  # normal numbers for one row of weights, float32
    missed: Any  # (REFRESH + 1,) `noise.missed_std`
    active: Any  # (units,) which inputs of each layer are not zero
    count: Any  # (layers,) and how many
    due: Any  # (hidden layers,)
    chosen: Any  # (hidden layers, units) for `replace`, like the next
    rank: Any  # (units,)
    most: Any  # (2, LANES) for `upgd`
    noise: Any  # (units,) for the same
    unused: Any  # (units,) what nobody reads
    bounded: Any  # (1,) step size of `bound_step`
    draws: Any  # (inputs times draws,) of `candidates`, like all but the last that follow: none without
    products: Any  # (EXAMPLES times draws,)
    activity: Any  # (draws times EXAMPLES,)
    feeding: Any  # (draws times units,) gradients of outgoing weights
    bias_of_draw: Any  # (draws,)
    slope_of_draw: Any  # (EXAMPLES,)
    parts: Any  # (parts,) addresses of those that these learners need


def rows_work(net: Net, rules: Rules, state: LearnerState) -> RowsWork:
    """Memory for one call of `learn_rows`, and the parts of it that these learners need."""
    units, hidden, layers, real = (
        int(net.unit_at[-1]),
        state.utility.shape[1],
        len(net.sizes) - 1,
        state.parameters.dtype,
    )
    work = RowsWork(
        *(aligned((units,), real) for _ in range(9)), *(aligned((hidden,), real) for _ in range(4)),
        np.zeros(layers - 1, real), aligned((2 * max(padded_pairs(int(n)) for n in net.sizes[1:]),), np.float32),
        np.zeros(REFRESH + 1), np.zeros(units + 1, np.int64), np.zeros(layers, np.int64), np.zeros(layers - 1, np.int64),
        np.zeros((layers - 1, hidden), np.int64), np.zeros(hidden), aligned((2, LANES), real), aligned((units,), real),
        np.zeros(units, real), np.zeros(1, real), *candidates_work(net, rules, real), np.zeros(REDRAW + 1, np.int64),
    )  # fmt: skip
    noisy, normed = bool((rules.noise_std > 0).any()), net.normalization != norms.NONE
    wanted = {SETTLE: noisy, SETTLE_ALL: noisy, NORMALIZE: normed, NORMALIZE_BACK: normed, BOUND: net.optimizer == OBGD}
    wanted |= {DROP: (rules.dropout > 0).any(), REPLACE: (rules.replacement_rate > 0).any()}
    wanted |= {CLIP: (rules.weight_clipping > 0).any(), REDRAW: (rules.candidates > 0).any()}
    needed = {number: part for number, part in PARTS.items() if wanted[number]}
    if moves_all(net, rules):
        needed[WHOLE] = WHOLE_STEPS.get(net.optimizer, pulled)
    work.parts[:] = addresses(needed, REDRAW + 1, real, net, rules, state, work)
    return work


def candidates_work(net: Net, rules: Rules, real: Any) -> tuple[Any, ...]:
    """The part of it for `candidates`."""
    draws = padded(int(rules.candidates.max()))
    numbers = (
        draws * int(net.sizes[:-1].max()),
        draws * EXAMPLES,
        draws * EXAMPLES,
        draws * int(np.diff(net.unit_at).max()),
    )
    return tuple(aligned((size,), real) for size in (*numbers, draws, EXAMPLES))


def moves_all(net: Net, rules: Rules) -> bool:
    """Whether a step moves every weight, so that nothing is left for later."""
    return net.optimizer in WHOLE_STEPS or bool((rules.l2_init > 0).any())


@compiled
def begin_learner(net, rules, state, work, r):
    """Fill what `work` holds for one learner."""
    work.decay[:] = rules.decay_rate[r]
    if rules.noise_std[r] > 0:
        decay = 0.0 if work.parts[WHOLE] else np.float64(rules.step_size[r]) * np.float64(rules.weight_decay[r])
        missed_std(rules.noise_std[r], 1.0 - decay, work.missed)


@cached
def learn_rows(
    net, rules, state, work, learners, stream, X, begin, targets, labels, first_step, loss, correct, sums, weights, answers
):  # fmt: skip
    """Train every learner of `learners` on examples `begin`, ... of its stream, one learner after the other.

    X (streams, examples, inputs) holds these examples alone, the other arrays all of them. `weights` (streams, examples)
    multiply the gradients; `answers` (learners, examples, outputs) get the outputs before the update. Either may hold none.
    """
    net, rules, state, work = by_reference(net), by_reference(rules), by_reference(state), by_reference(work)
    outputs = slice(net.unit_at[-2], net.unit_at[-2] + net.sizes[-1])
    z, dz, x = work.h[outputs], work.delta[outputs], work.h[: net.sizes[0]]
    for i in range(learners.size):
        r = learners[i]
        s, p, row_sum = stream[r], state.parameters[r], state.row_sum[r]
        noisy, dropping, observed = rules.noise_std[r] > 0, rules.dropout[r] > 0, rules.replacement_rate[r] > 0
        whole, clipped, remembered = work.parts[WHOLE] != 0, rules.weight_clipping[r] > 0, rules.candidates[r] > 0
        growing = abs(1.0 - rules.step_size[r] * rules.weight_decay[r]) > 1
        begin_learner(net, rules, state, work, r)
        for t in range(begin, begin + X.shape[1] if state.diverged_at[r] < 0 else begin):
            step = first_step + t
            if noisy and (whole or step % REFRESH == 0):
                settle_learner(net, rules, state, work, r, step)
            elif step % REFRESH == 0:
                add_up(net, p, row_sum, state.column_sum[r])
            copy(x, X[s, t - begin])
            for pass_ in range(1 + dropping):  # with every unit, to be measured; then without some, to learn from
                forward(net, rules, state, work, r, step, pass_ == 1)
                value, hit = measure(net.loss, z, targets[s, t], labels[s, t], dz)
                if pass_ == 0:
                    loss[r, t] = value
                    if net.loss == CROSS_ENTROPY:
                        correct[r, t] = hit
                    if answers.shape[1]:
                        copy(answers[r, t], z)
            if weights.shape[1]:
                scale_by(dz, weights[s, t])
            if not np.isfinite(loss[r, t]):
                state.diverged_at[r] = step
                break
            if whole:
                call(work.parts[WHOLE], (net, rules, state, work), (r, 0, step))
            elif net.optimizer == OBGD:
                call(work.parts[BOUND], (net, rules, state, work), (r, 0, step))
                descend(net, rules, state, work, r, work.bounded[0])
            else:
                descend(net, rules, state, work, r, rules.step_size[r])
            if remembered:
                remember(net, state, work, r, step)
            if observed:
                call(work.parts[REPLACE], (net, rules, state, work), (r, 0, step))
            if clipped:
                every = whole or growing or step == 0 or (observed and any_above_zero(work.due))
                call(work.parts[CLIP], (net, rules, state, work), (r, np.int64(every), step))
            for layer in range(sums.shape[2] if sums.shape[1] else 0):
                sums[r, t, layer] = state.shrunk[r] * total(row_sum[net.unit_at[layer] : net.unit_at[layer + 1]])


@cached
def answer_rows(net, rules, state, work, step, X, answers):
    """Outputs (examples, outputs) of the only learner for X (examples, inputs), with every unit and without noise of its own."""
    net, rules, state, work = by_reference(net), by_reference(rules), by_reference(state), by_reference(work)
    z, x = work.h[net.unit_at[-2] : net.unit_at[-2] + net.sizes[-1]], work.h[: net.sizes[0]]
    for t in range(X.shape[0]):
        copy(x, X[t])
        forward(net, rules, state, work, 0, step, False)
        copy(answers[t], z)


@cached
def settle_and_shrink(net, rules, state, work, steps):
    """Turn the stored weights of all learners, in place, into those that the step after `steps` uses.

    A learner that diverged gets the weights at which it diverged.
    """
    net, rules, state, work = by_reference(net), by_reference(rules), by_reference(state), by_reference(work)
    for r in range(state.parameters.shape[0]):
        if rules.noise_std[r] > 0:
            begin_learner(net, rules, state, work, r)
            step = steps if state.diverged_at[r] < 0 else state.diverged_at[r]
            call(work.parts[SETTLE_ALL], (net, rules, state, work), (r, 0, step))
        for layer in range(net.sizes.size - 1):
            begin, width = net.weight_at[layer], net.unit_at[layer + 2] - net.unit_at[layer + 1]
            weights = state.parameters[r, begin : begin + net.sizes[layer] * width]
            scale_by(weights, state.parameters.dtype.type(state.shrunk[r]))
