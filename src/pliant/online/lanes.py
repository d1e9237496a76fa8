# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The kernel for tiny networks: LANES learners side by side, vector instructions across learners.

Where a layer is shorter than a vector, `pliant.online.rows` leaves most of the vector unit idle. Here every number of a
learner becomes a vector with one lane per learner, and the block stays in the first-level cache while it processes its
examples. The steps are those of `rows`. A lane never reads another lane, so a learner's result does not depend on its
neighbors. Where all learners of a block read one stream, an example is read once, and its zeros are skipped; lanes with
streams of their own skip zeros by a selection, which gives the same bits.

A matrix begins at a row of `w`, (parameters, LANES); its weight from input j to output o is at row begin + j outputs + o.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pliant.online.arithmetic import (
    ADAM,
    CROSS_ENTROPY,
    SQUARED_ERROR,
    activate,
    any_above_zero,
    copy,
    count_due,
    list_active,
    measure,
    observe,
    total,
)
from pliant.online.compiling import addresses, cached, compiled, on_demand
from pliant.online.learner import LearnerState, Net, Rules, adam_entry, aligned, replace
from pliant.online.noise import add_noise
from pliant.online.reference import by_reference, call
from pliant.online.vectors import LANES, flat, fused, larger, load, root, size, spread, store, unless_zero

NOISE, ADAM_STEP, REPLACE = range(3)  # parts compiled on demand


class Block(NamedTuple):
    """LANES learners: like one learner of `LearnerState`, with the lane as a last, contiguous axis."""

    parameters: Any
    moment1: Any
    moment2: Any
    beta_power: Any
    utility: Any
    mean: Any
    decay_power: Any
    age: Any
    eligible: Any
    replaced: Any


class LanesWork(NamedTuple):
    """Scratch memory of `learn_lanes`. The last axis is the lane, except for the first five and the last."""

    x: Any  # (inputs,) an example that all lanes share
    active: Any  # (inputs,) where it is not zero
    own: Any  # (2, outputs) one lane's outputs and their gradient
    chosen: Any  # (hidden layers, units) for `replace`, like the next
    rank: Any  # (units,)
    h: Any  # (units,) activations, inputs first
    slope: Any
    delta: Any  # gradient with respect to pre-activations
    step: Any  # step size times delta
    back: Any  # gradient with respect to activations
    rate: Any  # of Adam
    scale: Any
    outgoing: Any  # mean |w|
    incoming: Any
    score: Any
    decay: Any  # decay rate, for each unit
    due: Any  # (hidden layers,)
    error: Any  # (), like all that follow
    step_size: Any
    weight_decay: Any
    keep: Any  # 1 - step size * weight decay
    noise_std: Any
    noise_key: Any
    replacement_rate: Any
    threshold: Any
    mature: Any
    learner: Any
    source: Any  # its stream
    running: Any  # a learner whose loss was finite so far
    parts: Any  # (parts,) addresses of those that these learners need


def lanes_work(net: Net, rules: Rules, state: LearnerState) -> tuple[Block, LanesWork]:
    """Memory for one call of `learn_lanes`, and the parts of it that these learners need."""
    real, units, hidden, layers = state.parameters.dtype, net.unit_at[-1], state.utility.shape[1], len(net.sizes) - 2

    def lanes(*shape: int, dtype: Any = real) -> Any:
        return aligned((*shape, LANES), dtype)

    whole, moments = lanes(state.parameters.shape[1]), state.moment1.shape[1]
    block = Block(
        whole, lanes(moments), lanes(moments), lanes(2, hidden + 1, dtype=np.float64),
        *(lanes(hidden) for _ in range(3)), *(lanes(k, dtype=np.int64) for k in (hidden, layers, layers)),
    )  # fmt: skip
    work = LanesWork(
        np.zeros(net.sizes[0], real), np.zeros(net.sizes[0], np.int64), np.zeros((2, net.sizes[-1]), real),
        np.zeros((layers, hidden), np.int64), np.zeros(hidden),
        *(lanes(units) for _ in range(11)), lanes(layers, dtype=np.int64),
        *(lanes() for _ in range(5)), lanes(dtype=np.uint64), lanes(dtype=np.float64),
        *(lanes(dtype=np.int64) for _ in range(4)), lanes(dtype=np.bool_), np.zeros(len(PARTS), np.int64),
    )  # fmt: skip
    wanted = {
        NOISE: (rules.noise_std > 0).any(),
        ADAM_STEP: net.optimizer == ADAM,
        REPLACE: (rules.replacement_rate > 0).any(),
    }
    needed = {number: part for number, part in PARTS.items() if wanted[number]}
    work.parts[:] = addresses(needed, len(PARTS), real, net, rules, state, block, work)
    return block, work


