"""No compiled learner reads or writes outside its arrays: settings of every kind, with Numba's bounds checked."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numba import njit

import pliant.online
from pliant.online import OnlineEnsemble
from pliant.online.settings import ACTIVATIONS, LOSSES, NORMALIZATIONS, UTILITIES

ENSEMBLES, LEARNERS, STEPS = 160, 5, 150
CHOICES = {
    "kernel": ["rows", "lanes"],
    "activation": list(ACTIVATIONS),
    "loss": list(LOSSES),
    "optimizer": ["sgd", "adam"],
    "utility": list(UTILITIES),
    "count": ["accumulate", "bernoulli"],
    "hand_over_mean": [True, False],
    "init": ["kaiming", "default"],
    "normalization": list(NORMALIZATIONS),
    "dropout": [0.0, 0.3],
    "hidden": [(), (1,), (8,), (17, 3), (9, 16, 5)],  # a vector has 8 or 16 numbers
    "inputs": [1, 5, 16, 33],
    "outputs": [1, 2, 9],
}
OF_A_LEARNER = {
    "weight_decay": [0.0, 0.01, 50.0],
    "noise_std": [0.0, 0.01],
    "replacement_rate": [0.0, 0.1, 1.0],
    "maturity_threshold": [0, 7],
    "decay_rate": [0.0, 0.9],
}


def settings(draw):
    """One setting of everything."""
    found = {name: values[draw.integers(len(values))] for name, values in CHOICES.items()}
    if found["kernel"] == "lanes":
        found |= {"normalization": "none", "dropout": 0.0}
    if found["loss"] == "cross_entropy":
        found["outputs"] = max(2, found["outputs"])
    return found | {name: draw.choice(values, LEARNERS) for name, values in OF_A_LEARNER.items()}


def learn(chosen, draw):
    """Learn, go on from a state with examples picked from bytes, and predict; how many units were replaced."""
    learners = OnlineEnsemble(learners=LEARNERS, seed=0, step_size=0.01, dtype=np.float64, **chosen)
    X = draw.normal(size=(1, STEPS, chosen["inputs"])) * (draw.random((1, STEPS, chosen["inputs"])) < 0.7)
    y = draw.normal(size=(1, STEPS, chosen["outputs"]))
    if chosen["loss"] == "cross_entropy":
        y = y.argmax(axis=2)
    learners.partial_fit(X, y, log_weights=True)
    other = OnlineEnsemble(learners=LEARNERS, seed=0, step_size=0.01, dtype=np.float64, **chosen)
    other.load_state_dict(learners.state_dict())
    pixels = draw.integers(0, 256, X.shape, np.uint8)
    rows, columns = draw.integers(0, STEPS, (1, STEPS // 2)), draw.permutation(chosen["inputs"])[None]
    other.partial_fit(pixels, y, rows=rows, columns=columns, scale=1 / 255)
    other.predict(X)
    return int(np.sum(other.replacements)) if chosen["hidden"] else 0


@njit
def beyond(values):
    return values[len(values)]


def main():
    draw = np.random.default_rng(0)
    try:
        beyond(np.zeros(3))
    except IndexError:
        pass
    else:
        raise SystemExit("bounds are not checked")
    seen, replaced = {name: set() for name in CHOICES}, {"rows": 0, "lanes": 0}
    for _ in range(ENSEMBLES):
        chosen = settings(draw)
        replaced[chosen["kernel"]] += learn(chosen, draw)
        for name in CHOICES:
            seen[name].add(chosen[name])
    assert seen == {name: set(values) for name, values in CHOICES.items()}
    assert min(replaced.values()) >= 1000
    print("within bounds")


def test_no_learner_reads_or_writes_out_of_bounds():
    kept = Path(pliant.online.__file__).parent / "__pycache__" / "with bounds"  # apart from code compiled without
    quick = {"NUMBA_OPT": "1"}  # to compile, by a third: what is checked is the same
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(kept), **quick}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.online.test_bounds"], env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "within bounds\n"), ended.stderr


if __name__ == "__main__":
    main()
