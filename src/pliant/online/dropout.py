# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Dropout of hidden units, for one example at a time.

    h[i] <- m[i] h[i] / (1 - p),     m[i] = 0 with probability p, else 1

and the slope likewise, so that no gradient flows through a unit that is left out. Unit i of step t is left out if
number t units + i of the stream (seed, "dropout") is below p, hidden units counted layer after layer.

Source: Srivastava et al., JMLR 2014, scaled while learning as in `torch.nn.Dropout`. With dropout a step predicts twice:
with every unit, for the reported loss and correctness, then with the remaining units, from which it learns and whose
activity continual backpropagation records. Predictions use every unit.
"""

from __future__ import annotations

from pliant.online.arithmetic import uniform
from pliant.online.compiling import compiled


@compiled
def drop(rate, key, place, h, slope):
    """Leave units out, by the numbers from `place` on, and scale the others; (units,)."""
    scale = h.dtype.type(1.0 / (1.0 - rate))
    zero = h.dtype.type(0)
    for i in range(h.size):
        kept = scale if uniform(key, place + i) >= rate else zero
        h[i] *= kept
        slope[i] *= kept