@compiled
def load_lane(state, r, block, lane):
    """Copy a learner into a lane."""
    copy(block.parameters[:, lane], state.parameters[r])
    copy(block.moment1[:, lane], state.moment1[r])
    copy(block.moment2[:, lane], state.moment2[r])
    copy(block.beta_power[0, :, lane], state.beta_power[r, 0])
    copy(block.beta_power[1, :, lane], state.beta_power[r, 1])
    copy(block.utility[:, lane], state.utility[r])
    copy(block.mean[:, lane], state.mean[r])
    copy(block.decay_power[:, lane], state.decay_power[r])
    copy(block.age[:, lane], state.age[r])
    copy(block.eligible[:, lane], state.eligible[r])
    copy(block.replaced[:, lane], state.replaced[r])


@compiled
def store_lane(state, r, block, lane):
    """Copy a lane back to its learner."""
    copy(state.parameters[r], block.parameters[:, lane])
    copy(state.moment1[r], block.moment1[:, lane])
    copy(state.moment2[r], block.moment2[:, lane])
    copy(state.beta_power[r, 0], block.beta_power[0, :, lane])
    copy(state.beta_power[r, 1], block.beta_power[1, :, lane])
    copy(state.utility[r], block.utility[:, lane])
    copy(state.mean[r], block.mean[:, lane])
    copy(state.decay_power[r], block.decay_power[:, lane])
    copy(state.age[r], block.age[:, lane])
    copy(state.eligible[r], block.eligible[:, lane])
    copy(state.replaced[r], block.replaced[:, lane])


@compiled
def add_inputs_shared(w, begin, x, active, count, z):
    """z = bias + x W in every lane, all lanes reading the same x, (inputs,): rows of zeros are skipped."""
    outputs = z.shape[0]
    for o in range(outputs):
        total = load(w, begin + x.size * outputs + o)
        for a in range(count):
            total = fused(spread(x[active[a]]), load(w, begin + active[a] * outputs + o), total)
        store(z, o, total)


@compiled
def add_inputs(w, begin, x, z):
    """z = bias + x W, each lane with its own x, (inputs, LANES). A zero adds nothing, not even 0 * infinity."""
    outputs, inputs = z.shape[0], x.shape[0]
    for o in range(outputs):
        total = load(w, begin + inputs * outputs + o)
        for j in range(inputs):
            xj = load(x, j)
            total = unless_zero(xj, fused(xj, load(w, begin + j * outputs + o), total), total)
        store(z, o, total)


@compiled
def descend_shared(w, begin, x, active, count, step):
    """SGD step without weight decay on a first layer whose lanes all read the same x. `step` is step size times delta."""
    outputs = step.shape[0]
    for o in range(outputs):
        down = spread(x.dtype.type(0)) - load(step, o)
        for a in range(count):
            p = begin + active[a] * outputs + o
            store(w, p, fused(spread(x[active[a]]), down, load(w, p)))
        p = begin + x.size * outputs + o
        store(w, p, load(w, p) + down)


