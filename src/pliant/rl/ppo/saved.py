"""Whether a saved state is of the agents that are to go on from it: asked before anything of it is taken in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def refuse_other_state(state: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `ValueError` where two states differ in what cannot change while agents learn."""
    for what, saved, ours in _compared(state, here):
        if saved != ours:
            raise ValueError(f"this state was saved with {what} {saved}; here it is {ours}")


def _compared(state: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What, as saved, and as it is here; the format first, for the rest is read by it."""
    for what in ("format", "settings", "seeds"):
        yield what, state[what], here[what]
    saved: Mapping[str, Tensor] = state["parameters"]
    ours: Mapping[str, Tensor] = here["parameters"]
    for name in sorted({*saved, *ours}):
        yield f"parameter {name}", _shape(saved.get(name)), _shape(ours.get(name))
        yield "dtype", saved[name].dtype, ours[name].dtype
    yield "copies", state["acting"]["lengths"].shape[1], here["acting"]["lengths"].shape[1]


def _shape(parameter: Tensor | None) -> str:
    return "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
