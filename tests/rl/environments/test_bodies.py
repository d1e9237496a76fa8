import numpy as np
import pytest

from pliant.rl.environments.bodies import BODIES, body_named, closed, healthy, observe, reward, start


def state(body: str, height: float, angle: float = 0.0):
    positions, velocities = np.zeros((1, 15 if body == "ant" else 9)), np.zeros((1, 14 if body == "ant" else 9))
    positions[0, BODIES[body].height_index] = height
    if body != "ant":
        positions[0, 2] = angle
    return positions, velocities


@pytest.mark.parametrize(("height", "up"), [(0.2, True), (1.0, True), (0.199, False), (1.001, False), (np.nan, False)])
def test_an_ant_is_healthy_between_its_heights_ends_included(height: float, up: bool):
    assert healthy(BODIES["ant"], *state("ant", height)).tolist() == [up]


@pytest.mark.parametrize(("height", "angle", "up"), [(1.2, 0.0, True), (0.8, 0.0, False), (1.2, 1.0, False)])
def test_a_walker_is_healthy_between_its_heights_and_angles_ends_excluded(height: float, angle: float, up: bool):
    assert healthy(BODIES["walker2d"], *state("walker2d", height, angle)).tolist() == [up]


def test_numbers_that_are_not_finite_are_never_healthy():
    positions, velocities = state("half-cheetah", 0.0)
    assert healthy(BODIES["half-cheetah"], positions, velocities).all()
    velocities[0, 4] = np.inf
    assert not healthy(BODIES["half-cheetah"], positions, velocities).any()


def test_a_hopper_out_of_its_range_of_states_is_not_healthy():
    positions, velocities = state("hopper", 1.2)
    velocities[0, 0] = 100.0
    assert not healthy(BODIES["hopper"], positions, velocities).any()


def test_only_version_four_pays_for_the_step_on_which_the_body_falls():
    ant, fell = BODIES["ant"], np.array([False])
    speed, actions = np.array([2.0]), np.full((1, 8), 0.5)
    assert reward(ant, "v4", speed, actions, fell, None).tolist() == [2.0 + 1.0 - 0.5 * 8 * 0.25]
    assert reward(ant, "v5", speed, actions, fell, None).tolist() == [2.0 - 0.5 * 8 * 0.25]


def test_contact_is_charged_at_five_ten_thousandths():
    forces = np.ones((1, 84))
    assert reward(BODIES["ant"], "v5", np.zeros(1), np.zeros((1, 8)), np.array([True]), forces)[0] == 1.0 - 84 * 5e-4


def test_a_hopper_sees_its_velocities_clipped_and_not_where_it_stands():
    out = np.full((1, 12), 7.0)
    observe(BODIES["hopper"], np.arange(6.0)[None], np.array([[20.0, -20.0, 1.0, 0, 0, 0]]), out)
    assert out.tolist() == [[1, 2, 3, 4, 5, 10, -10, 1, 0, 0, 0, 7]]


def test_a_closed_interval_holds_its_ends_and_nothing_more():
    low, high = closed(0.2, 1.0)
    assert low < 0.2 < 1.0 < high
    assert np.nextafter(low, 1) == 0.2
    assert np.nextafter(high, 0) == 1.0


def test_an_unknown_body_names_the_nearest():
    with pytest.raises(ValueError, match="no body is named 'halfcheetah'; did you mean 'half-cheetah'"):
        body_named("halfcheetah")


@pytest.mark.parametrize("body", BODIES)
def test_an_episode_begins_near_rest(body: str):
    random, noise = np.random.default_rng(0), BODIES[body].start_noise
    starts = [start(BODIES[body], np.ones(15), 14, random) for _ in range(500)]
    positions, velocities = np.stack([s[0] for s in starts]), np.stack([s[1] for s in starts])
    assert 0.99 * noise < np.abs(positions - 1).max() <= noise
    normal = np.abs(velocities).max() > noise
    assert normal == (body in ("ant", "half-cheetah"))
    assert velocities.std() == pytest.approx(noise * (1 if normal else 3**-0.5), rel=0.05)