@compiled
def descend_lanes(w, begin, x, step, delta, keep, back):
    """SGD step on a layer, bias included; `back` receives old w . delta."""
    outputs, inputs, zero = step.shape[0], x.shape[0], spread(w.dtype.type(0))
    kept = load(keep, 0)
    for j in range(inputs):
        xj, total = load(x, j), zero
        for o in range(outputs):
            p = begin + j * outputs + o
            old = load(w, p)
            total = fused(old, load(delta, o), total)
            store(w, p, unless_zero(xj, fused(xj, zero - load(step, o), kept * old), kept * old))
        store(back, j, total)
    for o in range(outputs):
        p = begin + inputs * outputs + o
        store(w, p, kept * load(w, p) - load(step, o))


@compiled
def adam_lanes(w, m, v, begin, x, delta, weight_decay, beta1, beta2, eps, rate_in, rate_out, scale_in, scale_out, back):
    """Adam's step on a layer, bias included; `back` receives old w . delta. An entry has the age of its younger unit."""
    outputs, inputs, decay = delta.shape[0], x.shape[0], load(weight_decay, 0)
    for j in range(inputs):
        total = spread(w.dtype.type(0))
        for o in range(outputs):
            p = begin + j * outputs + o
            total = fused(load(w, p), load(delta, o), total)
            old = load(w, p)
            g = load(x, j) * load(delta, o) + decay * old
            rate, scale = larger(load(rate_in, j), load(rate_out, o)), larger(load(scale_in, j), load(scale_out, o))
            adam_entry(w, m, v, p, old, g, beta1, beta2, eps, rate, scale)
        store(back, j, total)
    for o in range(outputs):
        p = begin + inputs * outputs + o
        old = load(w, p)
        g = load(delta, o) + decay * old
        adam_entry(w, m, v, p, old, g, beta1, beta2, eps, load(rate_out, o), load(scale_out, o))


@compiled
def mean_outgoing(w, begin, outgoing, outputs):
    """Mean |w| that leaves each input of a layer."""
    add_outgoing(w, begin, outgoing, outputs)
    for j in range(outgoing.shape[0]):
        store(outgoing, j, load(outgoing, j) / spread(w.dtype.type(outputs)))


@compiled
def add_outgoing(w, begin, outgoing, outputs):
    """Sums of |w| that leave each input of a layer."""
    for j in range(outgoing.shape[0]):
        total = spread(w.dtype.type(0))
        for o in range(outputs):
            total = total + size(load(w, begin + j * outputs + o))
        store(outgoing, j, total)


@compiled
def mean_incoming(w, begin, incoming, inputs):
    """Mean |w| that enters each output of a layer, the bias left out."""
    outputs = incoming.shape[0]
    for o in range(outputs):
        total = spread(w.dtype.type(0))
        for j in range(inputs):
            total = total + size(load(w, begin + j * outputs + o))
        store(incoming, o, total / spread(w.dtype.type(inputs)))


@compiled
def count_mature(age, threshold, mature):
    mature[:] = 0
    for u in range(age.shape[0]):
        for lane in range(LANES):
            mature[lane] += age[u, lane] > threshold[lane]


@compiled
def read_inputs(X, source, t, h):
    """Each lane's own example of step `t` into the first rows of `h`."""
    for lane in range(LANES):
        for j in range(X.shape[2]):
            h[j, lane] = X[source[lane], t, j]


@compiled
def read_shared(X, row, t, x, active, h):
    """The example of step `t` that all lanes share, into `x` and into the first rows of `h`; how many inputs are not zero."""
    for j in range(x.size):
        x[j] = X[row, t, j]
        store(h, j, spread(x[j]))
    return list_active(x, True, active)


@compiled
def forward_lanes(net, w, shared, x, active, count, h, slope):
    """Activations of every unit, in every lane."""
    layers = net.sizes.size - 1
    for layer in range(layers):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        z = h[middle:end]
        if shared and layer == 0:
            add_inputs_shared(w, 0, x, active, count, z)
        else:
            add_inputs(w, net.weight_at[layer], h[begin:middle], z)
        if layer + 1 < layers:
            activate(net.activation, flat(z), flat(slope[middle:end]))


