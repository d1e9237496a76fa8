"""The runner with real processes: failures, locks, Ctrl-C, deaths."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from pliant.lab.stored.records import read
from tests.kill_and_resume import content, end, finish, is_alive, pliant, rows_in, workers_of
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.faults

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"
TINY = ["run", TOY, "--profile", "tiny", "--jobs", "2"]


def run(*arguments, **environment):
    return subprocess.run(
        pliant(*arguments), capture_output=True, text=True, env={**os.environ, **environment}, timeout=PATIENCE
    )


@contextmanager
def in_mid_learning(folder, **environment):
    """A study that takes long: its folder and its runner, once it has rows."""
    runner = subprocess.Popen(
        pliant("run", TOY, "--jobs", "2", "--out", str(folder)),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell starts its background jobs with Ctrl-C ignored, and these tests may run in one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: rows_in(content(folder)) > 0)
    workers = workers_of(folder, runner.pid)
    yield folder, runner
    for process in (runner.pid, *workers):
        end(process)
    runner.communicate()


@pytest.fixture
def slow(tmp_path):
    with in_mid_learning(tmp_path / "slow", TOY_HELD="1") as study:
        yield study


def has_committed(database):
    record = read(database)
    return record is not None and record.steps_done > 0


def test_a_second_start_at_the_same_time_says_who_runs_it_and_exits_2(slow):
    folder, runner = slow
    for command in (["resume", str(folder)], ["run", TOY, "--out", str(folder)]):
        second = run(*command)
        assert second.returncode == 2
        assert f"the study in {folder} is held by process {runner.pid} on " in second.stderr
        assert second.stderr.count("\n") == 1
    assert runner.poll() is None


def test_a_job_still_held_by_a_worker_is_not_started_twice(slow, monkeypatch):
    from pliant.lab.run import runner as module
    from pliant.lab.run.processes import Here
    from pliant.lab.run.progress import Lines
    from pliant.lab.stored.files import Held
    from pliant.lab.study.study import open_study

    folder, _ = slow
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with pytest.raises(Held, match=r"job 00[01] of .* is held by process \d+ on "):
        module.run_study(open_study(folder), Here(1), Lines())


def test_status_reads_while_the_study_runs(slow):
    folder, runner = slow
    said = run("status", str(folder))
    assert said.returncode == 0
    assert f"running now: process {runner.pid} on " in said.stdout
    assert "not begun" in said.stdout


def test_workers_die_with_a_killed_runner(slow):
    folder, runner = slow
    until(lambda: len(workers_of(folder, runner.pid)) == 2)  # the first may have rows before the second is there
    workers = workers_of(folder, runner.pid)
    runner.kill()
    runner.wait()
    until(lambda: not any(is_alive(worker) for worker in workers))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends when its advance does")
def test_workers_die_with_a_killed_runner_even_inside_compiled_code(tmp_path):
    with in_mid_learning(tmp_path / "stuck", TOY_STUCK="1") as (folder, runner):
        workers = workers_of(folder, runner.pid)
        runner.kill()
        runner.wait()
        until(lambda: not any(is_alive(worker) for worker in workers))


def test_a_worker_ends_with_its_standard_input():
    code = (
        "import threading; from pliant.lab.run.worker import requested_jobs; requested_jobs(); threading.Event().wait()"
    )
    subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=True, timeout=PATIENCE)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(slow):
    folder, runner = slow
    workers = workers_of(folder, runner.pid)
    os.killpg(runner.pid, signal.SIGINT)  # a terminal tells the workers too
    said, _ = runner.communicate(timeout=PATIENCE)
    assert runner.returncode == 130
    assert said.endswith(f"resume  pliant resume {folder}\n")
    assert "Traceback" not in said
    assert not any(is_alive(worker) for worker in workers)
    assert all("KeyboardInterrupt" not in log.read_text() for log in (folder / "logs").iterdir())


def test_a_job_that_raises_fails_alone_and_leaves_its_traceback(tmp_path):
    said = run(*TINY, "--out", str(tmp_path / "s"), TOY_FAILS="lms")
    assert said.returncode == 1
    assert "3 of 12 finished" not in said.stdout  # six: nlms finished, in spite of the failures before
    assert "6 of 12 finished" in said.stdout
    assert "job 000 failed: RuntimeError: asked to fail, see " in said.stderr
    assert "in _misbehave_if_asked" in (tmp_path / "s" / "logs" / "000.log").read_text()
    assert len(finish(["resume", str(tmp_path / "s")], tmp_path / "s")) > 0
    assert "9 of 12 finished, 3 diverged" in run("status", str(tmp_path / "s")).stdout


def test_a_diverged_run_is_a_result_and_its_siblings_go_on(tmp_path):
    said = run(*TINY, "--out", str(tmp_path / "s"))
    assert said.returncode == 0
    assert "9 of 12 finished, 3 diverged" in said.stdout
    assert said.stdout.count("diverged at step") == 3
    assert said.stdout.endswith(f"plot    pliant plot {tmp_path / 's'}\n")


def test_rows_depend_neither_on_how_many_jobs_run_at_a_time_nor_on_who_runs_beside(tmp_path):
    expected = finish([*TINY, "--out", str(tmp_path / "two")], tmp_path / "two")
    assert finish([*TINY, "--jobs", "1", "--out", str(tmp_path / "one")], tmp_path / "one") == expected


def test_running_again_adds_missing_runs_and_touches_no_finished_one(tmp_path):
    folder = tmp_path / "s"
    before = finish([*TINY, "--seeds", "0", "--out", str(folder)], folder)
    stamps = {file: file.stat().st_mtime_ns for file in (folder / "jobs").glob("*.sqlite")}
    after = finish([*TINY, "--seeds", "0-1", "--out", str(folder)], folder)
    assert {key: after[key] for key in before} == before
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert rows_in(after) == 2 * rows_in(before)


def test_a_tampered_checkpoint_fails_its_job_by_name(slow):
    folder, runner = slow
    until(lambda: has_committed(folder / "jobs" / "000.sqlite"))
    runner.kill()
    runner.wait()
    file = next((folder / "jobs").glob("000-*.safetensors"))
    file.write_bytes(b"something else")
    said = run("resume", str(folder))
    assert said.returncode == 1
    assert f"the checkpoint {file} is not the one that was written (its SHA-256 differs)" in said.stderr
    assert "0 of 12" not in said.stdout  # the other jobs finished


def test_an_experiment_of_ones_own_resumes_and_plots_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    text = Path(TOY.rpartition(":")[0]).read_text()
    (tmp_path / "here" / "own.py").write_text(text)
    folder = str(tmp_path / "study")
    monkeypatch.chdir(tmp_path / "here")
    assert run("run", "own.py:Toy", "--profile", "tiny", "--out", folder, TOY_FAILS="nlms").returncode == 1
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("resume", folder).returncode == 0
    assert run("plot", folder).returncode == 0
    assert (tmp_path / "study" / "figure.png").read_bytes().startswith(b"\x89PNG")


FACTS = """
import os, sys
from typing import ClassVar
import numpy as np
from pliant.lab import DONE, RUNNING, RunConfig
class Config(RunConfig):
    method: str = "m"
