"""What a user's function builds for an examination: the network, its loss, a loader, and the optimizer, if it says so.

    (model, loss, loader)  or  (model, loss, loader, optimizer)                 loader: a DataLoader, or a pair (x, y)
    {"model": ..., "loss": ..., "loader": ..., "optimizer": ...}      loss and optimizer may be left out, or None

The network is fresh as it is built; a checkpoint's numbers come into it afterwards, and the state of the optimizer, where the
checkpoint holds one. So the function itself is what builds fresh networks to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn

from pliant.base.arguments import is_a
from pliant.base.choices import one_of, shown
from pliant.diagnostics.checkpoints import with_state
from pliant.diagnostics.probe.optimizers import Maker

PARTS = ("model", "loss", "loader", "optimizer")
STATES = ("optimizer", "optimizer_state_dict", "optimizer_state", "optimizer_states", "optim", "opt")  # of a checkpoint
STEP_SIZE = 1e-3  # of Adam, where nothing is said


@dataclass(frozen=True)
class Subject:
    model: nn.Module
    loss: Any
    data: tuple[Any, ...]  # x, or x and y
    optimizer: Any
    fresh: Callable[[], nn.Module]
    notes: tuple[str, ...]


def subject(build: Callable[[], Any], checkpoint: str | Path) -> Subject:
    """The parts that `build()` gives, with a checkpoint's numbers. Raises `TypeError` or `ValueError` where they do not fit."""
    parts = _parts(build())
    model, notes = parts["model"], list[str]()
    optimizer = parts.get("optimizer")
    if optimizer is None:
        optimizer = cast(Maker, _adam)
        notes.append(f"no optimizer was given: probed with Adam, step size {STEP_SIZE:g}")
    model.load_state_dict(with_state(model, checkpoint, "checkpoint").state_dict())
    notes += _load_optimizer(optimizer, Path(checkpoint))
    data = cast(tuple[Any, ...], parts["loader"]) if isinstance(parts["loader"], tuple) else (parts["loader"],)
    return Subject(model, parts.get("loss"), data, optimizer, lambda: _parts(build())["model"], tuple(notes))


def _parts(built: Any) -> dict[str, Any]:
    found: dict[str, Any]
    if isinstance(built, Mapping):
        found = dict(cast(Mapping[str, Any], built))
        for name in found:
            one_of("part", name, PARTS)
    elif isinstance(built, tuple | list) and 3 <= len(cast(tuple[Any, ...], built)) <= 4:
        found = dict(zip(PARTS, cast(tuple[Any, ...], built), strict=False))
    else:
        raise TypeError(
            f"the function gave {shown(cast(object, built))}; it is to give (model, loss, loader), or these and an optimizer"
        )
    for name in ("model", "loader"):
        if found.get(name) is None:
            raise ValueError(f"the function gave no {name}: it is to give (model, loss, loader), or a mapping of these")
    if not is_a(found["model"], nn.Module):
        raise TypeError(f"the function gave {shown(found['model'])} for a model, not a torch.nn.Module")
    return found


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=STEP_SIZE)


def _load_optimizer(optimizer: Any, path: Path) -> list[str]:
    """Bring the optimizer's state from a checkpoint, if it holds one; what was done, in words."""
    if not hasattr(optimizer, "load_state_dict") or not path.is_file() or path.suffix == ".safetensors":
        return []
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError):
        return []
    held: Mapping[str, Any] = cast(Mapping[str, Any], saved) if isinstance(saved, Mapping) else {}
    state: Any = next((held[name] for name in STATES if name in held), None)
    if isinstance(state, list | tuple) and state:  # as Lightning keeps them
        state = cast(list[Any], state)[0]
    if not isinstance(state, Mapping):
        known = ", ".join(STATES)
        return [f"the checkpoint holds no optimizer state (under {known}): probed without"]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint: its optimizer state does not fit the optimizer: {error}") from None
    return []
