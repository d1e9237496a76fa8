"""Parameters that stay at one place in memory: NumPy reads them there to act, Adam and the methods write to them there.

So a module of these is neither copied nor pickled, changes neither dtype nor device, and detects that a parameter was moved, as
`parameter.data = ...` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Self

import torch
from torch import Tensor, nn


class InPlace(nn.Module):
    """Raises `TypeError` instead of being copied or pickled, or of changing dtype or device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by `.to()` and `.double()`. `fn` is tried on an empty tensor first, so that a refusal changes nothing."""
        here = next(self.parameters())
        there = fn(torch.empty(0, dtype=here.dtype, device=here.device))
        if (there.dtype, there.device) != (here.dtype, here.device):
            raise TypeError(
                f"{type(self).__name__} is {here.dtype} on {here.device}, as are Adam and the rollout of its agents, and cannot "
                f"become {there.dtype} on {there.device}: build a PPO with the dtype wanted; it learns on the CPU"
            )
        super()._apply(fn, recurse)
        return self

    def __reduce__(self) -> NoReturn:  # `copy` and `pickle` both come here
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: NumPy sees its parameters where they lie in memory. Save the "
            f"agents' state_dict(), and load it into a new PPO"
        )