class State:
    steps_done, steps_total = 0, 1
    def statuses(self): return [DONE if self.steps_done else RUNNING]
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
class Facts:
    Config = Config
    columns: ClassVar = {"numba_threads": "count", "omp_threads": "count", "path_is_safe": "bool", "hash": "of a word"}
    profiles: ClassVar = {"quick": "now"}
    def runs(self, profile): return [Config()]
    def stack_key(self, config, device): return 0
    def start(self, configs, context): return State()
    def advance(self, state):
        state.steps_done = 1
        print("chatter")
        threads = {f"{n.lower()}_threads": int(os.environ[f"{n}_NUM_THREADS"]) for n in ("NUMBA", "OMP")}
        facts = {"run": 0, **threads, "path_is_safe": os.getcwd() not in sys.path[:-1], "hash": hash("word")}
        return {name: np.array([value]) for name, value in facts.items()}
    def figure(self, rows): raise NotImplementedError
"""


def test_workers_have_one_thread_a_safe_path_fixed_hashes_and_may_print(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "json.py").write_text("raise ImportError('a file of the user hid a library')")
    assert run("run", "facts.py:Facts", "--out", "s").returncode == 0
    rows = content(tmp_path / "s")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    hashed = subprocess.run([sys.executable, "-c", "print(hash('word'))"], capture_output=True, env=environment).stdout
    numbers = {name: data for (_, _, name), (_, data) in rows.items()}
    assert int.from_bytes(numbers["numba_threads"], "little") == 1
    assert int.from_bytes(numbers["omp_threads"], "little") == 1
    assert numbers["path_is_safe"] == b"\x01"
    assert int.from_bytes(numbers["hash"], "little", signed=True) == int(hashed)
    assert "chatter" in (tmp_path / "s" / "logs" / "worker-0.log").read_text()


def test_the_plan_names_no_process_and_every_start_is_noted(tmp_path):
    from pliant.lab.stored.records import read_rows

    folder = tmp_path / "s"
    run(*TINY, "--out", str(folder), TOY_FAILS="nlms")
    run("resume", str(folder))
    assert "pid" not in json.loads((folder / "study.json").read_text())
    sessions = read_rows(folder / "jobs" / "003.sqlite").sessions
    assert len(sessions) == 2
    assert {"host", "commit", "python", "numpy", "pliant"} <= sessions[0].keys()
