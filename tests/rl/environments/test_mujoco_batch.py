import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.rl.environments import BODIES, Body, FrictionSchedule, MujocoBatch
from pliant.rl.environments.physics import margins_add

pytest.importorskip("mujoco", reason="MuJoCo is not installed")
pytest.importorskip("gymnasium", reason="gymnasium is not installed")

OLDER = np.load(Path(__file__).parent / "fixtures" / "older_physics.npz")


def noise(environment: MujocoBatch, step: int, size: float = 1.0):
    shape = (environment.agents, environment.copies, environment.actions.size)
    return size * np.random.default_rng([5, step]).standard_normal(shape)


def advance(environment: MujocoBatch, steps: range, size: float = 1.0):
    return [environment.step(noise(environment, t, size)) for t in steps]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# ---- the older physics


@pytest.mark.parametrize(
    ("case", "body", "friction"), [("ant", "ant", 1.0), ("slippery ant", "ant", 0.05), ("hopper", "hopper", None)]
)
def test_the_physics_before_the_margins_were_added_is_had_back(case: str, body: str, friction: float | None):
    environment = MujocoBatch(body, friction=friction, version="v4", contact_margin="before-3.5")
    environment.place(OLDER[f"{case}/qpos"], OLDER[f"{case}/qvel"])
    steps = [environment.step(action[None, None]) for action in OLDER[f"{case}/actions"]]
    assert len(steps) == 50
    assert not any(step.terminated.any() for step in steps)
    seen = np.stack([step.observations[0, 0] for step in steps])
    np.testing.assert_allclose(seen, OLDER[f"{case}/observations"], rtol=0, atol=1e-6)
    np.testing.assert_allclose([s.rewards[0, 0] for s in steps], OLDER[f"{case}/rewards"], rtol=0, atol=1e-6)


def test_without_the_margin_fix_the_ant_lands_elsewhere():
    if not margins_add():
        pytest.skip("this MuJoCo has the older contact margins itself")
    environment = MujocoBatch("ant", friction=1.0, version="v4")
    environment.place(OLDER["ant/qpos"], OLDER["ant/qvel"])
    steps = [environment.step(action[None, None]) for action in OLDER["ant/actions"][:10]]
    assert np.abs(steps[-1].observations[0, 0] - OLDER["ant/observations"][9]).max() > 0.01


# ---- the state


@pytest.mark.parametrize("body", BODIES)
def test_stopping_and_resuming_amid_episodes_changes_nothing(body: str):
    def environment():
        return MujocoBatch(body, seeds=[3, 4], copies=2, friction=FrictionSchedule(period=200), time_limit=60)

    straight = environment()
    advance(straight, range(137))
    saved = from_bytes(to_bytes(straight.state_dict()))
    assert (saved["ages"] > 0).any()  # amid an episode
    before = straight.frictions
    expected = advance(straight, range(137, 700))
    resumed = environment()
    advance(resumed, range(20))  # what it did before is forgotten
    resumed.load_state_dict(saved)
    np.testing.assert_array_equal(resumed.frictions, before)
    assert_same(advance(resumed, range(137, 700)), expected)
    np.testing.assert_array_equal(resumed.observations, straight.observations)
    assert (straight.frictions != before).all()
    assert sum(int((t.terminated | t.truncated).sum()) for t in expected) >= 12


def test_saving_does_not_disturb():
    saving, plain = (MujocoBatch("ant", seeds=[1], copies=2) for _ in range(2))
    for t in range(40):
        saving.state_dict()
        assert_same([saving.step(noise(saving, t))], [plain.step(noise(plain, t))])


def test_a_state_of_another_setting_is_refused():
    state = MujocoBatch("hopper", seeds=[1]).state_dict()
    with pytest.raises(ValueError, match=r"the state belongs to seeds = \(1,\); here it is \(2,\)"):
        MujocoBatch("hopper", seeds=[2]).load_state_dict(state)


