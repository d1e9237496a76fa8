"""The check that a saved state fits the agents that are to load it, made before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pliant.rl.ppo.settings import RENAMED

StateDict = Mapping[str, Any]


def refuse_other_state(state: StateDict, here: StateDict) -> None:
    """Raise `ValueError` where two states differ in what cannot change while agents learn."""
    if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"a {type(state).__name__} is no state of a PPO: load what its state_dict() gave")
    missing = [name for name in here if name not in state]
    if missing:
        raise ValueError(f"this is no state of a PPO: it has no {', '.join(missing)}")
    for what, saved, ours in _compared(state, here):
        if saved != ours:
            raise ValueError(f"this state was saved with {what} {saved}; here it is {ours}")


def _compared(state: StateDict, here: StateDict) -> Iterator[tuple[str, Any, Any]]:
    """Name, value in the saved state, value here; the format first, because it says how to read the rest."""
    yield "format", state["format"], here["format"]
    settings: StateDict = state["settings"]
    yield "settings", *_differing({RENAMED.get(name, name): settings[name] for name in settings}, here["settings"])
    yield "seeds", state["seeds"], here["seeds"]
    yield "replacement of units", *_replacing(state, here)
    saved: Mapping[str, Tensor] = state["parameters"]
    ours: Mapping[str, Tensor] = here["parameters"]
    for name in sorted({*saved, *ours}):
        yield f"parameter {name}", _shape(saved.get(name)), _shape(ours.get(name))
        yield "dtype", saved[name].dtype, ours[name].dtype
    yield "copies", state["acting"]["lengths"].shape[1], here["acting"]["lengths"].shape[1]


def _replacing(state: StateDict, here: StateDict) -> tuple[str, str]:
    """None is no method, and a method's state may be empty; earlier states were empty where there was none."""
    saved, ours = state["method"], here["method"]
    if saved == {} and ours != {}:
        saved = None
    return "off" if saved is None else "on", "off" if ours is None else "on"


def _differing(saved: StateDict, ours: StateDict) -> tuple[str, str]:
    """The settings that differ, as text: saved, and here."""
    names = [name for name in {**ours, **saved} if saved.get(name, "absent") != ours.get(name, "absent")]
    told = [", ".join(f"{name}={each.get(name, 'absent')!r}" for name in names) for each in (saved, ours)]
    return told[0], told[1]


def _shape(parameter: Tensor | None) -> str:
    return "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