@compiled
def squared_error(z, targets, source, t, delta, error):
    """Loss in every lane, (LANES,), and its gradient, (outputs, LANES)."""
    outputs, two = z.shape[0], z.dtype.type(2.0 / z.shape[0])
    error[:] = 0
    for o in range(outputs):
        for lane in range(LANES):
            delta[o, lane] = targets[source[lane], t, o]
        difference = load(z, o) - load(delta, o)
        store(error, 0, fused(difference, difference, load(error, 0)))
        store(delta, o, difference * spread(two))
    store(error, 0, load(error, 0) / spread(z.dtype.type(outputs)))


@compiled
def cross_entropy(z, targets, labels, source, t, delta, error, learner, running, correct, own, gradient):
    """The same, one lane after the other, noting which predictions were correct."""
    for lane in range(LANES):
        s = source[lane]
        copy(own, z[:, lane])
        error[lane], hit = measure(CROSS_ENTROPY, own, targets[s, t], labels[s, t], gradient)
        copy(delta[:, lane], gradient)
        if running[lane]:
            correct[learner[lane], t] = hit


@compiled
def note_loss(error, learner, running, loss, t):
    """Write each lane's loss to its learner's row. False if that of a running lane is not finite."""
    fine = True
    for lane in range(LANES):
        if running[lane]:
            loss[learner[lane], t] = error[lane]
            fine &= np.isfinite(error[lane])
    return fine


@compiled
def stop_diverged(state, block, error, learner, running, step):
    """A learner whose loss is not finite keeps its weights; its lane runs on, and the results are discarded."""
    for lane in range(LANES):
        if running[lane] and not np.isfinite(error[lane]):
            state.diverged_at[learner[lane]] = step
            store_lane(state, learner[lane], block, lane)
            running[lane] = False


@compiled
def pass_back(back, slope, delta):
    """delta of the pre-activations below, from the gradient that arrives at the activations."""
    for j in range(back.shape[0]):
        store(delta, j, load(back, j) * load(slope, j))


@compiled
def descend_block(net, w, shared, dense, x, active, count, h, slope, delta, step, back, step_size, keep):
    """Gradient of every layer and SGD step, last layer first."""
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        for o in range(middle, end):
            store(step, o, load(delta, o) * load(step_size, 0))
        if layer == 0 and shared and not dense:
            descend_shared(w, 0, x, active, count, step[middle:end])
            return
        descend_lanes(
            w, net.weight_at[layer], h[begin:middle], step[middle:end], delta[middle:end], keep, back[begin:middle]
        )
        pass_back(back[begin:middle], slope[begin:middle], delta[begin:middle])


@compiled
def adam_rates_lanes(beta1, beta2, step_size, power, rate, scale, first):
    """`adam_rates` in every lane."""
    hidden, whole, one = power.shape[1] - 1, spread(1.0), spread(rate.dtype.type(1))
    power1, power2, beta1, beta2 = power[0], power[1], spread(np.float64(beta1)), spread(np.float64(beta2))
    for u in range(hidden + 1):
        store(power1, u, load(power1, u) * beta1)
        store(power2, u, load(power2, u) * beta2)
        store(rate, first + u, whole - load(power1, u))  # rounded to the type of `rate`
        store(scale, first + u, whole - load(power2, u))
        store(rate, first + u, load(step_size, 0) / load(rate, first + u))
        store(scale, first + u, one / root(load(scale, first + u)))
    for i in range(rate.shape[0]):
        if i < first or i > first + hidden:  # inputs and outputs are never reset
            store(rate, i, load(rate, first + hidden))
            store(scale, i, load(scale, first + hidden))


