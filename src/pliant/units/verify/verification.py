"""Proof by trial that a plan's groups are correct: `UnitMap.verify`.

On a copy of the model (`probe`) each group goes through the tests of `trial`. The verdict:

    exact        redrawn units have no effect on the output once their outgoing weights are zero, and all tests hold
    approximate  the same while the statistics of a norm over the units are held constant; `moved` is the change through them
    vacuous      the example inputs prove nothing: no redraw changes the output
    wrong        a reset would change the model, or miss a part of a unit; `why` says which

A wrong group may pass where all signals are small. With a zero-initialized head every group passes, and in float32, with the
batch norms of a fresh GoogLeNet, 7 of 19 wrong ones did; `probe` prevents both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pliant.base.arguments import integer, patterns, whole
from pliant.base.tables import aligned
from pliant.units.bound import BoundGroup
from pliant.units.groups import UnitGroup
from pliant.units.models import check_examples, checked
from pliant.units.verify.probe import Probe
from pliant.units.verify.trial import Trial, Verified, covered


@dataclass(frozen=True)
class Verification:
    """One row for every group that was tried. Prints as a table."""

    rows: Sequence[Verified]

    @property
    def wrong(self) -> list[Verified]:
        """Groups whose reset would change the model, or leave a part of a unit behind."""
        return [row for row in self.rows if row.verdict == "wrong"]

    @property
    def vacuous(self) -> list[Verified]:
        """Groups about which the example inputs prove nothing."""
        return [row for row in self.rows if row.verdict == "vacuous"]

    def raise_if_wrong(self) -> None:
        """Raise `ValueError` with what failed, if anything did."""
        if self.wrong:
            found = "\n".join(f"  '{row.group.name}': {row.why}" for row in self.wrong)
            raise ValueError(f"verify: {len(self.wrong)} of {len(self.rows)} groups are wrong\n{found}")

    def __str__(self) -> str:
        head = ("group", "verdict", "units", "moved", "if missed", "alive", "")
        return "\n".join(aligned([head, *(row.cells() for row in self.rows)]))


def verify(
    groups: Sequence[UnitGroup],
    model: nn.Module,
    example_inputs: Any,
    *,
    only: Sequence[str] | None = None,
    rounds: int | None = None,
    seed: int = 0,
) -> Verification:
    """Try groups of units on a copy of `model`, which itself is left as it is.

    Args:
        groups: all groups that a method resets: a part that one group lacks may be in another.
        example_inputs: as for `trace`; two examples are enough, with more of them more units are alive.
        only: the names of those to try; all by default.
        rounds: sets of units that are redrawn where units cannot be exchanged, two forward passes each; by default as many as
            tell all units apart. Fewer are quicker and still find what is wrong with many units.

    The mode it is called in (`torch.no_grad`, `torch.inference_mode`, autocast) changes nothing.

    >>> import torch
    >>> from pliant.units import chain_groups
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> verify(chain_groups(net), net, torch.randn(4, 3)).rows[0].verdict
    'exact'
    """
    checked(model)
    check_examples("verify: example_inputs", example_inputs)
    rounds = None if rounds is None else whole("verify: rounds", rounds, 1)
    seed = integer("verify: seed", seed)
    tried = groups if only is None else [_named(groups, name) for name in patterns("verify: groups", only)]
    stacked = [group.name for group in tried if group.stacked]
    if stacked:
        raise ValueError(
            f"verify: groups of stacked networks (runs=...) cannot be tried: {stacked}. Verify one network alone"
        )
    probe = Probe(model, example_inputs, seed=seed)
    bound = {group.name: BoundGroup(group, probe.model) for group in groups}
    absorbers = {name: group.absorbers() for name, group in bound.items()}  # which must be trained
    probe.model.requires_grad_(False)
    ours = covered(list(bound.values()))
    return Verification(
        [
            Trial(probe, bound[group.name], ours, absorbers[group.name], rounds=rounds, seed=seed).verified()
            for group in tried
        ]
    )


def _named(groups: Sequence[UnitGroup], name: str) -> UnitGroup:
    found = [group for group in groups if group.name == name]
    if not found:
        raise ValueError(f"verify: no group is named '{name}'; groups: {', '.join(group.name for group in groups)}")
    return found[0]
