"""Ranks of a data-parallel model: all of them must see the same statistics, and draw the same.

A method writes weights outside of the gradient. Every rank does so by itself, from the same sums (over all ranks'
batches, whatever their sizes) and the same seed, so the ranks stay equal to the bit without another message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pliant.base.arguments import is_a, shown
from pliant.engine.statistics import ActivityStatistics
from pliant.units.bound import NamedModel
from pliant.units.models import wrappers_of

_T = TypeVar("_T")


class Ranks:
    """The ranks that share a model's statistics; just this one if `process_group` says so or nothing is distributed.

    Raises `ValueError` for a model that is sharded, and for one of several ranks that is not wrapped.
    """

    def __init__(self, model: nn.Module, process_group: dist.ProcessGroup | Literal["auto"] | None) -> None:
        wrapper = _wrapper(model)
        refuse_shards(model)
        self._may_differ = wrapper is not None and cast(Any, wrapper).find_unused_parameters
        self._group: dist.ProcessGroup | None = None
        if isinstance(process_group, str) and process_group == "auto":
            if wrapper is not None:
                self._group = cast(dist.ProcessGroup, wrapper.process_group)
            elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise ValueError(
                    f"torch.distributed runs {dist.get_world_size()} ranks, and the model is no DistributedDataParallel: wrap it "
                    f"first, or say process_group=None if every rank trains a network of its own"
                )
        elif process_group is not None:
            if not (dist.is_available() and is_a(process_group, dist.ProcessGroup)):
                raise TypeError(f"process_group must be 'auto', None or a process group, got {shown(process_group)}")
            self._group = process_group

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that the others follow."""
        return self._group is None or dist.get_rank(self._group) == 0

    def agree_on(self, values: Sequence[_T]) -> list[_T]:
        """Rank 0's."""
        if self._group is None:
            return list(values)
        agreed: list[Any] = [list(values)]
        dist.broadcast_object_list(agreed, group=self._group, group_src=0)
        return cast(list[_T], agreed[0])

    def gather(self, value: _T) -> list[_T]:
        """That of every rank."""
        if self._group is None:
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(gathered, value, group=self._group)
        return cast(list[_T], gathered)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the ranks of each of these tensors, of one shape on all of them."""
        if self._group is None:
            return list(tensors)
        means = [each.clone() for each in tensors]
        for each in means:
            dist.all_reduce(each, group=self._group)
            each /= dist.get_world_size(self._group)
        return means

    def share(self, statistics: ActivityStatistics) -> None:
        """Add up what the ranks saw."""
        if self._group is not None:
            statistics.share_between_ranks(self._group, agree=self._may_differ)


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    return next((each for _, each in wrappers_of(model) if isinstance(each, DistributedDataParallel)), None)


def refuse_shards(model: nn.Module) -> None:
    """Raise `ValueError` for a model of whose weights a rank may hold a part."""
    for name, module in NamedModel(model).modules.items():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & {"FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}:
            raise ValueError(
                f"'{name}' is sharded ({type(module).__name__}): units need whole rows and columns on every rank. Use "
                f"DistributedDataParallel"
            )
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise ValueError(
                f"'{name}' is a DTensor, of which a rank may hold a part: units need whole rows and columns on every rank. Use "
                f"DistributedDataParallel"
            )
