"""What a person is told while a study runs."""

import pytest

from pliant.lab.progress import Board, JobProgress
from pliant.lab.study import Job

RUNS = ({"method": "cbp", "seed": 0}, {"method": "cbp", "seed": 1})


def event(done):
    return {"job": "000", "steps": [done, 100], "diverged": [[1, 7]], "means": {"loss": 0.5, "dead": 0.1, "rank": 3.0}}


def test_time_left_is_what_is_left_at_the_rate_so_far():
    now = iter([0.0, 30.0])
    halfway = {"000": JobProgress(Job(name="000", runs=RUNS)), "001": JobProgress(Job(name="001", runs=RUNS), 1.0)}
    board = Board(halfway, clock=lambda: next(now))
    assert board.seconds_left() is None  # nothing has moved
    now = iter([30.0])
    board._clock = lambda: next(now)
    board.moved(event(50))
    assert board.fraction == 0.75
    assert board.seconds_left() == pytest.approx(30.0)  # a quarter took 30 s, a quarter is left


def test_a_line_says_which_runs_how_far_and_what_they_measure():
    board = Board({"000": JobProgress(Job(name="000", runs=RUNS))})
    line = board.moved(event(50)).line()
    assert line == "  job 000  cbp  2 runs, seeds 0-1   steps 50/100   loss 0.5   dead 0.1   1 diverged"