def test_a_state_of_another_mujoco_is_refused():
    environment = MujocoBatch("hopper")
    state = environment.state_dict()
    state["settings"]["MuJoCo"] = "2.1"
    with pytest.raises(ValueError, match=r"the state belongs to MuJoCo = 2\.1"):
        environment.load_state_dict(state)


# ---- agents, copies, grounds


def test_an_agent_alone_and_in_a_stack_of_eight_meets_the_same_environment():
    options = {"body": "hopper", "copies": 2, "friction": FrictionSchedule(period=150)}
    stack, alone = MujocoBatch(seeds=range(8), **options), MujocoBatch(seeds=[5], **options)
    ends = 0
    for t in range(200):
        actions = noise(stack, t)
        together, single = stack.step(actions), alone.step(actions[5:6])
        assert_same([[each[5:6] for each in together]], [single])
        ends += int(single.terminated.sum())
    assert ends >= 4


def test_copies_of_an_agent_begin_apart_and_agents_differ():
    begun = MujocoBatch("ant", seeds=[0, 1], copies=3).observations.reshape(6, -1)
    assert len({row.tobytes() for row in begun}) == 6


def test_the_first_friction_holds_from_step_zero_and_changes_only_between_episodes():
    schedule = FrictionSchedule(period=100)
    environment = MujocoBatch("half-cheetah", seeds=[2], friction=schedule, time_limit=130)
    assert environment.frictions[0, 0] == schedule.value(2, 0)
    seen = []
    for t in range(400):
        environment.step(noise(environment, t))
        seen.append(float(environment.frictions[0, 0]))
    changes = [t + 1 for t in range(1, 400) if seen[t] != seen[t - 1]]
    assert changes == [130, 260, 390]
    assert [seen[t] for t in (129, 259, 389)] == [schedule.value(2, number) for number in (1, 2, 3)]


def test_a_period_counts_the_steps_of_all_copies():
    environment = MujocoBatch("half-cheetah", copies=4, friction=FrictionSchedule(period=100), time_limit=25)
    advance(environment, range(25))
    assert (environment.frictions == FrictionSchedule().value(0, 1)).all()


def test_friction_is_set_on_every_geom_and_makes_a_difference():
    environment = MujocoBatch("ant", seeds=[0, 0], friction=[1.0, 0.02])
    for agent, friction in enumerate((1.0, 0.02)):
        assert set(environment.simulation(agent)[0].geom_friction[:, 0].tolist()) == {friction}
    one = noise(environment, 0)[:1]
    steps = [environment.step(np.repeat(one, 2, axis=0)) for _ in range(30)]
    assert not np.array_equal(steps[-1].observations[0], steps[-1].observations[1])


def test_observations_are_padded_with_zeros():
    plain, padded = (MujocoBatch("ant", contact_forces=False, padding=p) for p in (0, 84))
    assert padded.observation_size == 111
    for t in range(5):
        a, b = plain.step(noise(plain, t)), padded.step(noise(padded, t))
        np.testing.assert_array_equal(b.observations[..., :27], a.observations)
        assert not b.observations[..., 27:].any()


def test_actions_are_charged_for_as_they_were_given_unless_they_are_clipped():
    plain, clipped = MujocoBatch("half-cheetah"), MujocoBatch("half-cheetah", clip_actions=True)
    actions = np.full((1, 1, 6), 3.0)
    a, b = plain.step(actions), clipped.step(actions)
    np.testing.assert_array_equal(a.observations, b.observations)  # the motors clip either way
    assert b.rewards[0, 0] - a.rewards[0, 0] == pytest.approx(0.1 * 6 * (9 - 1))


def test_a_transition_shows_what_the_action_led_to_and_the_environment_shows_what_came_next():
    environment = MujocoBatch("ant", time_limit=3, contact_forces=False)
    steps = advance(environment, range(3))
    assert steps[-1].truncated.all()
    assert not np.array_equal(steps[-1].observations, environment.observations)
    assert environment.observations[0, 0, 0] != 0
    kept = steps[0].observations.copy()
    advance(environment, range(3, 5))
    np.testing.assert_array_equal(steps[0].observations, kept)


