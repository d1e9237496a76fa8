"""How many steps a second eight bodies take: `MujocoBatch` beside MuJoCo alone and beside gymnasium, one thread, in one run.

    python benchmarks/simulation.py

    mj_step     the loop over `mj_step` and nothing else, from our states with our actions: what no environment can beat.
                After every step its positions are ours, to the bit
    gymnasium   eight environments of version 4, one after the other, each begun anew where its episode ends

Actions are normal noise of unit variance, clipped to the motors' range. The contestants take turns, step by step; times are
of the processor, ours with the starts of new episodes. Ratios are medians over turns of 100 steps, with their quartiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import median, quantiles
from time import process_time
from typing import Any

import gymnasium
import mujoco
import numpy as np

from pliant.rl.environments import MujocoBatch
from pliant.rl.environments.physics import warnings_logged
from pliant.streams import generator

GYMNASIUM = {"ant": "Ant-v4", "half-cheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
TURNS, WARM_UP, STEPS = 20, 2, 100


class Alone:
    """`mj_step` and nothing else, in simulations that are made to stand where ours do."""

    def __init__(self, ours: MujocoBatch) -> None:
        self.ours = [ours.simulation(agent) for agent in range(ours.agents)]
        self.mine = [(model, mujoco.MjData(model)) for model, _ in self.ours]
        self.kind, self.skip = mujoco.mjtState.mjSTATE_INTEGRATION, ours.body.frame_skip
        self.state = np.zeros(mujoco.mj_stateSize(self.ours[0][0], self.kind))

    def stand_where_ours_do(self) -> None:
        for (model, theirs), (_, data) in zip(self.ours, self.mine, strict=True):
            mujoco.mj_getState(model, theirs, self.state, self.kind)
            mujoco.mj_setState(model, data, self.state, self.kind)

    def step(self, actions: np.ndarray) -> None:
        for (model, data), action in zip(self.mine, actions, strict=True):
            data.ctrl[:] = action
            mujoco.mj_step(model, data, self.skip)

    def check(self, ended: np.ndarray) -> None:
        """Those whose episode goes on stand where ours do."""
        for (_, theirs), (_, data), begun in zip(self.ours, self.mine, ended, strict=True):
            assert begun or (data.qpos == theirs.qpos).all(), "the contestants do not simulate the same"


class Gymnasium:
    """As many environments as there are bodies."""

    def __init__(self, name: str, bodies: int) -> None:
        with warnings.catch_warnings(), warnings_logged():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.environments = [gymnasium.make(name) for _ in range(bodies)]
        for seed, environment in enumerate(self.environments):
            environment.reset(seed=seed)

    def step(self, actions: np.ndarray) -> None:
        for environment, action in zip(self.environments, actions, strict=True):
            *_, terminated, truncated, _ = environment.step(action)
            if terminated or truncated:
                environment.reset()


def seconds(step: Callable[[np.ndarray], Any], actions: np.ndarray) -> tuple[float, Any]:
    start = process_time()
    found = step(actions)
    return process_time() - start, found


def turn(ours: MujocoBatch, alone: Alone, theirs: Gymnasium, noise: np.random.Generator) -> tuple[np.ndarray, int]:
    """Seconds of ours, of `mj_step` alone, of gymnasium's; how many episodes ended in ours."""
    spent, episodes = np.zeros(3), 0
    for _ in range(STEPS):
        actions = noise.standard_normal((ours.agents, 1, ours.actions.size)).clip(
            -ours.actions.limit, ours.actions.limit
        )
        alone.stand_where_ours_do()
        lone, _ = seconds(alone.step, actions[:, 0])
        own, after = seconds(ours.step, actions)
        gym, _ = seconds(theirs.step, actions[:, 0])
        ended = (after.terminated | after.truncated)[:, 0]
        alone.check(ended)
        spent += own, lone, gym
        episodes += int(ended.sum())
    return spent, episodes


def measure(body: str, bodies: int) -> None:
    ours = MujocoBatch(body, seeds=range(bodies), version="v4")
    alone, theirs, noise = Alone(ours), Gymnasium(GYMNASIUM[body], bodies), generator(0, "actions", body)
    found = [turn(ours, alone, theirs, noise) for _ in range(WARM_UP + TURNS)][WARM_UP:]
    own, lone, gym = np.array([spent for spent, _ in found]).T
    rates = " ".join(f"{bodies * STEPS / median(each):10,.0f}" for each in (lone, own, gym))
    episode = bodies * STEPS * TURNS / max(1, sum(episodes for _, episodes in found))
    print(f"{body:13} {bodies} {rates}   {told(lone / own)}   {told(gym / own)}   an episode: {episode:,.0f} steps")


def told(ratios: np.ndarray) -> str:
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    print("environment steps a second: mj_step alone, ours, gymnasium; ours over mj_step, ours over gymnasium")
    for body in GYMNASIUM:
        for bodies in (8, 1):
            measure(body, bodies)


if __name__ == "__main__":
    main()
