"""A drifting line: LMS and its normalised form track weights that wander. The laboratory's own test experiment.

Stream  x ~ N(0, 1)^8, y = w·x + noise; w takes a random walk
Curve   squared error by bin of 200 steps; a step size of 5 diverges, and its siblings go on
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pliant.lab import DONE, RUNNING, Context, RunConfig, RunStatus, diverged
from pliant.lab.figures import band, panels

INPUTS = 8
BIN = 200  # steps in an advance


class Config(RunConfig):
    method: Literal["lms", "nlms"] = "lms"
    steps: int = Field(6000, gt=0, multiple_of=BIN, description="examples")
    step_size: float = Field(0.01, gt=0, le=10)
    drift: float = Field(0.01, ge=0, description="standard deviation of a target weight's step")
    note: str | None = None


@dataclass
class Tracking:
    """All runs of a job; weights are (runs, inputs)."""

    configs: Sequence[Config]
    weights: np.ndarray
    targets: np.ndarray
    streams: list[np.random.Generator]
    died_at: list[int | None]
    steps_done: int = 0

    @property
    def steps_total(self) -> int:
        return self.configs[0].steps

    def statuses(self) -> list[RunStatus]:
        last = DONE if self.steps_done >= self.steps_total else RUNNING
        return [last if step is None else diverged(step) for step in self.died_at]

    def state_dict(self) -> dict[str, Any]:
        streams = [stream.bit_generator.state for stream in self.streams]
        arrays = {"weights": self.weights, "targets": self.targets}
        return {**arrays, "streams": streams, "died_at": self.died_at, "steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self.targets = state["weights"], state["targets"]
        self.died_at, self.steps_done = state["died_at"], state["steps_done"]
        for stream, stored in zip(self.streams, state["streams"], strict=True):
            stream.bit_generator.state = stored


class Toy:
    Config = Config
    columns: ClassVar = {
        "step": "examples seen",
        "squared_error": "before the update, mean of a bin; NaN after divergence",
        "weight_magnitude": "mean size of a weight",
    }
    profiles: ClassVar = {"quick": "three seconds", "tiny": "less than a second"}

    def runs(self, profile: str) -> list[Config]:
        steps = {"quick": 6000, "tiny": 1000}[profile]
        cells = [("lms", 0.01), ("lms", 5.0), ("nlms", 0.5), ("nlms", 0.1)]
        return [
            Config(method=method, step_size=step_size, seed=seed, steps=steps)
            for method, step_size in cells
            for seed in range(3)
        ]

    def stack_key(self, config: Config, device: str) -> tuple[object, ...]:
        return config.method, config.steps, config.seed

    def start(self, configs: Sequence[Config], context: Context) -> Tracking:
        streams = [np.random.default_rng(config.seed) for config in configs]
        zeros = np.zeros((len(configs), INPUTS))
        return Tracking(configs, zeros, zeros.copy(), streams, [None] * len(configs))

    def advance(self, state: Tracking) -> dict[str, np.ndarray]:
        _misbehave_if_asked(state)
        errors = np.array([self._errors_of_run(state, run) for run in range(len(state.configs))])
        state.steps_done += BIN
        return {
            "run": np.arange(len(errors)),
            "step": np.full(len(errors), state.steps_done),
            "squared_error": errors,
            "weight_magnitude": np.abs(state.weights).mean(axis=1),
        }

    def _errors_of_run(self, state: Tracking, run: int) -> float:
        config, stream = state.configs[run], state.streams[run]
        if state.died_at[run] is not None:
            return np.nan
        squares = np.empty(BIN)
        for i in range(BIN):
            state.targets[run] += config.drift * stream.standard_normal(INPUTS)
            x = stream.standard_normal(INPUTS)
            error = state.targets[run] @ x + 0.1 * stream.standard_normal() - state.weights[run] @ x
            scale = x @ x if config.method == "nlms" else 1.0
            state.weights[run] += config.step_size * error * x / scale
            squares[i] = error**2
            if squares[i] > 1e100:
                state.died_at[run] = state.steps_done + i
                state.weights[run] = np.nan
                return np.nan
        return float(squares.mean())

    def figure(self, rows):
        figure, [[error, weights]] = panels(1, 2, "a drifting line")
        curve = rows.assign(curve=rows["method"] + " " + rows["step_size"].astype(str))
        curve = curve[curve["status"] != "diverged"]
        band(error, curve, x="step", y="squared_error", by="curve", labels={"squared_error": "squared error"})
        band(weights, curve, x="step", y="weight_magnitude", by="curve", bins=5)
        return figure


def _misbehave_if_asked(state: Tracking) -> None:
    """TOY_FAILS=nlms makes the jobs of that method raise; TOY_PAUSE=0.1 makes every advance that slow; TOY_HELD=1 makes
    the second wait for good; TOY_STUCK=1 makes it do so without letting another thread run."""
    if os.environ.get("TOY_FAILS") == state.configs[0].method and state.steps_done >= 2 * BIN:
        raise RuntimeError("asked to fail")
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    if "TOY_HELD" in os.environ and state.steps_done:
        threading.Event().wait()
    if "TOY_STUCK" in os.environ and state.steps_done:
        ctypes.PyDLL(None).pause()  # as compiled code may: without letting another thread of Python run
