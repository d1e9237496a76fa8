"""Methods in a loop of one's own with Accelerate: a line after `prepare`, and one that registers them for its checkpoints.

In the environment of `make integrations`.
"""

import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate", reason="Accelerate is not installed: make integrations")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

import pliant
from tests.integrations.killed import (
    METHODS,
    OFTEN,
    data,
    done,
    hooks,
    kill,
    leave,
    process,
    same_end,
)

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

HOW = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"mixed_precision": "bf16"},
}


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 3))


def prepared(how="plain", model=None):
    AcceleratorState._reset_state(True)  # settings are the process's, and each test has its own
    accelerator = Accelerator(cpu=True, **HOW[how])
    model = network() if model is None else model
    loader = DataLoader(TensorDataset(*data()), batch_size=8)
    return accelerator, *accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01), loader)


def attached(method, model, optimizer, loader):
    maker, settings = METHODS[method]
    if issubclass(maker, pliant.UnitReset | pliant.Monitor):
        return maker(model, optimizer, example_inputs=torch.zeros(2, 6), **settings)
    return maker(model, optimizer, **settings)


def train(how, method, folder, *, kill_at=None, resume=False, epochs=12):
    """Train, saving after each epoch, and leave the end in a file."""
    torch.set_num_threads(1)
    set_seed(0)
    accelerator, model, optimizer, loader = prepared(how)
    made = attached(method, model, optimizer, loader)
    accelerator.register_for_checkpointing(made)
    first = 0
    if resume:
        accelerator.load_state(f"{folder}/last")
        first = int(torch.load(f"{folder}/epoch.pt"))
    batches = 8 * first
    for epoch in range(first, epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            batches += 1
            if batches == kill_at:
                kill()
        accelerator.save_state(f"{folder}/last")
        torch.save(epoch + 1, f"{folder}/epoch.pt")
    leave(folder, accelerator.unwrap_model(model), made)
    return made


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *((how, "continual backprop") for how in HOW),
        *(("plain", each) for each in METHODS if each != "continual backprop"),
    ],
)
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(how, method, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    made = train(how, method, straight)
    assert done(made)
    assert process("test_accelerate", f"train({how!r}, {method!r}, {str(killed)!r}, kill_at=61)") == -signal.SIGKILL
    assert not (killed / "end.pt").exists()
    assert process("test_accelerate", f"train({how!r}, {method!r}, {str(killed)!r}, resume=True)") == 0
    assert same_end(straight, killed)


@pytest.mark.parametrize(("how", "steps"), [("plain", 8), ("accumulated", 4), ("bf16", 8)])
def test_its_clock_is_the_optimizer_step(how, steps, tmp_path):
    made = train(how, "continual backprop", tmp_path, epochs=1)
    assert {group["steps"] for group in made.stats().values()} == {steps}


def test_the_model_may_be_given_before_or_after_prepare():
    model = network()
    accelerator, wrapped, optimizer, _ = prepared("bf16", model)
    for each in (model, wrapped, accelerator.unwrap_model(wrapped)):
        with pliant.ContinualBackprop(each, optimizer, example_inputs=torch.zeros(2, 6), **OFTEN) as made:
            assert list(made.stats()) == ["0", "2"]
    assert hooks(model, optimizer.optimizer) == 0


def test_a_checkpoint_of_other_units_is_refused_with_nothing_changed(tmp_path):
    accelerator, model, optimizer, _ = prepared()
    first = pliant.ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 6), **OFTEN)
    accelerator.register_for_checkpointing(first)
    accelerator.save_state(tmp_path)
    first.detach()
    accelerator._custom_objects.clear()
    other = pliant.ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 6), exclude="0", **OFTEN)
    accelerator.register_for_checkpointing(other)
    with pytest.raises(ValueError, match="saved for other units"):
        accelerator.load_state(tmp_path)


def test_an_optimizer_of_another_model_is_refused():
    model, (_, _, other, _) = network(), prepared()
    with pytest.raises(ValueError, match="Pass the optimizer that was built from this model's parameters"):
        pliant.ContinualBackprop(model, other, example_inputs=torch.zeros(2, 6), **OFTEN)
