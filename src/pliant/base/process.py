"""Temporary changes of state that belongs to the whole process: PyTorch's global random state and its kernel settings.

One lock guards all of them, so that two threads cannot restore each other's settings. The lock binds this library alone. Another
thread that runs meanwhile is affected as follows:

    random state      numbers that it draws from the global generators (dropout, `torch.randn`) are drawn again after the
                      generators are restored; if it draws while fresh units of a layer with its own `reset_parameters` are
                      drawn, these units differ
    kernel settings   its compiled models run eagerly while a model is traced, verified or diagnosed; if that model has recurrent
                      layers, oneDNN is off; if it has attention layers, their fast path for evaluation is off; `verify` computes
                      attention as matrix products

Its results stay correct. Training that draws nothing from the global generators and compiles nothing stays the same to the bit
beside threads that trace, verify and diagnose other such models without recurrent layers.
"""

# pyright: reportPrivateUsage=false
# The switch of oneDNN has no public name in PyTorch.

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import Any, cast

import numpy as np
import torch
from torch import nn

_LENT = RLock()


@contextmanager
def random_state(seed: int | None = None, devices: Iterable[torch.device] = ()) -> Generator[None]:
    """Restores PyTorch's global generators of the CPU and of `devices` afterwards; inside, the CPU's starts from `seed`."""
    with _LENT, torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # not those of devices, from which nothing is drawn
        yield


@contextmanager
def other_random_states() -> Generator[None]:
    """Restores the global generators of Python and NumPy afterwards: models draw from them too."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def random_numbers() -> tuple[object, ...]:
    """The state of the global generators, to compare."""
    _, arrays, *place = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), arrays.tobytes(), tuple(place)


@contextmanager
def visible_kernels(model: nn.Module) -> Generator[None]:
    """Runs compiled models eagerly, and recurrent and attention layers of `model` with kernels whose products a hook can see."""
    compiles = "torch._dynamo" in sys.modules  # otherwise nothing is compiled
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    attends = any(isinstance(module, _ATTENTION) for module in model.modules())
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    with (
        _LENT,
        torch.compiler.set_stance("force_eager") if compiles else nullcontext(),
        # its optimizer fuses operations
        cast(Any, torch.jit).optimized_execution(False) if scripted else nullcontext(),
    ):
        onednn, fast = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
        try:
            if recurrent:
                torch._C._set_mkldnn_enabled(False)  # its fused kernels hide the products
            if attends:
                torch.backends.mha.set_fastpath_enabled(False)  # it bypasses hooks
            yield
        finally:
            if recurrent:
                torch._C._set_mkldnn_enabled(onednn)
            if attends:
                torch.backends.mha.set_fastpath_enabled(fast)


_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