def test_another_integrator_is_another_physics():
    plain, euler = MujocoBatch("ant"), MujocoBatch("ant", integrator="Euler")
    a, b = advance(plain, range(1))[0], advance(euler, range(1))[0]
    assert 1e-6 < np.abs(a.observations - b.observations)[..., :13].max() < 0.5  # positions


# ---- what is not finite


@pytest.mark.parametrize("body", ["ant", "half-cheetah"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_an_action_that_cannot_be_charged_ends_that_copy_alone(body: str, bad: float):
    environment, other = MujocoBatch(body, seeds=[0, 1]), MujocoBatch(body, seeds=[0, 1])
    actions = noise(environment, 0)
    expected = other.step(actions)
    actions[0, 0, 2] = bad
    step = environment.step(actions)
    assert step.terminated.tolist() == [[True], [bool(expected.terminated[1, 0])]]
    assert not np.isfinite(step.rewards[0, 0])
    np.testing.assert_array_equal(step.observations[1], expected.observations[1])
    assert step.rewards[1] == expected.rewards[1]
    assert np.isfinite(environment.observations).all()  # the next episode has begun
    assert np.isfinite(environment.step(noise(environment, 1)).observations).all()


@pytest.mark.parametrize("body", ["ant", "half-cheetah", "walker2d"])
def test_a_state_that_is_not_finite_is_handed_on_and_ends_that_copy_alone(body: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write a log of its own
    environment = MujocoBatch(body, seeds=[0, 1])
    environment.simulation(0)[1].qvel[3] = np.nan
    step = environment.step(noise(environment, 0, 0.1))
    assert step.terminated.tolist() == [[True], [False]]
    assert np.isnan(step.observations[0]).any()
    assert np.isfinite(step.observations[1]).all()
    after = environment.step(noise(environment, 1, 0.1))
    assert np.isfinite(after.observations).all()
    assert not after.terminated.any()
    assert list(tmp_path.iterdir()) == []


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "antt"}, "did you mean 'ant'"),
        ({"friction": 11.0}, r"friction=11.0: sliding friction lies in \(0, 10\]"),
        ({"friction": [1.0, 0.0], "seeds": [0, 1]}, "friction=0.0"),
        ({"friction": [1.0, 2.0, 0.5], "seeds": [0, 1]}, "3 frictions for 2 agents"),
        ({"version": "v3"}, "version='v3' is none of v4, v5"),
        ({"contact_margin": "older"}, "contact_margin='older' is none of"),
        ({"integrator": "rk4"}, "the nearest is RK4"),
        ({"seeds": []}, "0 seeds"),
        ({"copies": 0}, "copies=0"),
        ({"copies": "4"}, "copies='4': a whole number, 1 or more"),
        ({"time_limit": 2.5}, "time_limit=2.5: a whole number, 1 or more"),
        ({"time_limit": float("inf")}, "time_limit=inf"),
        ({"padding": -1}, "padding=-1: a whole number, 0 or more"),
        ({"body": "hopper", "contact_forces": True}, "only 'ant' has"),
    ],
)
def test_a_bad_option_is_refused_at_construction(options, message: str):
    with pytest.raises(ValueError, match=message):
        MujocoBatch(**options)


@pytest.mark.parametrize("friction", ["low", [[1.0, 2.0]], {"low": 0.1}])
def test_what_is_no_friction_is_refused(friction):
    with pytest.raises(
        ValueError, match=r"friction=.*: give a number for all agents, one for each, a FrictionSchedule"
    ):
        MujocoBatch("hopper", friction=friction)


@pytest.mark.parametrize("seeds", [3, "12", [0.5]])
def test_what_are_no_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match=r"seeds=.*: give a whole number for each agent, as in seeds=\[0\]"):
        MujocoBatch("hopper", seeds=seeds)


# ---- a body of one's own

