"""A training in a process of its own: started, killed at a step, and gone on with in another process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import pliant

ROOT = Path(__file__).parents[2]
OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 3, "seed": 5}
METHODS = {
    "continual backprop": (pliant.ContinualBackprop, OFTEN),
    "redo": (pliant.ReDo, {"tau": 0.9, "period": 3, "seed": 2}),
    "l2": (pliant.L2, {"strength": 0.01, "toward": "initial"}),
    "monitor": (pliant.Monitor, {"every": 7}),
    "shrink and perturb": (pliant.ShrinkAndPerturb, {"shrink": 0.99, "noise_std": 0.01, "period": 3, "seed": 1}),
}


def process(module, call):
    """Run `call`, an expression over the names of a test module, in a fresh process, and return its exit status."""
    return ended(started(module, call))


def ranks(module, call, count=2):
    """The same in so many processes at once, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    elastic = {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": 0}
    all_ranks = [started(module, call, **common, **elastic, RANK=rank, LOCAL_RANK=rank) for rank in range(count)]
    assert [ended(each) for each in all_ranks] == [0] * count


def started(module, call, **environment):
    code = f"from tests.integrations.{module} import *\n{call}"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    offline = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    given = {name: str(value) for name, value in environment.items()}
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it is read when the process has ended)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **offline, **given}, stderr=said
    ), said


def ended(running):
    process, said = running
    try:
        process.wait(timeout=300)
    finally:
        process.kill()
    with said:
        said.seek(0)
        assert process.returncode in (0, -signal.SIGKILL), said.read()[-4000:]
    return process.returncode


def kill():
    """What a machine does that goes down."""
    os.kill(os.getpid(), signal.SIGKILL)


def data(count=64, inputs=6, classes=3):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, inputs, generator=draw), torch.randint(classes, (count,), generator=draw)


def replaced(method):
    """Units replaced in the group where they are fewest."""
    return min(sum(group["replaced"]) for group in method.stats().values())


def done(method, *, least=20):
    """Whether so much happened that equality means something: replacements in every group, or measurements."""
    if isinstance(method, pliant.Monitor):
        return len({row["step"] for row in method.rows}) >= 4
    return not isinstance(method, pliant.UnitReset) or replaced(method) >= least


def hooks(model, *optimizers):
    on_modules = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return on_modules + sum(
        len(each._optimizer_step_pre_hooks) + len(each._optimizer_step_post_hooks) for each in optimizers
    )


def differing(one, other):
    """Names of the entries of two state dictionaries that are not equal to the bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def leave(folder, model, method):
    """Write down where a training ended: the weights, and what a monitor measured."""
    rows = repr(method.rows) if isinstance(method, pliant.Monitor) else ""
    torch.save({"weights": model.state_dict(), "rows": rows}, f"{folder}/end.pt")


def same_end(one, other):
    """Whether two folders hold the same end, to the bit."""
    first, second = (torch.load(f"{folder}/end.pt") for folder in (one, other))
    return differing(first["weights"], second["weights"]) == [] and first["rows"] == second["rows"]
