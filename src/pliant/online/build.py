"""The kernels' form of learners, built from the settings: layout, hyperparameters, initial weights.

Settings are checked here; a wrong one raises `ValueError` that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant import streams
from pliant.base.choices import one_of, shortened
from pliant.base.initial import GAINS, INITS, uniform_bound
from pliant.online.arithmetic import ADAM, UPGD
from pliant.online.candidates import EXAMPLES
from pliant.online.learner import LearnerState, Net, Rules, aligned
from pliant.online.norms import MEAN, SCALE, SHIFT, VARIANCE
from pliant.online.settings import ACTIVATIONS, LOSSES, NORMALIZATIONS, OPTIMIZERS, UTILITIES, number, per_learner
from pliant.online.vectors import LANES

Array = NDArray[Any]
WHOLE = 2.0**53  # up to which a float64 holds every whole number


def net(
    sizes: Sequence[int],
    kernel: str,
    dtype: np.dtype[Any],
    *,
    activation: str,
    loss: str,
    optimizer: str,
    beta1: float,
    beta2: float,
    eps: float,
    beta_utility: float,
    utility: str,
    count: str,
    hand_over_mean: bool,
    init: str,
    normalization: str,
    online_norm_decay: tuple[float, float],
) -> Net:
    """The settings and the layout that all learners share."""
    if not isinstance(online_norm_decay, tuple | list | np.ndarray) or len(online_norm_decay) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"online_norm_decay must be two numbers, forward and backward, not {shortened(repr(online_norm_decay))}"
        )
    decays = {"beta1": beta1, "beta2": beta2, "beta_utility": beta_utility}
    decays |= {f"online_norm_decay[{i}]": decay for i, decay in enumerate(online_norm_decay)}
    for name, decay in decays.items():
        if not 0.0 <= dtype.type(number(name, decay)) < 1.0:
            raise ValueError(f"{name} must be at least 0 and, in {dtype}, below 1, not {decay!r}")
    if not 0.0 < dtype.type(number("eps", eps)) < np.inf:
        raise ValueError(
            f"eps must be finite and, in {dtype}, above 0, not {eps!r}: Adam divides by it where a gradient has always been 0"
        )
    one_of("init", init, INITS)
    chosen = UTILITIES[one_of("utility", utility, UTILITIES)]
    own = np.array([beta1, beta2, eps, beta_utility, *online_norm_decay]).astype(dtype)
    beta1, beta2, eps, beta_utility, forward, backward = own
    return Net(
        **layout(sizes, kernel, init, activation),
        activation=ACTIVATIONS[activation],
        loss=LOSSES[loss],
        optimizer=OPTIMIZERS[optimizer],
        decoupled=optimizer in ("adamw", "upgd"),
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        beta_utility=beta_utility,
        activity=chosen.activity,
        outgoing=chosen.outgoing,
        incoming=chosen.incoming,
        bernoulli=one_of("count", count, ("accumulate", "bernoulli")) == "bernoulli",
        hand_over=hand_over_mean,
        normalization=NORMALIZATIONS[normalization],
        decay_forward=forward,
        decay_backward=backward,
    )


def layout(sizes: Sequence[int], kernel: str, init: str, activation: str) -> dict[str, Any]:
    """The fields of a `Net` that depend on the sizes of its layers."""
    units = np.array(sizes)
    width = units if kernel == "lanes" else -(-units // LANES) * LANES
    return {
        "sizes": units,
        "weight_at": np.concatenate([[0], np.cumsum((units[:-1] + 1) * width[1:])]),  # and where all end
        "unit_at": np.concatenate([[0], np.cumsum(width)]),
        "pairs": int(((units[:-1] + 1) * -(-units[1:] // 2)).sum()),
        "bound": np.array([uniform_bound(init, m, n, GAINS[activation]) for m, n in pairwise(sizes[:-1])]),
    }


def rules(
    seeds: Sequence[int],
    layers: int,
    dtype: np.dtype[Any],
    *,
    step_size: ArrayLike,
    weight_decay: ArrayLike,
    noise_std: ArrayLike,
    l2_init: ArrayLike = 0.0,
    weight_clipping: ArrayLike = 0.0,
    sigma: ArrayLike = 0.001,
    kappa: ArrayLike = 2.0,
    dropout: ArrayLike,
    replacement_rate: ArrayLike | None,
    maturity_threshold: ArrayLike,
    decay_rate: ArrayLike,
    candidates: ArrayLike = 0,
) -> Rules:
    """Hyperparameters per learner, and the keys of its random streams, for `hidden` layers."""
    learners = len(seeds)

    def keys(purpose: str) -> NDArray[np.uint64]:
        names = [[streams.stream_key(seed, purpose, layer) for layer in range(layers)] for seed in seeds]
        return np.array(names, np.uint64).reshape(learners, layers)

    def key(purpose: str) -> NDArray[np.uint64]:
        return np.array([streams.stream_key(seed, purpose) for seed in seeds], np.uint64)

    rate = 0.0 if replacement_rate is None else replacement_rate
    decay = _below_one("decay_rate", decay_rate, learners, dtype, "an average that forgets nothing learns nothing")
    out = _below_one("dropout", dropout, learners, np.dtype(np.float64), "a layer without units learns nothing")
    return Rules(
        step_size=per_learner("step_size", step_size, learners).astype(dtype),
        weight_decay=per_learner("weight_decay", weight_decay, learners).astype(dtype),
        noise_std=per_learner("noise_std", noise_std, learners).astype(dtype),
        l2_init=per_learner("l2_init", l2_init, learners).astype(dtype),
        weight_clipping=per_learner("weight_clipping", weight_clipping, learners).astype(dtype),
        sigma=per_learner("sigma", sigma, learners).astype(dtype),
        kappa=per_learner("kappa", kappa, learners).astype(dtype),
        dropout=out,
        replacement_rate=per_learner("replacement_rate", rate, learners, 0.0, 1.0),
        maturity_threshold=_whole("maturity_threshold", maturity_threshold, learners, "steps"),
        decay_rate=decay,
        candidates=_whole("candidates", candidates, learners, "draws"),
        noise_key=key("noise"),
        dropout_key=key("dropout"),
        fresh_key=keys("fresh weights"),
        count_key=keys("replacement count"),
        score_key=keys("random utility"),
        initial=np.zeros((learners, 0), dtype),  # until there are weights
    )


def initial_state(net: Net, seeds: Sequence[int], dtype: np.dtype[Any], rules: Rules, kernel: str) -> LearnerState:
    """Learners that have taken no step."""
    noisy, remembering = (bool((each > 0).any()) for each in (rules.noise_std, rules.candidates))
    state = state_without_weights(net, len(seeds), dtype, kernel, noisy=noisy, remembering=remembering)
    for layer, (m, n) in enumerate(pairwise(net.sizes.tolist())):
        for r, seed in enumerate(seeds):
            drawn = streams.uniform(streams.stream_key(seed, "initial weights", layer), 0, (n, m))
            matrix_of(net, state.parameters, layer)[r, :-1] = ((2.0 * drawn - 1.0) * bound_of(net, layer)).T
    return state


def bound_of(net: Net, layer: int) -> float:
    """Of the initial weights of a layer."""
    sizes = net.sizes.tolist()
    return net.bound[layer] if layer < len(net.bound) else uniform_bound("lecun", sizes[layer], sizes[layer + 1], 1.0)


def state_without_weights(
    net: Net, learners: int, dtype: np.dtype[Any], kernel: str, *, noisy: bool, remembering: bool
) -> LearnerState:
    """The same with weights of zero."""
    hidden, parameters = len(net.sizes) - 2, int(net.weight_at[-1])
    width, adam = np.diff(net.unit_at), net.optimizer == ADAM
    inputs, units, outputs = int(width[0]), int(width[1:-1].sum()), int(width[-1])
    rows = int((net.sizes[:-1] + 1).sum()) if kernel == "rows" and noisy else 0

    def past(numbers: int) -> tuple[int, int]:
        return (EXAMPLES, numbers) if remembering else (0, 0)

    normed = units if net.normalization != NORMALIZATIONS["none"] else 0
    state = LearnerState(
        parameters=aligned((learners, parameters), dtype),
        shrunk=np.ones(learners),
        settled=np.zeros((learners, rows), np.int64),
        affine=aligned((learners, 2, normed), dtype),
        affine_moment1=aligned((learners, 2, normed * adam), dtype),
        affine_moment2=aligned((learners, 2, normed * adam), dtype),
        statistics=aligned((learners, 4, units if net.normalization == NORMALIZATIONS["online"] else 0), dtype),
        moment1=aligned((learners, parameters * (net.optimizer in (ADAM, UPGD))), dtype),
        moment2=aligned((learners, parameters * adam), dtype),
        beta_power=np.ones((learners, 2, units + 1)),
        utility=np.zeros((learners, units), dtype),
        mean=np.zeros((learners, units), dtype),
        decay_power=np.ones((learners, units), dtype),
        age=np.zeros((learners, units), np.int64),
        row_sum=np.zeros((learners, inputs + units), dtype),
        column_sum=aligned((learners, units + outputs), dtype),
        eligible=np.zeros((learners, hidden), np.int64),
        replaced=np.zeros((learners, hidden), np.int64),
        diverged_at=np.full(learners, -1, np.int64),
        past_inputs=aligned((learners, *past(int(net.unit_at[-3]))), dtype),
        past_deltas=aligned((learners, *past(int(net.unit_at[-1] - net.unit_at[2]))), dtype),
    )
    for norm in norms_of(net, state):
        for name, value in norm.items():
            value[...] = name in ("scale", "variance")
    return state


def matrix_of(net: Net, parameters: Array, layer: int) -> Array:
    """View of a layer's weights with the bias as last row, (learners, in + 1, out), in flat parameters."""
    begin, end, width = net.weight_at[layer], net.weight_at[layer + 1], int(np.diff(net.unit_at)[layer + 1])
    return parameters[:, begin:end].reshape(len(parameters), -1, width)[:, :, : net.sizes[layer + 1]]


