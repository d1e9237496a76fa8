import os
import subprocess
import sys

import numpy as np
import pytest

from pliant.rl.environments import FrictionSchedule
from pliant.rl.environments.registration import IDS

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
pytest.importorskip("mujoco", reason="MuJoCo is not installed")


@pytest.mark.parametrize("name", IDS)
def test_it_passes_gymnasiums_checker_without_a_warning(name: str):  # warnings are errors here
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make(name).unwrapped, skip_render_check="CartPole" not in name)


def test_a_seed_begins_the_same_environment_anew():
    environment = gymnasium.make("pliant/SlipperyHopper-v0", period=50)

    def life():
        first, info = environment.reset(seed=3)
        grounds, observations = [info["friction"]], [first]
        for t in range(150):
            action = np.random.default_rng(t).uniform(-1, 1, 3).astype(np.float32)
            observation, _, terminated, truncated, info = environment.step(action)
            if terminated or truncated:
                observation, info = environment.reset()
            grounds.append(info["friction"])
            observations.append(observation)
        return grounds, observations

    one, other = life(), life()
    assert one[0] == other[0]
    assert len(set(one[0])) >= 3
    assert not np.array_equal(one[1][0], environment.reset(seed=4)[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_the_episode_that_the_batch_has_begun_is_the_one_that_reset_shows():
    environment = gymnasium.make("pliant/RewiredCartPole-v0").unwrapped
    environment.reset(seed=0)
    done = False
    while not done:
        last, _, terminated, truncated, _ = environment.step(0)
        done = terminated or truncated
    waiting = environment.batch.observations[0, 0].copy()
    assert not np.array_equal(last, waiting)
    np.testing.assert_array_equal(environment.reset()[0], waiting)
    assert not np.array_equal(environment.reset()[0], waiting)  # a reset amid an episode begins the next


def test_options_reach_the_environment():
    environment = gymnasium.make("pliant/SlipperyAnt-v0", friction=0.3, version="v4", padding=84)
    observation, info = environment.reset(seed=0)
    assert observation.shape == environment.observation_space.shape == (111,)
    assert info == {"friction": 0.3}


def test_without_a_friction_the_ground_changes_and_none_keeps_the_xmls_own():
    def first(**options):
        return gymnasium.make("pliant/SlipperyHopper-v0", **options).reset(seed=3)[1]["friction"]

    schedule = FrictionSchedule(low=0.1, high=0.2, period=50)
    assert first() == FrictionSchedule().value(3, 0)
    assert first(low=0.1, high=0.2) == first(friction=schedule) == schedule.value(3, 0)
    environment = gymnasium.make("pliant/SlipperyWalker2d-v0", friction=None).unwrapped.batch
    assert set(environment.simulation()[0].geom_friction[:, 0]) == {0.7, 0.9, 1.9}  # by part


@pytest.mark.parametrize("friction", [None, 0.3, FrictionSchedule()])
@pytest.mark.parametrize("change", [{"period": 100}, {"low": 0.1}, {"high": 1.0}, {"friction_seed": 0}])
def test_a_change_of_friction_beside_a_friction_is_refused(friction, change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"friction=.* beside {name}: give one or the other"):
        gymnasium.make("pliant/SlipperyHopper-v0", friction=friction, **change)


def test_environments_side_by_side_share_the_ground_if_they_share_its_seed():
    def grounds(**options):
        options = {"num_envs": 3, "vectorization_mode": "sync", "time_limit": 50, **options}
        environments = gymnasium.make_vec("pliant/SlipperyHalfCheetah-v0", **options)
        seen, still = [], np.zeros((3, 6), np.float32)
        observations, info = environments.reset(seed=0)
        for _ in range(300):
            seen.append(info["friction"])
            info = environments.step(still)[-1]
        return np.array(seen), observations

    apart, _ = grounds()
    together, observations = grounds(friction_seed=7, period=100)
    assert len(set(apart[0])) == 3
    first, second, third = (FrictionSchedule().value(7, number) for number in range(3))
    assert together[0].tolist() == [first] * 3
    assert [[*dict.fromkeys(ground)] for ground in together.T] == [[first, second, third]] * 3
    assert len({row.tobytes() for row in observations}) == 3  # the episodes are their own


@pytest.mark.parametrize(("name", "frames"), [*zip(IDS, (20, 20, 125, 125, 50), strict=True)])
def test_a_film_runs_at_the_speed_of_the_environment(name: str, frames: int):
    environment = gymnasium.make(name).unwrapped
    assert environment.metadata == {"render_modes": ["rgb_array"], "render_fps": frames}
    assert round(1 / environment.batch.seconds) == frames
    assert "render_fps" not in type(environment).metadata


def test_friction_outside_physics_is_refused():
    with pytest.raises(ValueError, match=r"friction=50(.0)?: sliding friction lies in \(0, 10\]"):
        gymnasium.make("pliant/SlipperyAnt-v0", friction=50)


@pytest.mark.parametrize("options", [{"copies": 2}, {"seeds": [3]}])
def test_one_body_is_not_asked_to_be_several(options):
    with pytest.raises(ValueError, match=r"this is one body, whose seed is that of reset"):
        gymnasium.make("pliant/SlipperyAnt-v0", **options)


def test_an_unknown_picture_is_refused():
    from pliant.rl.environments.single import SlipperyBody

    with pytest.raises(ValueError, match=r"render_mode='ansi': there is \['rgb_array'\]"):
        SlipperyBody("ant", render_mode="ansi")


def test_the_picture_of_a_cart_shows_where_it_stands_and_how_the_pole_leans():
    from pliant.rl.environments.cart_picture import CART, POLE, cart_picture

    def middle(state, color):
        rows, columns = np.nonzero((cart_picture(np.array(state)) == color).all(-1))
        return rows.mean(), columns.mean()

    assert middle([0.0, 0, 0, 0], POLE)[1] == pytest.approx(159.5)
    assert middle([1.2, 0, 0, 0], CART)[1] == pytest.approx(159.5 + 1.2 * 320 / (2.2 * 2.4), abs=1)
    assert middle([0.0, 0, 0.2, 0], POLE)[1] > 162
    assert middle([0.0, 0, -0.2, 0], POLE)[1] < 157
    assert middle([0.0, 0, 0, 0], POLE)[0] < middle([0.0, 0, 0, 0], CART)[0]
    cart = gymnasium.make("pliant/RewiredCartPole-v0", render_mode="rgb_array")
    cart.reset(seed=0)
    np.testing.assert_array_equal(cart.render(), cart_picture(cart.unwrapped.batch.states[0, 0]))


DRAW = """
import warnings
warnings.simplefilter("ignore")
import numpy as np, gymnasium, pliant.rl.environments
environment = gymnasium.make("pliant/SlipperyAnt-v0", render_mode="rgb_array", width=160, height=120)
plain = gymnasium.make("pliant/SlipperyAnt-v0")
environment.reset(seed=0), plain.reset(seed=0)
pictures = []
for _ in range(8):
    a, b = environment.step(np.ones(8, np.float32)), plain.step(np.ones(8, np.float32))
    assert (a[0] == b[0]).all()
    pictures.append(environment.render())
assert pictures[0].shape == (120, 160, 3) and pictures[0].dtype == np.uint8
print("drawn", pictures[0].std() > 10, (pictures[0] != pictures[-1]).mean() > 0.01)
"""


def run(code: str, **environment: str):
    variables = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables | environment)


def test_naming_the_module_is_enough_to_make_an_environment():
    made = run(
        "import gymnasium; print(gymnasium.make('pliant.rl.environments:pliant/RewiredCartPole-v0').reset(seed=0)[0].size)"
    )
    assert made.stdout.strip() == "16", made.stderr


def test_a_picture_shows_the_body_moving_and_does_not_disturb_it():
    done = run(DRAW, MUJOCO_GL="egl")
    if "GraphicsUnavailable" in done.stderr:
        pytest.skip("EGL is not installed")
    assert done.stdout.split() == ["drawn", "True", "True"], done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems draw without being told how")
def test_without_graphics_the_error_says_what_to_set():
    done = run(DRAW)
    assert "GraphicsUnavailable: MuJoCo cannot draw here (MUJOCO_GL is not set)" in done.stderr
    assert "set MUJOCO_GL=egl before Python starts" in done.stderr


@pytest.mark.parametrize("named", ["osmesa", "glut"])  # not installed; no such thing
def test_what_mujoco_cannot_load_to_draw_with_is_an_error_that_says_what_to_install(named: str):
    done = run("from pliant.rl.environments import MujocoBatch; MujocoBatch('ant')", MUJOCO_GL=named)
    if not done.returncode:
        pytest.skip(f"{named} is installed")
    assert f"GraphicsUnavailable: MuJoCo could not be loaded (MUJOCO_GL is {named})" in done.stderr
    assert "MUJOCO_GL=egl before Python starts (Debian: apt install libegl1 libgl1-mesa-dri)" in done.stderr
    assert "MUJOCO_GL=osmesa (apt install libosmesa6)" in done.stderr


def test_an_unknown_environment_names_the_nearest():
    with pytest.raises(gymnasium.error.NameNotFound, match="SlipperyAnt`"):
        gymnasium.make("pliant/SlipperyAntt-v0")
