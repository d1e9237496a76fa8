"""A study's jobs on a Ray cluster: each is a task, which starts our own worker process on the node where Ray puts it.

So a job learns by the same command and in the same environment as on one machine, to the same bits; Ray only says where. The
folder of the study has to be one that all nodes see, which is tried at the start. A job whose worker or node dies is begun
again, elsewhere if need be, from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from pliant.base.choices import shortened
from pliant.lab.errors import LabError
from pliant.lab.run.processes import Event, Events, Worker, start_process
from pliant.lab.study.facts import versions
from pliant.lab.study.study import Job, Study

_RETRIES = 3
_PATIENCE = 60.0  # seconds for a node to say what it sees
_PASSED_ON = "PLIANT_"  # how variables begin that workers get from here: where the data are, whether there are locks


@contextmanager
def cluster(address: str, jobs: int | None, cores: int, study: Study) -> Generator[RayCrew]:
    """The Ray cluster at an address, or one of this machine alone for "local". Raises LabError where the study cannot run there.

    jobs: how many run at a time; None: as many as there are CPUs, or GPUs, in the cluster.
    """
    gpus = int(study.plan.device == "cuda")
    ray: Any = import_module("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            ray.init("local", num_cpus=jobs or cores, include_dashboard=False, **quiet)
        else:
            _answers(address)
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise LabError(
            f"no Ray cluster at {shortened(address)}: {shortened(error, 200)}. Start one by `ray start`, or give --ray local"
        ) from None
    try:
        found = ray.cluster_resources()
        here = int(found.get("GPU" if gpus else "CPU", 0))
        if not here:
            raise LabError(
                f"the Ray cluster at {shortened(address)} has no {'GPU' if gpus else 'CPU'}: add a node with one"
            )
        refuse_blind(study.folder, _ask_nodes(ray))
        yield RayCrew(ray, gpus, jobs or here)
    finally:
        ray.shutdown()


def check_ray(address: str, device: str) -> None:
    """Raise LabError where Ray cannot give the device, or is not reached so; ModuleNotFoundError where it is not installed."""
    import_module("ray")
    if device not in ("cpu", "cuda"):
        raise LabError(
            f"device '{device}' with --ray: Ray says which GPU a job gets: begin a study with --device cuda or cpu"
        )
    if address.startswith("ray://"):
        raise LabError(
            f"--ray {shortened(address)}: start pliant on a node of the cluster, and give host:port, or auto"
        )


def _answers(address: str) -> None:
    """Raise `OSError` where nobody listens there: Ray itself would go on asking."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10.0):
            pass


class RayCrew:
    """Workers on the nodes of a cluster."""

    retries = _RETRIES

    def __init__(self, ray: Any, gpus: int, at_once: int) -> None:
        self.at_once = at_once
        self.ray = ray
        # Ray's own retries would begin a stream of events anew
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(serve)

    def start(self, study: Study, name: str, events: Events) -> Worker:
        return RayWorker(self, study, name, events)


class RayWorker:
    """One task after another, and the thread that forwards what the task at work reports."""

    def __init__(self, crew: RayCrew, study: Study, name: str, events: Events) -> None:
        self.job: Job | None = None
        self._crew, self._study, self._name, self._events = crew, study, name, events
        self._stream: Any = None
        self._reader: threading.Thread | None = None
        self._death = ""

    def run(self, job: Job) -> None:
        self.job = job
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        folder, log = (str(path.resolve()) for path in (self._study.folder, self._study.log(self._name)))
        self._stream = self._crew.task.remote(folder, job.name, log, passed_on)
        self._reader = threading.Thread(target=self._forward, args=(self._stream,), daemon=True)
        self._reader.start()

    def _forward(self, stream: Iterable[Any]) -> None:
        try:
            for reference in stream:
                event: Event = self._crew.ray.get(reference)
                if event["event"] == "died":
                    self._death = (
                        f"its worker on {event['host']} ended with status {event['status']}, see {event['log']}"
                    )
                    break
                self._events.put((self, event))
                if event["event"] != "advanced":
                    return
        except Exception as error:  # whatever Ray meets with: a node lost, a task killed for want of memory
            self._death = (
                f"Ray lost its worker ({type(error).__name__}: {shortened(' '.join(str(error).split()), 300)})"
            )
        self._events.put((self, None))

    def end(self) -> None:
        if self._reader is not None and self._reader.is_alive():
            with suppress(Exception):  # it may have ended in the meantime
                self._crew.ray.cancel(self._stream, force=True)
            self._reader.join(timeout=10.0)

    def cause_of_death(self) -> str:
        return self._death or "its task ended without a word"


