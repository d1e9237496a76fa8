"""A quick trial of a whole plan, as a check of the tracer: a few forwards of a float64 copy find wrong groups.

    exchange   a unit that is complete can change places with its neighbor: incoming, own, statistics and outgoing entries of
               units 2k and 2k+1 of every group are swapped at once, and the outputs agree to 1e-9
    cut        of half of the groups at a time, half of the units have their outgoing weights zeroed and their incoming ones
               redrawn: outputs are the same to the last bit (norms over units hold their statistics meanwhile)

An entry that the plan lacks is not exchanged, and a consumer that it lacks changes at a redraw. If a test fails, the groups are
bisected and the tests of `verify` decide, because constants per unit (a table of frequencies, a mask) make correctly planned
units unexchangeable. Neighbors lie in one group of a grouped convolution or norm, if its size is even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.groups import UnitGroup
from pliant.units.models import first, prefix_of, unwrapped
from pliant.units.verify.bench import Bench, covered
from pliant.units.verify.probe import Probe, close, same
from pliant.units.verify.trial import Trial

LARGEST = 100_000_000  # parameters; a float64 copy of a larger model is not made unasked
FEW = 2  # examples that are enough
_Groups = Sequence[BoundGroup]


@dataclass(frozen=True)
class Tried:
    """The result of a trial: wrong groups by name, with the reason; or why the trial could not be made."""

    wrong: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str | None = None


def tried(groups: Sequence[UnitGroup], model: nn.Module, example_inputs: Any, *, seed: int = 0) -> Tried:
    """The groups of a plan that a quick trial finds wrong; the model itself is not changed.

    Skipped, with a note, for models of more than 1e8 parameters and those of which no repeatable float64 copy can be made.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    if not groups:
        return Tried()
    if count > LARGEST:
        return Tried(
            note=f"not tried: the model has {count / 1e6:.0f} million parameters; plan.verify(...) tries groups of it"
        )
    try:
        probe = _probe(unwrapped(model), example_inputs, seed)
        with torch.no_grad():
            return Tried(dict(_WholePlan(groups, probe, prefix_of(model), seed).wrong()))
    except Exception as error:  # whatever the copy raises: a check must not stop training
        said = str(error).partition("\n")[0] or type(error).__name__
        return Tried(note=f"not tried: {said}")


def _probe(model: nn.Module, example_inputs: Any, seed: int) -> Probe:
    """On a few of the examples, where the model takes fewer."""
    examples = cast(list[Any], example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    try:
        return Probe(model, [first(FEW, example) for example in examples], seed=seed)
    except RuntimeError:
        return Probe(model, example_inputs, seed=seed)


class _WholePlan:
    def __init__(self, groups: Sequence[UnitGroup], probe: Probe, prefix: str, seed: int) -> None:
        self.probe, self.seed = probe, seed
        self.generator = torch.Generator().manual_seed(seed)
        names = NamedModel(probe.model, prefix=prefix)
        self.groups = [BoundGroup(group, names) for group in groups]
        self.absorbers = {group: group.absorbers() for group in self.groups}  # which must be trained
        probe.model.requires_grad_(False)
        self.ours = covered(self.groups)
        self.benches = {group: Bench(probe, group, self.ours, self.generator) for group in self.groups}

    def wrong(self) -> Iterator[tuple[str, str]]:
        approximate = any(group.spec.kind == "approximate" for group in self.groups)
        suspects = dict.fromkeys(_guilty(self.groups, self.exchange_shows))
        with self.probe.held_norms() if approximate else nullcontext():
            for half in _halves([group for group in self.groups if group not in suspects]):
                suspects.update(dict.fromkeys(_guilty(half, self.cut_shows)))
        for group in suspects:
            found = Trial(self.probe, group, self.ours, self.absorbers[group], seed=self.seed).verified()
            if found.verdict == "wrong":
                yield group.name, found.why

    def exchange_shows(self, groups: _Groups) -> bool:
        """Whether the outputs notice that neighbors changed places."""
        for group in groups:
            self.benches[group].exchange(_neighbors(group.units))
        return not close(self._outputs_and_restore(groups), self.probe.start)

    def cut_shows(self, groups: _Groups) -> bool:
        """Whether the outputs notice that half of the units, cut off, are others."""
        units = {
            group: torch.randperm(group.units, generator=self.generator)[: -(-group.units // 2)] for group in groups
        }
        for group, some in units.items():
            self.benches[group].cut(group.outgoing, some)
        before = self.probe.outputs()
        for group, some in units.items():
            self.benches[group].redraw(some)
        for group, some in units.items():  # again: what one unit reads another is read by
            self.benches[group].cut(group.outgoing, some)
        return not same(before, self._outputs_and_restore(groups))

    def _outputs_and_restore(self, groups: _Groups) -> list[Tensor]:
        outputs = self.probe.outputs()
        for group in groups:
            self.benches[group].restore()
        return outputs


def _neighbors(units: int) -> Tensor:
    """An order in which units 2k and 2k + 1 have changed places; a last one without a neighbor stays.

    >>> _neighbors(5).tolist()
    [1, 0, 3, 2, 4]
    """
    order = torch.arange(units)
    return torch.where((order ^ 1) < units, order ^ 1, order)


def _halves(groups: _Groups) -> list[list[BoundGroup]]:
    """log2(groups) + 2 sets: any two groups are told apart by one, and every group is in some half and in the whole."""
    numbered = list(enumerate(groups))
    halves = [[group for number, group in numbered if number >> bit & 1] for bit in range(len(groups).bit_length())]
    return [*halves, [group for number, group in numbered if not number & 1], list(groups)]


def _guilty(groups: _Groups, shows: Callable[[_Groups], bool]) -> list[BoundGroup]:
    """The groups of which `shows` is true, found by halving; all of them where it is so only together."""
    if not groups or not shows(groups):
        return []
    if len(groups) == 1:
        return [*groups]
    middle = len(groups) // 2
    return [*_guilty(groups[:middle], shows), *_guilty(groups[middle:], shows)] or [*groups]
