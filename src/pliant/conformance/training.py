"""Copies, saved states, seeds and random numbers: what training around a unit reset relies on."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import numpy
import torch
from torch import Tensor

from pliant.conformance.outcomes import Failed, NotApplicable, expect
from pliant.conformance.trial import Kind, Trial, adam, even, normal

RATE, MATURITY, HALF = 1.0 / 8.0, 5, 10


def copies(kind: Kind) -> None:
    """The network can be copied after a forward, and what the copy is shown changes nothing."""
    trial, alone = (_trial(kind) for _ in range(2))
    torch.manual_seed(1)  # so that one that draws from the global generator fails for that alone, elsewhere
    trial.run(3)
    copied = copy.deepcopy(trial.adapter.model)
    for _ in range(3):
        copied(3.0 * trial.inputs).sum().backward()
    _replaced_in(trial, HALF - 3)
    torch.manual_seed(1)
    _replaced_in(alone, HALF)
    _equal(trial, alone, "training as without the copy")


def saved_once(kind: Kind) -> None:
    """The network's `state_dict()` holds each weight once."""
    trial = _trial(kind)
    trial.step()
    held: dict[str, Any] = trial.adapter.model.state_dict()
    places = Counter(value.data_ptr() for value in held.values() if isinstance(value, Tensor) and value.numel())
    twice = [name for name, value in held.items() if isinstance(value, Tensor) and places[value.data_ptr()] > 1]
    expect(not twice, "each weight once", f"the same weight under {', '.join(twice[:4])}")


def seed(kind: Kind) -> None:
    """Its seed alone decides what it draws: the same weights by the same seed, others by another.

    To the bit, with the global generators in other states each time.
    """
    runs: list[Trial] = []
    for number, its_seed in enumerate((1, 1, 2)):
        torch.manual_seed(7)
        model = even()
        torch.manual_seed(100 + number)
        runs.append(
            Trial(kind, model, ["0"], normal(16, 6), rate=RATE, maturity=MATURITY, seed=its_seed, silent=[1, 5])
        )
        _replaced_in(runs[-1], HALF)
    _equal(runs[0], runs[1], "the same weights by the same seed")
    differ = not torch.equal(runs[0].weights()["0.weight"], runs[2].weights()["0.weight"])
    expect(differ, "other fresh weights by another seed", "the same")


def global_random_state(kind: Kind) -> None:
    """The global generators are left alone, so that dropout has the same masks as without it."""
    model = even()
    before = _global_states()
    _replaced_in(Trial(kind, model, ["0"], normal(16, 6), rate=RATE, maturity=MATURITY, silent=[1, 5]), HALF)
    changed = [name for name, value in _global_states().items() if value != before[name]]
    expect(not changed, "the global generators as they were", f"numbers drawn from that of {', '.join(changed)}")


def _global_states() -> dict[str, Any]:
    of_numpy: Any = numpy.random.get_state()  # noqa: NPY002
    return {"torch": torch.get_rng_state().tolist(), "numpy": of_numpy[1].tolist(), "random": random.getstate()}


def resume(kind: Kind) -> None:
    """Stopping and resuming changes nothing: from saved states training goes on to the bit."""
    straight = _trial(kind)
    _replaced_in(straight, HALF)
    adapter = straight.adapter
    saved = copy.deepcopy((adapter.model.state_dict(), adapter.optimizer.state_dict(), adapter.state_dict()))
    if saved[2] is None:
        raise NotApplicable("the adapter saves no state")
    resumed = _trial(kind, seed=5)
    resumed.adapter.model.load_state_dict(saved[0])
    resumed.adapter.optimizer.load_state_dict(saved[1])
    resumed.adapter.load_state_dict(saved[2])
    for trial in (straight, resumed):
        torch.manual_seed(1)
        trial.silence([2, 6])
        _replaced_in(trial, HALF)
    _equal(resumed, straight, "training as without stopping")


def _trial(kind: Kind, seed: int = 0) -> Trial:
    """Adam; two units never fire."""
    inputs = normal(16, 6)
    return Trial(kind, even(), ["0"], inputs, rate=RATE, maturity=MATURITY, seed=seed, silent=[1, 5], optimizer=adam)


def _replaced_in(trial: Trial, steps: int) -> None:
    """Run so many steps. Raises `Failed` if they replaced nothing, for then they show nothing."""
    if not any(trial.run(steps)):
        raise Failed("replacements once units are mature", f"none in {steps} steps")


def _equal(one: Trial, other: Trial, expected: str) -> None:
    for name, value in one.weights().items():
        off = int((value != other.weights()[name]).sum())
        expect(off == 0, expected, f"{off} entries of '{name}' differ")