def serve(folder: str, job: str, log: str, environment: Mapping[str, str]) -> Generator[Event]:
    """On a node: run a job in a worker process of ours, and hand on what it reports."""
    process = start_process(Path(folder), Path(log), environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.endswith("\n"):
                event: Event = json.loads(line)
                yield event
                if event["event"] != "advanced":
                    return
        yield {"event": "died", "status": process.wait(), "host": socket.gethostname(), "log": log}
    finally:
        process.kill()
        process.wait()


Answer = dict[str, Any]
Ask = Callable[[str, str], Mapping[str, Answer]]  # (folder, token) -> what each node says


def refuse_blind(folder: Path, ask: Ask) -> None:
    """Raise LabError where a node does not see the folder: one that reads no token here, or whose own is not seen here."""
    token = f"ray-{secrets.token_hex(8)}"
    text = secrets.token_hex(8)
    file = folder / f"{token}.tmp"
    file.write_text(text)
    try:
        answers = ask(str(folder.resolve()), token)
        for node, answer in answers.items():
            own = folder / f"{token}-{answer.get('wrote')}.tmp"
            if answer["fault"] or answer["read"] != text or not own.exists() or own.read_text() != text:
                reason = answer["fault"] or "it has a folder of that name, and another one"
                raise LabError(
                    f"node {node} of the Ray cluster does not see {folder.resolve()} ({reason}): put the study into a "
                    "folder that all nodes share, or run parts of it by --shard and join them with `pliant merge`"
                )
            differ = {n: v for n, v in versions().items() if answer["versions"].get(n) != v}
            if differ:
                name, here = next(iter(differ.items()))
                there = answer["versions"].get(name, "absent")
                raise LabError(
                    f"node {node} of the Ray cluster has {name} {there}, this one {here}: rows would differ in their last bits; "
                    "install the same"
                )
    finally:
        for each in folder.glob(f"{token}*.tmp"):
            each.unlink()


def look(folder: str, token: str) -> Answer:
    """On a node: read the token in the folder, and write one beside it."""
    name, place = secrets.token_hex(8), Path(folder)
    answer: Answer = {"fault": "", "read": "", "wrote": name, "versions": versions()}
    try:
        answer["read"] = (place / f"{token}.tmp").read_text()
        (place / f"{token}-{name}.tmp").write_text(answer["read"])
    except OSError as error:
        answer["fault"] = error.strerror or str(error)
    return answer


def _ask_nodes(ray: Any) -> Ask:
    strategy = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy

    def ask(folder: str, token: str) -> Mapping[str, Answer]:
        asked: dict[str, Any] = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = strategy(node_id=node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
                asked[name] = task.remote(folder, token)
        return {name: _answer(ray, name, reference) for name, reference in asked.items()}

    return ask


def _answer(ray: Any, node: str, reference: Any) -> Answer:
    try:
        return ray.get(reference, timeout=_PATIENCE)
    except Exception as error:  # such as no pliant to be imported there
        reason = " ".join(str(error).split())[-300:]
        raise LabError(f"node {node} of the Ray cluster cannot run pliant: {type(error).__name__}: {reason}") from None
