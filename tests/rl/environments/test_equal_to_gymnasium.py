"""Without the margin fix, a batch is gymnasium's own environment: observations, rewards and ends, bit for bit."""

import warnings

import numpy as np
import pytest

from pliant.rl.environments import FrictionSchedule, MujocoBatch

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
pytest.importorskip("mujoco", reason="MuJoCo is not installed")

SEEDS = [3, 4]


class Theirs:
    """gymnasium's environment, put where ours begins an episode, on the same ground."""

    def __init__(self, name: str, options: dict[str, object], ours: MujocoBatch, agent: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.environment = gymnasium.make(name, disable_env_checker=True, **options)
        self.ours, self.agent = ours, agent
        self.environment.unwrapped.reset_model = self.start

    def start(self):
        body, data = self.environment.unwrapped, self.ours.simulation(self.agent)[1]
        body.model.geom_friction[:, 0] = self.ours.frictions[self.agent, 0]
        body.set_state(data.qpos, data.qvel)
        return body._get_obs()

    def begin(self) -> None:
        np.testing.assert_array_equal(self.environment.reset()[0], self.ours.observations[self.agent, 0])


@pytest.mark.parametrize(
    ("body", "theirs", "ours", "options", "steps", "falls"),
    [
        ("ant", "Ant-v4", {"version": "v4"}, {}, 3000, 20),
        ("ant", "Ant-v4", {"version": "v4", "contact_forces": True}, {"use_contact_forces": True}, 500, 4),
        ("ant", "Ant-v5", {}, {}, 3000, 20),
        (
            "ant", "Ant-v5", {"contact_forces": False},
            {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}, 500, 4,
        ),
        ("half-cheetah", "HalfCheetah-v4", {"version": "v4"}, {}, 2100, 0),
        ("half-cheetah", "HalfCheetah-v5", {}, {}, 2100, 0),
        ("hopper", "Hopper-v4", {"version": "v4"}, {}, 1500, 20),
        ("hopper", "Hopper-v5", {}, {}, 1500, 20),
        ("walker2d", "Walker2d-v4", {"version": "v4"}, {}, 1500, 20),
        ("walker2d", "Walker2d-v5", {}, {}, 1500, 20),
    ],
)  # fmt: skip
def test_bit_for_bit(body: str, theirs: str, ours, options, steps: int, falls: int, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs a deprecation of gymnasium's cheetah here
    environment = MujocoBatch(body, seeds=SEEDS, friction=FrictionSchedule(period=steps // 8), **ours)
    pair = [Theirs(theirs, options, environment, agent) for agent in range(2)]
    for each in pair:
        each.begin()
    random, fell, ended, grounds = np.random.default_rng(0), 0, 0, set[float]()
    for _ in range(steps):
        actions = 1.5 * random.standard_normal((2, 1, environment.actions.size))
        step = environment.step(actions)
        for agent, each in enumerate(pair):
            seen, earned, terminated, truncated, _ = each.environment.step(actions[agent, 0])
            assert (seen == step.observations[agent, 0]).all()
            assert earned == step.rewards[agent, 0]
            assert (terminated, truncated) == (step.terminated[agent, 0], step.truncated[agent, 0])
            if terminated or truncated:
                fell, ended = fell + terminated, ended + 1
                each.begin()
        grounds |= set(environment.frictions.ravel().tolist())
    assert fell >= falls
    assert ended >= 4
    assert len(grounds) >= 4
