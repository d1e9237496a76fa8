"""A film of a run: which run, from which state, what is written on it."""

import numpy as np
import pytest

pytest.importorskip("imageio", reason="films need imageio: pip install -e .[rl]")

from pliant.cli import main
from pliant.lab import Context, LabError
from pliant.lab.film import Scene, chosen, paced, scenes, with_words, write_gif
from pliant.lab.run.worker import run_job
from pliant.lab.stored.files import Lock
from pliant.lab.study.settings import selected
from pliant.lab.study.study import Study, new_plan, with_runs
from pliant.lab.study.target import target

CARTS = "pliant.experiments.rewired_cart_pole:RewiredCartPole"
SHORT = ["updates=4", "rollout_steps=32", "copies=4", "minibatch_size=32", "hidden=[8,8]", "tasks=2", "time_limit=100"]


def planned(folder, address=CARTS, methods="ppo,cbp", settings=SHORT):
    plain = Study(folder, new_plan("it", target(address), "quick", "cpu", {}))
    study = with_runs(plain, selected(plain.experiment, "quick", methods, None, settings))
    study.save()
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = planned(tmp_path_factory.mktemp("film") / "study")
    for job in study.jobs:
        run_job(study, job, lambda event: None)
    return study


def test_the_first_run_of_a_method_and_seed_is_chosen(study):
    job, place = chosen(study, "cbp", 1)
    assert (job.runs[place]["method"], job.runs[place]["seed"]) == ("cbp", 1)
    assert chosen(study, None, None)[0].name == "000"


def test_a_run_that_is_not_there_is_an_error_that_names_those_that_are(study):
    with pytest.raises(
        LabError, match="has no run of method l2; it has ppo  seed 0; ppo  seed 1; cbp  seed 0; cbp  seed 1"
    ):
        chosen(study, "l2", None)


def test_a_film_shows_the_last_state_and_leaves_the_study_as_it_was(study):
    job, place = chosen(study, "cbp", 0)
    before = {file.name: file.read_bytes() for file in (study.folder / "jobs").iterdir() if file.suffix != ".lock"}
    first = next(scenes(study, job, place))
    assert first.words == "task 2   step 0"
    assert first.picture.shape == (240, 320, 3)
    assert {
        file.name: file.read_bytes() for file in (study.folder / "jobs").iterdir() if file.suffix != ".lock"
    } == before


def test_a_gif_has_a_picture_for_each_scene_up_to_the_number_asked_for(study, tmp_path):
    import imageio.v3 as imageio

    found = (Scene(np.full((40, 120, 3), 60 * n, np.uint8), f"number {n}", 0.02) for n in range(4))
    shown, more = write_gif(found, tmp_path / "it.gif", 3)
    assert (len(shown), more) == (3, True)
    assert imageio.imread(tmp_path / "it.gif").shape[:3] == (3, 40, 120)


def test_a_film_may_begin_later(tmp_path):
    scenes = [Scene(np.full((40, 120, 3), 60 * n, np.uint8), f"number {n}", 0.05) for n in range(4)]
    shown, more = write_gif(iter(scenes), tmp_path / "it.gif", 9, skipped=1)
    assert ([scene.words for scene in shown], more) == (["number 1", "number 2", "number 3"], False)
    with pytest.raises(LabError, match="the episode ends after 4 pictures"):
        write_gif(iter(scenes), tmp_path / "it.gif", 9, skipped=7)


def test_a_film_of_short_steps_leaves_pictures_out_and_keeps_its_speed():
    picture = np.zeros((1, 1, 3), np.uint8)
    film = list(paced(Scene(picture, str(n), 0.008) for n in range(1000)))  # a hopper's
    lengths = [scene.seconds for scene in film]
    assert min(lengths) >= 0.02
    assert all(round(100 * length, 6).is_integer() for length in lengths)
    assert sum(lengths) == pytest.approx(8.0, abs=0.03)
    assert film[-1].words == "999"


def test_a_run_is_watched_while_a_worker_goes_on(study):
    job, place = chosen(study, "cbp", 0)
    with Lock(study.job_lock(job), "the job"):
        assert next(scenes(study, job, place)).words == "task 2   step 0"


def test_the_words_stand_at_the_upper_edge():
    plain = np.full((60, 200, 3), 128, np.uint8)
    drawn = with_words(plain, "friction 0.04")
    assert (drawn != plain).any(axis=(1, 2)).nonzero()[0].max() < 30
    assert drawn.min() < 40
    assert (plain == 128).all()


def test_the_command_writes_the_film_and_says_where_and_how_it_ended(study, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "watch",
                str(study.folder),
                "--method",
                "ppo",
                "--seed",
                "1",
                "--gif",
                str(tmp_path / "it.gif"),
                "--frames",
                "4",
            ]
        )
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("4 pictures")
    assert "in the last: task 2   step 3" in said
    assert "the episode goes on: --frames 1000" in said
    assert (tmp_path / "it.gif").stat().st_size > 1000


def test_what_cannot_be_watched_says_so(tmp_path):
    toy = planned(tmp_path / "toy", "tests.toy_experiment:Toy", "lms", [])
    with pytest.raises(LabError, match="it cannot be watched: its experiment has no watch"):
        next(scenes(toy, toy.jobs[0], 0))
    carts = planned(tmp_path / "carts")
    with pytest.raises(LabError, match="has not begun: pliant resume"):
        next(scenes(carts, carts.jobs[0], 0))


def test_nothing_to_see_is_an_error(tmp_path):
    with pytest.raises(LabError, match="nothing to see"):
        write_gif(iter([]), tmp_path / "it.gif", 3)


def test_an_ant_is_watched_on_the_ground_of_the_day():
    from pliant.experiments.locomotion import Config, SlipperyAnt
    from pliant.rl.environments import GraphicsUnavailable

    config = Config(rollout_steps=128, minibatch_size=32, hidden=(8, 8), friction_period=300)
    experiment = SlipperyAnt()
    state = experiment.start([config], Context())
    try:
        film = list(zip(range(5), experiment.watch(state, 0), strict=False))
    except GraphicsUnavailable as error:
        pytest.skip(str(error))
    pictures = [scene.picture for _, scene in film]
    assert film[0][1].words == f"step 0   friction {state.bodies.frictions[0, 0]:.2f}   return 0"
    assert film[0][1].seconds == pytest.approx(0.05)
    assert (pictures[0] != pictures[4]).any()
