"""An experiment that is whatever a test draws: fields, columns with their values, and what its state holds."""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from pydantic import create_model

from pliant.lab import DONE, RUNNING, RunConfig

DRAWN = {}  # number -> class, for the file that names it
NUMBERS = itertools.count()


def made(fields, advances, states):
    """The class of an experiment with two runs, which tells `advances` one by one and is in `states` after them."""

    class Learning:
        def __init__(self, count):
            self.count, self.steps_done, self.steps_total, self.loaded = count, 0, len(advances), None

        def statuses(self):
            return [DONE if self.steps_done == self.steps_total else RUNNING] * self.count

        def state_dict(self):
            return {"at": self.steps_done, "drawn": states[self.steps_done - 1]}

        def load_state_dict(self, state):
            self.steps_done, self.loaded = state["at"], state["drawn"]

    class Own:
        Config = create_model("Config", __base__=RunConfig, **fields)
        columns = {name: "drawn" for name in advances[0] if name != "run"}  # noqa: RUF012
        profiles = {"quick": "at once"}  # noqa: RUF012
        dies_at = None
        loaded = []  # noqa: RUF012

        def runs(self, profile):
            return [self.Config(method=method) for method in ("a", "b")]

        def stack_key(self, config, device):
            return 0

        def start(self, configs, context):
            return Learning(len(configs))

        def advance(self, state):
            if state.loaded is not None:
                type(self).loaded.append((state.steps_done, state.loaded))
                state.loaded = None
            if state.steps_done == type(self).dies_at:
                type(self).dies_at = None
                raise RuntimeError("asked to fail")
            state.steps_done += 1
            return advances[state.steps_done - 1]

        def figure(self, rows):
            raise NotImplementedError

    number = next(NUMBERS)
    DRAWN[number] = Own
    return number, Own


def same(one, other):
    """Equal in type, dtype, shape, memory order and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic | torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and axes(one) == axes(other)
            and bits(one) == bits(other)
        )
    return repr(one) == repr(other)


def axes(array):
    """From the widest stride to the narrowest, but for those along which there is nothing to stride."""
    strides = array.stride() if isinstance(array, torch.Tensor) else array.strides
    wide = [axis for axis, size in enumerate(array.shape) if size > 1]
    return sorted(wide, key=lambda axis: -abs(strides[axis])) if 0 not in array.shape else []


def bits(array):
    if isinstance(array, torch.Tensor):
        return array.contiguous().flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""
    return array.tobytes()