def norms_of(net: Net, state: LearnerState) -> list[dict[str, Array]]:
    """Views of the parameters of each hidden layer's norm, (learners, units) by name; empty without normalization."""
    found: list[dict[str, Array]] = []
    for begin, units in zip(net.unit_at[1:-2] - net.unit_at[1], net.sizes[1:-1], strict=True):
        of = slice(int(begin), int(begin + units))
        views = {"scale": state.affine[:, SCALE, of], "shift": state.affine[:, SHIFT, of]}
        if state.statistics.size:
            views |= {"mean": state.statistics[:, MEAN, of], "variance": state.statistics[:, VARIANCE, of]}
        found.append(views if state.affine.size else {})
    return found


def _whole(name: str, value: ArrayLike, learners: int, of: str) -> NDArray[np.int64]:
    given = per_learner(name, value, learners, 0.0, WHOLE)
    if (given % 1 != 0).any():
        raise ValueError(f"{name} must be whole {of}, not {given[given % 1 != 0][0]:g}")
    return given.astype(np.int64)


def _below_one(name: str, value: ArrayLike, learners: int, dtype: np.dtype[Any], why: str) -> Array:
    given = per_learner(name, value, learners, 0.0, 1.0)
    rounded = given.astype(dtype)
    if (rounded == 1.0).any():
        raise ValueError(f"{name} must be below 1 in {dtype}, not {float(given[rounded == 1.0][0])!r}: {why}")
    return rounded
