"""A training in a process of its own: started, killed at a step, and gone on with in another process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

import pliant

ROOT = Path(__file__).parents[2]
OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 3, "seed": 5}
METHODS = {
    "continual backprop": (pliant.ContinualBackprop, OFTEN),
    "redo": (pliant.ReDo, {"tau": 0.9, "period": 3, "seed": 2}),
    "l2": (pliant.L2, {"strength": 0.01, "toward": "initial"}),
    "shrink and perturb": (pliant.ShrinkAndPerturb, {"shrink": 0.99, "noise_std": 0.01, "period": 3, "seed": 1}),
}


def process(module, call):
    """Run `call`, an expression over the names of a test module, in a fresh process, and return its exit status."""
    code = f"from tests.integrations.{module} import *\n{call}"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-4000:]
    return done.returncode


def kill():
    """What a machine does that goes down."""
    os.kill(os.getpid(), signal.SIGKILL)


def data(count=64, inputs=6, classes=3):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, inputs, generator=draw), torch.randint(classes, (count,), generator=draw)


def replaced(method):
    """Units replaced in the group where they are fewest."""
    return min(sum(group["replaced"]) for group in method.stats().values())


def hooks(model, *optimizers):
    on_modules = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return on_modules + sum(
        len(each._optimizer_step_pre_hooks) + len(each._optimizer_step_post_hooks) for each in optimizers
    )


def differing(one, other):
    """Names of the entries of two state dictionaries that are not equal to the bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
