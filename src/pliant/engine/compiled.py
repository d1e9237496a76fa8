"""Small networks on the CPU: what a step costs there is the number of calls, so Numba, where it is installed, makes few of them.

    reading a forward           one call per tap           `kernels.add_rows`    in the place of `Reader`'s sums
    averaging after a step      one call for all groups    `kernels.average`     ... of `RunningUtility.update`
    young entries, with Adam    two calls per average      `kernels.move`, ...   ... of `DenseUpdate.move`

The plain code is the oracle: it is what runs where anything is out of the ordinary, step by step, on the same tensors, and the
results are equal to rounding. In one call go contiguous float32 on the CPU, single networks (no stack of runs, no mask, no ranks
that share a model), groups of which each feeds one matrix (next units, units), and the utility "contribution".

Numba is loaded when a method is attached to such a network, never by `import pliant`: a second, and four the first time on a
machine, when it compiles `kernels` and keeps the code on disk. `PLIANT_NO_NUMBA=1` keeps to the plain code. So does a Numba that
cannot be loaded, with one warning.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from pliant.engine.activity import Reader
from pliant.engine.score import RunningUtility
from pliant.engine.statistics import ActivityStatistics
from pliant.engine.utility import UTILITIES

log = logging.getLogger("pliant")

LARGEST = 2**18  # entries of a matrix, or of a batch of activity, up to which a loop on one thread is the faster
_PLAIN = {Tensor, nn.Parameter}


def kernels() -> Any:
    """The module of compiled functions; None where there is no Numba, or none is wanted."""
    return None if os.environ.get("PLIANT_NO_NUMBA", "") not in ("", "0") else _loaded()


@cache
def _loaded() -> Any:
    if find_spec("numba") is None:
        return None
    try:
        if import_module("numba").config.DISABLE_JIT:
            return None
        return import_module("pliant.engine.kernels")
    except Exception as error:  # whatever is wrong with it, training does not depend on it
        log.warning(
            "Numba is installed and cannot be used (%s: %s): methods run without it", type(error).__name__, error
        )
        return None


def lies_plainly(tensor: Tensor) -> bool:
    """Whether its float32 numbers lie in the memory of the CPU, one after another from `data_ptr()` on."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


class RowSums:
    """Sums over the rows of one reader's activity, (examples, entries), into its part of the statistics."""

    def __init__(self, kernels: Any, reader: Reader) -> None:
        self._add, self._reader = kernels.add_rows, reader
        self._entries, self._most = reader.entries, LARGEST // reader.entries
        self._scratch = np.empty(reader.entries)
        self._sums: object = None  # those that the addresses are of
        self._mean = self._magnitude = 0

    def __call__(self, values: Tensor) -> int:
        """How many it has summed; 0 if it could not."""
        if values.dim() != 2:
            return 0
        rows, entries = values.shape
        if (
            rows > self._most
            or entries != self._entries
            or is_functorch_wrapped_tensor(values)
            or not lies_plainly(values)
        ):
            return 0
        if self._reader.sums is not self._sums and not self._find():
            return 0
        self._add(values.data_ptr(), rows, entries, self._mean, self._magnitude, self._scratch)
        return rows

    def _find(self) -> bool:
        """The addresses of the sums; False where they are not on the CPU."""
        sums = self._reader.sums
        if not all(map(lies_plainly, sums.values())):
            return False
        self._sums, self._mean = sums, sums["mean"].data_ptr()
        self._magnitude = sums["magnitude"].data_ptr() if self._reader.reads_magnitude else 0
        return True


class InOneCall:
    """The update of one score after a step of all groups of some statistics."""

    def __init__(self, kernels: Any, statistics: ActivityStatistics, score: RunningUtility) -> None:
        self._average = kernels.average
        self._statistics, self._score = statistics, score
        self._weights = [magnitude.part.parameter for magnitude in statistics.outgoing]
        self._addresses = [0] * len(self._weights)  # those in the table
        spans = [statistics.span(group) for group in statistics.groups]
        rows = [
            [0, *weight.shape, span.units.start, all(each.tap.nonnegative for each in statistics.readers_of(group))]
            for weight, span, group in zip(self._weights, spans, statistics.groups, strict=True)
        ]
        self._table = np.array(rows, dtype=np.int64)
        self._scratch = np.empty(max(weight.shape[1] for weight in self._weights))

    def update(self) -> bool:
        """Whether it could: `statistics.pop_means`, and `score.update` with these."""
        statistics = self._statistics
        examples = statistics.examples_of_all()
        if examples is None or not statistics.sums.is_cpu:
            return False
        for row, weight in enumerate(self._weights):
            address = weight.data_ptr()
            if address != self._addresses[row] or not weight.is_contiguous() or weight.dtype is not torch.float32:
                if not lies_plainly(weight):
                    return False
                self._addresses[row] = self._table[row, 0] = address
        kept = self._score.kept(statistics)
        self._average(
            self._table,
            statistics.units,
            statistics.sums.data_ptr(),
            statistics.sums.shape[0],
            examples,
            self._score.decay,
            kept.utility.data_ptr(),
            kept.mean.data_ptr(),
            self._scratch,
        )
        kept.count_step()
        statistics.clear_readers()
        return True


def in_one_call(statistics: ActivityStatistics, score: object) -> InOneCall | None:
    """The compiled update of these groups, whose readers it tells to sum in compiled code too; None where there is none."""
    if not (
        type(score) is RunningUtility
        and score.rule is UTILITIES["contribution"]
        and statistics.runs == 1
        and not statistics.masked
        and statistics.one_column_each
        and statistics.sums.is_cpu
        and statistics.sums.dtype is torch.float32
        and all(
            each.axis in (-1, 1) and each.tap.dims in (None, 2) and each.forwards is None for each in statistics.readers
        )
    ):
        return None
    simple = len(statistics.outgoing) == len(statistics.groups) and all(
        magnitude.is_matrix
        and magnitude.part.part.axes == (1,)
        and magnitude.part.parameter.numel() <= LARGEST
        and lies_plainly(magnitude.part.parameter)
        for magnitude in statistics.outgoing
    )
    found = kernels() if simple else None
    if found is None:
        return None
    for reader in statistics.readers:
        reader.sum_rows = RowSums(found, reader)
    return InOneCall(found, statistics, score)
