"""A study on a Ray cluster: the rows of one machine, to the bit, whichever workers are killed.

In the environment of `make integrations`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make integrations")

from ray.cluster_utils import Cluster

from tests.kill_and_resume import content, end, finish, is_alive, pliant, rows_in, workers_of
from tests.patience import PATIENCE, until

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "tests" / "toy_experiment.py") + ":Toy"
TINY = ["run", TOY, "--profile", "tiny", "--jobs", "2"]
SEES = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(*arguments, **environment):
    return subprocess.run(
        pliant(*arguments), capture_output=True, text=True, env=os.environ | SEES | environment, timeout=PATIENCE
    )


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peace") / "s"
    return finish([*TINY, "--out", str(folder)], folder)


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a cluster of two nodes, of a CPU each, on this machine."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", SEES["PYTHONPATH"])
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        cluster.wait_for_nodes()
        yield cluster.address
        cluster.shutdown()


def test_a_cluster_gives_the_rows_of_one_machine(on_one_machine, two_nodes, tmp_path):
    said = run(*TINY[:-2], "--out", str(tmp_path / "s"), "--ray", two_nodes)
    assert said.returncode == 0, said.stderr
    assert "12 runs in 6 jobs, 2 at a time" in said.stdout
    assert "9 of 12 finished, 3 diverged" in said.stdout
    assert content(tmp_path / "s") == on_one_machine
    assert not list((tmp_path / "s").glob("ray-*")), "no token stays"


def test_a_worker_killed_in_the_middle_goes_on_from_its_last_checkpoint(on_one_machine, tmp_path):
    folder = tmp_path / "s"
    runner = subprocess.Popen(
        pliant(*TINY, "--out", str(folder), "--ray", "local"),
        env=os.environ | SEES | {"TOY_PAUSE": "0.3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: 0 < rows_in(content(folder)) < rows_in(on_one_machine) // 2)
    (first, *_) = workers_of(folder, runner.pid)
    os.kill(first, signal.SIGKILL)
    said, _ = runner.communicate(timeout=PATIENCE)
    assert runner.returncode == 0, said
    deaths = re.findall(r"job 00\d  its worker on \S+ ended with status -9, see \S+; it is begun again", said)
    assert len(deaths) == 1, said
    assert content(folder) == on_one_machine


def test_every_worker_may_die_once(on_one_machine, tmp_path):
    said = run(*TINY, "--out", str(tmp_path / "s"), "--ray", "local", PLIANT_DIE="after the transaction:2")
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("it is begun again from its last checkpoint") == 6
    assert content(tmp_path / "s") == on_one_machine


def test_a_job_whose_worker_dies_again_and_again_fails_and_the_others_go_on(on_one_machine, tmp_path):
    folder = tmp_path / "s"
    said = run(*TINY, "--seeds", "0", "--out", str(folder), "--ray", "local", PLIANT_DIE="inside the transaction:2")
    assert said.returncode == 1
    assert said.stdout.count("it is begun again from its last checkpoint") == 2 * 3
    assert re.search(r"job 000 failed: its worker on \S+ ended with status -9, see ", said.stderr)
    assert rows_in(content(folder)) == 2 * 2  # two jobs of two runs, of one advance each
    assert len(finish(["resume", str(folder)], folder)) == len(on_one_machine) // 3  # one seed of three


def test_a_job_that_raises_fails_alone_and_at_once(tmp_path):
    said = run(*TINY, "--seeds", "0", "--out", str(tmp_path / "s"), "--ray", "local", TOY_FAILS="lms")
    assert said.returncode == 1
    assert "begun again" not in said.stdout
    assert "job 000 failed: RuntimeError: asked to fail, see " in said.stderr
    assert "in _misbehave_if_asked" in (tmp_path / "s" / "logs" / "000.log").read_text()
    assert "2 of 4 finished" in said.stdout


def test_ctrl_c_stops_cleanly_and_another_machine_goes_on(on_one_machine, tmp_path):
    folder = tmp_path / "s"
    runner = subprocess.Popen(
        pliant(*TINY, "--out", str(folder), "--ray", "local"),
        env=os.environ | SEES | {"TOY_HELD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: rows_in(content(folder)) >= 4)
    workers = workers_of(folder, runner.pid)
    os.killpg(runner.pid, signal.SIGINT)
    said, _ = runner.communicate(timeout=PATIENCE)
    assert runner.returncode == 130, said
    assert said.endswith(f"resume  pliant resume {folder}\n")
    assert "Traceback" not in said
    until(lambda: not any(is_alive(worker) for worker in workers))
    assert finish(["resume", str(folder)], folder) == on_one_machine


def test_workers_die_with_a_killed_runner(tmp_path):
    folder = tmp_path / "s"
    runner = subprocess.Popen(
        pliant(*TINY, "--out", str(folder), "--ray", "local"),
        env=os.environ | SEES | {"TOY_HELD": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: rows_in(content(folder)) > 0)
    workers = workers_of(folder, runner.pid)
    end(runner.pid)
    runner.wait()
    until(lambda: not any(is_alive(worker) for worker in workers))


def test_a_node_that_does_not_see_the_folder_is_named_before_anything_runs(two_nodes, tmp_path):
    """A node whose file system lacks it: under a mount of its own, where this may be made."""
    unshare = shutil.which("unshare")
    hidden = tmp_path / "shared"
    hidden.mkdir()
    script = f"mount -t tmpfs none {hidden} && exec ray start --address={two_nodes} --num-cpus=1 --block"
    ray = Path(sys.executable).with_name("ray")
    node = subprocess.Popen(
        [unshare or "false", "--mount", "sh", "-c", script.replace("exec ray", f"exec {ray}")],
        env=os.environ | SEES | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while line := node.stdout.readline():
            if "Ray runtime started" in line:
                break
        else:
            pytest.skip("no mount of one's own is to be had here")
        said = run(*TINY, "--out", str(hidden / "s"), "--ray", two_nodes)
        assert said.returncode == 2, said.stdout
        assert re.search(r"pliant: node \S+ \(.*\) of the Ray cluster does not see \S+/s \(No such file", said.stderr)
        assert not list((hidden / "s" / "jobs").iterdir())
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.communicate()


@pytest.mark.parametrize(
    ("device", "address", "message"),
    [
        ("cuda:1", "local", "device 'cuda:1' with --ray: Ray says which GPU a job gets"),
        ("cuda", "local", "the Ray cluster at local has no GPU: add a node with one"),
        ("cpu", "ray://there:10001", "--ray ray://there:10001: start pliant on a node of the cluster"),
        ("cpu", "127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: "),
    ],
)
def test_what_ray_cannot_give_is_one_line(device, address, message, tmp_path):
    said = run(*TINY, "--out", str(tmp_path / "s"), "--device", device, "--ray", address)
    assert said.returncode == 2
    assert said.stderr.startswith(f"pliant: {message}")
    assert said.stderr.count("\n") == 1