@on_demand
def adam_block(net, rules, state, block, work, b, t, step):
    """The same with Adam; the integers are not read."""
    w, m, v, h, delta, rate, scale = (
        block.parameters, block.moment1, block.moment2, work.h, work.delta, work.rate, work.scale,
    )  # fmt: skip
    adam_rates_lanes(net.beta1, net.beta2, work.step_size, block.beta_power, rate, scale, net.unit_at[1])
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        adam_lanes(
            w, m, v, net.weight_at[layer], h[begin:middle], delta[middle:end], work.weight_decay, net.beta1, net.beta2,
            net.eps, rate[begin:middle], rate[middle:end], scale[begin:middle], scale[middle:end], work.back[begin:middle],
        )  # fmt: skip
        pass_back(work.back[begin:middle], work.slope[begin:middle], delta[begin:middle])


@on_demand
def add_noise_lanes(net, rules, state, block, work, b, t, step):
    """`add_noise` in every lane, of step `step`."""
    for lane in range(LANES):
        if work.noise_std[lane] > 0:
            add_noise(net, block.parameters[:, lane], work.noise_std[lane], work.noise_key[lane], step)


@compiled
def observe_lanes(net, w, h, decay, outgoing, incoming, age, power, mean, utility, score):
    """`observe_rows` in every lane."""
    for layer in range(net.sizes.size - 2):
        begin, end = net.unit_at[layer + 1], net.unit_at[layer + 2]
        u, v = begin - net.unit_at[1], end - net.unit_at[1]
        if net.outgoing:
            mean_outgoing(w, net.weight_at[layer + 1], outgoing[u:v], net.sizes[layer + 2])
        if net.incoming:
            mean_incoming(w, net.weight_at[layer], incoming[u:v], net.sizes[layer])
        observe(
            net.activity, net.outgoing, net.incoming, flat(h[begin:end]), flat(decay[u:v]),
            flat(outgoing[u:v]), flat(incoming[u:v]), flat(age[u:v]), flat(power[u:v]), flat(mean[u:v]), flat(utility[u:v]),
            flat(score[u:v]),
        )  # fmt: skip


@compiled
def count_lanes(net, rate, threshold, keys, learner, age, step, mature, eligible, replaced, due):
    """`count_rows` in every lane."""
    some = False
    for layer in range(net.sizes.size - 2):
        count_mature(
            age[net.unit_at[layer + 1] - net.unit_at[1] : net.unit_at[layer + 2] - net.unit_at[1]], threshold, mature
        )
        for lane in range(LANES):
            eligible[layer, lane] += mature[lane]
        for lane in range(LANES):
            due[layer, lane] = count_due(
                net.bernoulli, keys[learner[lane], layer], step, rate[lane], mature[lane],
                eligible[layer, lane], replaced[layer, lane],
            )  # fmt: skip
            some |= due[layer, lane] > 0
    return some


@compiled
def replace_lanes(net, rules, state, block, step, learner, running, due, chosen, rank):
    """Copy each learner with units due out of its lane, replace them, and copy it back: this is rare."""
    for lane in range(LANES):
        r = learner[lane]
        if running[lane] and any_above_zero(due[:, lane]):
            store_lane(state, r, block, lane)
            replace(net, rules, state, r, step, due[:, lane], chosen, rank)
            load_lane(state, r, block, lane)


@on_demand
def observe_and_replace_lanes(net, rules, state, block, work, b, t, step):
    """`observe_and_replace` in every lane."""
    observe_lanes(
        net, block.parameters, work.h, work.decay, work.outgoing, work.incoming, block.age, block.decay_power, block.mean,
        block.utility, work.score,
    )  # fmt: skip
    if count_lanes(
        net, work.replacement_rate, work.threshold, rules.count_key, work.learner, block.age, step, work.mature,
        block.eligible, block.replaced, work.due,
    ):  # fmt: skip
        replace_lanes(net, rules, state, block, step, work.learner, work.running, work.due, work.chosen, work.rank)


