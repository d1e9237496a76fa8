"""A saved state is diagnosed in the place of the model's own numbers, wherever it lies in a checkpoint."""

import argparse

import pytest
import torch
from torch import nn

from pliant.diagnostics import diagnose
from tests.networks import convnet, mlp
from tests.units.test_hard_cases import everything

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(12, 6)}}}, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "lightning": lambda state: {"state_dict": prefixed("net.", state) | {"loss.weight": torch.ones(2)}, "epoch": 1},
    "data parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: {"model": prefixed("_orig_mod.", state)},
    "deep": lambda state: {"a": {"b": {"c": state}}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["file", "dictionary"])
def test_a_state_is_found_in_every_form_and_the_model_stays_as_it_is(form, kind, tmp_path):
    model, saved = mlp(), mlp(seed=7)
    state = FORMS[form](saved.state_dict())
    if kind == "file":
        torch.save(state, tmp_path / "checkpoint.pt")
        state = tmp_path / "checkpoint.pt"
    before = everything(model)
    assert diagnose(model, X, state=state).rows == diagnose(saved, X).rows != diagnose(model, X).rows
    assert everything(model) == before


def test_buffers_come_from_the_state_too():
    model, saved = convnet().eval(), convnet(seed=1)
    x = torch.randn(16, 2, 8, 8) * 4.0
    for _ in range(20):
        saved(x)
    saved.eval()
    assert diagnose(model, x, state=saved.state_dict()).rows == diagnose(saved, x).rows


def test_safetensors_and_folders_are_read(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    saved = mlp(seed=7)
    save(saved.state_dict(), tmp_path / "model.safetensors")
    for state in (tmp_path, tmp_path / "model.safetensors"):
        assert diagnose(mlp(), X, state=state).rows == diagnose(saved, X).rows


def test_a_wrapped_model_takes_a_plain_state():
    saved = mlp(seed=7)
    assert (
        diagnose(nn.DataParallel(mlp()), X, state=saved.state_dict()).rows[0].srank == diagnose(saved, X).rows[0].srank
    )


WRONG = {
    "another width": ({"0.weight": torch.zeros(5, 6)}, r"is of another model: '0.weight' has shape"),
    "a layer less": (mlp()[:3].state_dict(), "is of another model: it lacks 4.weight, 4.bias"),
    "a layer more": (
        nn.Sequential(*mlp(), nn.Linear(2, 2)).state_dict(),
        "is of another model: it has 5.weight, 5.bias, which",
    ),
    "other shapes": (
        nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 2)).state_dict(),
        r"'0.weight' has shape \(13, 6\) there, \(12, 6\) here",
    ),
    "two of them": (
        {"model": mlp().state_dict(), "ema": mlp().state_dict()},
        "holds several states of this model, at 'model/'",
    ),
    "no tensors": ({"epoch": 3}, "holds no tensors by name, but 'epoch'"),
    "nothing": ({}, "holds no tensors by name, but nothing"),
    "a number": (3, "state must be a file or a state dictionary, got 3"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_state_of_something_else_is_one_clear_error(kind):
    state, message = WRONG[kind]
    model = mlp()
    before = everything(model)
    with pytest.raises((TypeError, ValueError), match=message) as error:
        diagnose(model, X, state=state)
    assert "\n" not in str(error.value)
    assert everything(model) == before


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"state: there is no file '.*nothing.pt'"):
        diagnose(mlp(), X, state=tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"state: '.*text.pt'"):
        diagnose(mlp(), X, state=tmp_path / "text.pt")
    torch.save(mlp(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"holds objects beside tensors and plain values.* load it yourself"):
        diagnose(mlp(), X, state=tmp_path / "whole.pt")
    torch.save({"model": mlp().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "args.pt")
    with pytest.raises(ValueError, match="weights_only=False"):
        diagnose(mlp(), X, state=tmp_path / "args.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a state dictionary"):
        diagnose(mlp(), X, state=tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"the folder .* holds none of model.safetensors"):
        diagnose(mlp(), X, state=tmp_path)
