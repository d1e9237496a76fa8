"""What belongs to the whole process and is borrowed for a moment: PyTorch's global random state and its switches of kernels.

Whoever borrows holds one lock, so that two threads cannot put back each other's; it is the same for all, since who looks at
a model borrows several. The lock binds this library alone. What another thread does meanwhile meets what is borrowed:

    random state    what it draws from the global generators (dropout, `torch.randn`) is drawn again once they are put
                    back; and if it draws while fresh units of a layer with a reset of its own are drawn, these come out
                    otherwise
    switches        its compiled models run eagerly while a model is looked at; where that model has recurrent layers, oneDNN
                    is off, where it has attention layers, their fast path for evaluation; `verify` computes attention as
                    matrix products

and its results stay right. Training that draws nothing from the global generators and compiles nothing stays the same to the bit
beside threads that trace, verify and diagnose other such models without recurrent layers.
"""

# pyright: reportPrivateUsage=false
# The switch of oneDNN has no public name in PyTorch.

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch
from torch import nn

_LENT = RLock()


@contextmanager
def random_state(seed: int | None = None, devices: Iterable[torch.device] = ()) -> Generator[None]:
    """The global generators of the CPU and of `devices` are put back afterwards; inside, the CPU's starts from `seed`."""
    with _LENT, torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # not those of devices, which nothing draws from
        yield


@contextmanager
def visible_kernels(model: nn.Module) -> Generator[None]:
    """Compiled models run eagerly, and recurrent and attention layers of `model` through kernels that show what they compute."""
    compiles = "torch._dynamo" in sys.modules  # otherwise nothing is compiled
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    attends = any(isinstance(module, _ATTENTION) for module in model.modules())
    with _LENT, torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        onednn, fast = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
        try:
            if recurrent:
                torch._C._set_mkldnn_enabled(False)  # its fused kernels show no product
            if attends:
                torch.backends.mha.set_fastpath_enabled(False)  # it passes by the hooks
            yield
        finally:
            if recurrent:
                torch._C._set_mkldnn_enabled(onednn)
            if attends:
                torch.backends.mha.set_fastpath_enabled(fast)


_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