PARTS = {NOISE: add_noise_lanes, ADAM_STEP: adam_block, REPLACE: observe_and_replace_lanes}


@compiled
def log_sizes(net, w, outgoing, learner, running, sums, t):
    """Sums of |w| of every matrix."""
    for layer in range(net.sizes.size - 1):
        add_outgoing(w, net.weight_at[layer], outgoing[: net.sizes[layer]], net.sizes[layer + 1])
        for lane in range(LANES):
            if running[lane]:
                sums[learner[lane], t, layer] = total(outgoing[: net.sizes[layer], lane])


@compiled
def load_block(rules, state, members, stream, block, work):
    """Copy learners into lanes; an empty lane repeats the first learner, unused. True if all read one stream."""
    shared = True
    for lane in range(LANES):
        r = members[lane] if members[lane] >= 0 else members[0]
        load_lane(state, r, block, lane)
        work.running[lane] = members[lane] >= 0 and state.diverged_at[r] < 0
        work.learner[lane], work.source[lane] = r, stream[r]
        work.step_size[lane], work.weight_decay[lane] = rules.step_size[r], rules.weight_decay[r]
        work.keep[lane] = work.keep.dtype.type(1) - rules.step_size[r] * rules.weight_decay[r]
        work.noise_std[lane], work.noise_key[lane] = rules.noise_std[r], rules.noise_key[r]
        work.replacement_rate[lane], work.threshold[lane] = rules.replacement_rate[r], rules.maturity_threshold[r]
        for u in range(work.decay.shape[0]):
            work.decay[u, lane] = rules.decay_rate[r]
        shared &= stream[r] == stream[members[0]]
    return shared


@cached
def learn_lanes(
    net, rules, state, block, work, blocks, stream, X, begin, targets, labels, first_step, loss, correct, sums
):
    """`learn_rows` for blocks of LANES learners, (blocks, LANES), -1 where a lane is empty; block after block."""
    net, rules, state = by_reference(net), by_reference(rules), by_reference(state)
    block, work = by_reference(block), by_reference(work)
    w, h, slope, delta, back, parts = block.parameters, work.h, work.slope, work.delta, work.back, work.parts
    learner, source, running, error, out = work.learner, work.source, work.running, work.error, net.unit_at[-2]
    for b in range(blocks.shape[0]):
        shared = load_block(rules, state, blocks[b], stream, block, work)
        dense, noisy = any_above_zero(work.weight_decay), any_above_zero(work.noise_std)
        observed = any_above_zero(work.replacement_rate)
        for t in range(begin, begin + X.shape[1]):
            step, count = first_step + t, 0
            if shared:
                count = read_shared(X, source[0], t - begin, work.x, work.active, h)
            else:
                read_inputs(X, source, t - begin, h)
            forward_lanes(net, w, shared, work.x, work.active, count, h, slope)
            if net.loss == SQUARED_ERROR:
                squared_error(h[out:], targets, source, t, delta[out:], error)
            else:
                cross_entropy(
                    h[out:], targets, labels, source, t, delta[out:], error, learner, running, correct,
                    work.own[0], work.own[1],
                )  # fmt: skip
            if not note_loss(error, learner, running, loss, t):
                stop_diverged(state, block, error, learner, running, step)
            if net.optimizer == ADAM:
                call(parts[ADAM_STEP], (net, rules, state, block, work), (b, t, step))
            else:
                descend_block(
                    net, w, shared, dense, work.x, work.active, count, h, slope, delta, work.step, back,
                    work.step_size, work.keep,
                )  # fmt: skip
            if noisy:
                call(parts[NOISE], (net, rules, state, block, work), (b, t, step))
            if observed:
                call(parts[REPLACE], (net, rules, state, block, work), (b, t, step))
            if sums.shape[1] > 0:
                log_sizes(net, w, work.outgoing, learner, running, sums, t)
        for lane in range(LANES):
            if running[lane]:
                store_lane(state, learner[lane], block, lane)
