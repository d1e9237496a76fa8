"""What a person is told while a study runs."""

import pytest

from pliant.lab.run.progress import Board, JobProgress
from pliant.lab.study.study import Job


def event(done, job="000"):
    return {"job": job, "steps": [done, 100], "diverged": [[1, 7]], "means": {"loss": 0.5, "dead": 0.1, "rank": 3.0}}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def board(clock, *names):
    """Jobs of two runs each, none begun."""
    runs = ({"method": "cbp", "seed": 0}, {"method": "cbp", "seed": 1})
    return Board({name: JobProgress(Job(name=name, runs=runs), "cbp  2 runs, seeds 0-1") for name in names}, clock)


def left_after(board, clock, *events):
    """Seconds left as told after each event: (time, steps done, job)."""
    told = []
    for clock.now, done, job in events:
        board.moved(event(done, job))
        told.append(board.seconds_left())
    return told


def test_time_left_is_what_is_left_at_the_rate_since_the_first_advance(clock):
    told = left_after(board(clock, "000"), clock, (0.0, 0, "000"), (60.0, 10, "000"), (70.0, 20, "000"))
    assert told[:2] == [None, None]  # the first advance compiled for a minute
    assert told[2] == pytest.approx(80.0)  # a tenth took 10 s, eight are left


def test_no_time_left_is_told_until_every_job_at_work_has_advanced_twice(clock):
    begun = [(0.0, 0, "000"), (0.0, 0, "001")]
    first = [(50.0, 10, "000"), (51.0, 10, "001")]
    again = [(51.5, 20, "000"), (61.0, 20, "001")]
    told = left_after(board(clock, "000", "001"), clock, *begun, *first, *again)
    assert told[:5] == [None] * 5  # not 4 s, of which the slow job knows nothing
    assert told[5] == pytest.approx(80.0)


@pytest.mark.parametrize("finished", [True, False])
def test_a_job_that_has_ended_is_not_waited_for(clock, finished):
    both = board(clock, "000", "001")
    left_after(both, clock, (0.0, 0, "000"), (0.0, 0, "001"), (50.0, 50, "000"), (50.0, 10, "001"))
    both.ended("001", finished)
    clock.now = 60.0
    both.moved(event(60))
    assert both.seconds_left() is not None
    assert both.fraction == pytest.approx(0.8 if finished else 0.35)


def test_later_jobs_do_not_hide_the_time_left(clock):
    both = board(clock, "000", "001")
    told = left_after(
        both, clock, (0.0, 0, "000"), (60.0, 10, "000"), (70.0, 20, "000"), (70.0, 0, "001"), (80.0, 10, "001")
    )
    assert None not in told[2:]


def test_a_line_says_which_runs_how_far_and_what_they_measure(clock):
    line = board(clock, "000").moved(event(50)).line()
    assert line == "  job 000  cbp  2 runs, seeds 0-1   steps 50/100   loss 0.5   dead 0.1   1 diverged"
