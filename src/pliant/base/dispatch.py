"""A dispatch mode, which sees every operation, without PyTorch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """PyTorch's own hides each operation from its compiler, and loads that for it: 800 modules, a second or two.

    What runs under this mode is not compiled: see `pliant.base.process.visible_kernels`.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