SLEDGE = """
<mujoco><option timestep="0.01"/><worldbody>
  <geom type="plane" size="50 50 1"/>
  <body pos="0 0 0.2">
    <joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="lean" axis="0 1 0"/>
    <geom type="box" size="0.3 0.2 0.1"/>
  </body>
</worldbody><actuator><motor joint="x" gear="500" ctrllimited="true" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.fixture
def sledge(tmp_path: Path):
    file = tmp_path / "sledge.xml"
    file.write_text(SLEDGE)
    return Body(
        "sledge",
        {"v5": str(file)},
        frame_skip=4,
        hidden_positions=1,
        control_cost=0.1,
        start_noise=0.01,
        normal_velocities=True,
    )


def test_a_body_of_ones_own_moves(sledge: Body):
    environment = MujocoBatch(sledge, seeds=[0, 1], friction=[0.05, 2.0])
    assert environment.observations.shape == (2, 1, 2 + 3)
    assert environment.seconds == 0.04
    rewards = sum(environment.step(np.ones((2, 1, 1))).rewards for _ in range(20))
    assert rewards[0] > rewards[1] + 1  # ice is faster


def test_a_state_of_another_body_is_refused(sledge: Body):
    state = from_bytes(to_bytes(MujocoBatch(sledge).state_dict()))
    MujocoBatch(sledge).load_state_dict(state)
    for other in (replace(sledge, control_cost=0.2), "hopper"):
        with pytest.raises(ValueError, match=r"the state belongs to body = Body\(name='sledge'.*here it is"):
            MujocoBatch(other).load_state_dict(state)
    assert MujocoBatch("hopper").state_dict()["settings"]["body"] == "hopper"
    assert MujocoBatch(replace(BODIES["hopper"], start_noise=0.0)).state_dict()["settings"]["body"] != "hopper"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "files are XML by version, of v4 and v5"),
        ({"frame_skip": 0}, "frame_skip=0 is 1 or more"),
        ({"healthy_height": (0.1, 1.0)}, "healthy_height needs height_index"),
        ({"hidden_positions": 9}, r"hidden_positions=9, height_index=None, but its XML has \d positions"),
        ({"healthy_height": (0.1, 1.0), "height_index": 7}, r"height_index=7, but its XML has \d positions"),
    ],
)
def test_a_body_that_cannot_be_is_refused(sledge: Body, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MujocoBatch(replace(sledge, **changes))


def test_a_body_whose_file_was_changed_is_read_anew(sledge: Body):
    file = Path(sledge.files["v5"])
    before = MujocoBatch(sledge).seconds
    file.write_text(file.read_text().replace('timestep="0.01"', 'timestep="0.02"'))
    assert MujocoBatch(sledge).seconds == 2 * before


def test_a_version_that_a_body_has_no_file_of_is_refused(sledge: Body):
    with pytest.raises(ValueError, match="version='v4' is none of v5"):
        MujocoBatch(sledge, version="v4")


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"actions of shape \(1, 8\): 'ant' expects \(1, 1, 8\)"):
        MujocoBatch("ant").step(np.zeros((1, 8)))


def test_without_mujoco_or_gymnasium_the_carts_still_roll_and_an_ant_says_what_to_install():
    code = """
import sys
sys.modules[{missing!r}] = None
import pliant.rl.environments as environments
environments.RewiredCartPole()
try:
    environments.MujocoBatch("ant")
except ModuleNotFoundError as error:
    print(error)
"""
    for missing, said in (("mujoco", "moves in MuJoCo, which is not installed"), ("gymnasium", "is part of gymnasium")):
        out = subprocess.run(
            [sys.executable, "-c", code.format(missing=missing)],
            capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).stdout  # fmt: skip
        assert said in out
        assert 'pip install -e ".[rl]"' in out


def test_loading_a_body_prints_nothing_and_leaves_no_file(tmp_path: Path):
    code = 'from pliant.rl.environments import MujocoBatch; MujocoBatch("half-cheetah")'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
