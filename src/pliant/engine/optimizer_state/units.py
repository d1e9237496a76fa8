"""Forgets what optimizers remember of replaced units, as `rules` says.

A replaced unit must not be moved by the momentum of its predecessor. Policies:

    fresh   the touched entries go on exactly as in an optimizer built at the moment of the reset, where that is
            possible; where it is not, as under "fill", and `notes` says so
    fill    gradient averages 0; gradient sizes the mean over the parameter's other entries
    zero    averages and sizes 0, the step counter that entries share goes on (small second moments under a large
            counter: up to 6.6 step sizes at once, with Adam's defaults)
    keep    nothing is touched (to replicate codes that did so)

What "fresh" takes beyond that:

    SGD, Muon, Adadelta, RMSprop, Rprop, Adagrad   nothing: they correct nothing by a count of steps
    Adam, AdamW, AdamWScheduleFree                 own counts for young entries (`pliant.engine.optimizer_state.young`)
    Adamax                                         the same for its one average; its size needs no correction
    NAdam, RAdam                                   filled: their steps depend on the shared count by more than a factor
    Adafactor (torch's, transformers')             filled: one row or column is part of every entry's scale
    RAdamScheduleFree                              filled, as RAdam
    ASGD                                           nothing: its decaying step size is the parameter's
    UPGD, ObGD, TRAC                               nothing, or filled sizes: what bounds or gates a step is of all parameters;
                                                   of TRAC, the optimizer inside forgets by its own rule

State of a broadcast shape (Adafactor's row and column sizes) is a unit's own only along an axis that is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.choices import one_of
from pliant.base.saving import entry
from pliant.engine.attached import home_of_parameters
from pliant.engine.optimizer_state.rules import check_keys, layers, rule_of, settings_of
from pliant.engine.optimizer_state.young import YoungEntries
from pliant.units.bound import BoundGroup
from pliant.units.entries import BoundSlice, SelectedUnits

Policy = Literal["fresh", "fill", "zero", "keep"]

_OTHERWISE = "Use optimizer_state='keep' to leave stale state in replaced units"


class OptimizerState:
    """Forgets the optimizer state of replaced units by one policy."""

    def __init__(self, policy: Policy = "fresh") -> None:
        self.policy: Policy = one_of("optimizer_state", policy, get_args(Policy))
        self._young: dict[Optimizer, YoungEntries] = {}  # of those that it has joined

    def bind(self, optimizers: Sequence[Optimizer], groups: Sequence[BoundGroup]) -> None:
        """Look every parameter up in its optimizer. Raises `ValueError` where one has none, or a rule is missing."""
        self._groups = list(groups)
        self._home = home_of_parameters(optimizers)
        self._slices: dict[BoundGroup, list[tuple[BoundSlice, Optimizer]]] = {group: [] for group in groups}
        used: dict[Optimizer, list[BoundSlice]] = {}
        for group in self._groups:
            for part in group.slices():
                self._check(group, part)
                for optimizer in self._optimizers(part):
                    self._slices[group].append((part, optimizer))
                    used.setdefault(optimizer, []).append(part)
        self._rules = {optimizer: rule_of(optimizer, _OTHERWISE) for optimizer in used if self.policy != "keep"}
        for optimizer, rule in self._rules.items():
            if rule.counted is not None and self.policy == "fresh":
                self._young[optimizer] = YoungEntries.of(optimizer, rule.counted)
                self._young[optimizer].join(optimizer, used[optimizer])

    def detach(self) -> None:
        """Leave the optimizers alone from here on."""
        for optimizer, young in self._young.items():
            young.leave(optimizer)
        self._young = {}

    @property
    def notes(self) -> list[str]:
        """Where "fresh" is not quite that, one line per optimizer; for the plan."""
        found: list[str] = []
        for optimizer, rule in self._rules.items() if self.policy == "fresh" else ():
            filled = "optimizer_state='fill': 'fresh' is not possible with its shared state" if rule.fills else ""
            text = "; ".join(filter(None, (filled, rule.note)))
            found += [f"{type(optimizer).__name__}: {text}"] if text else []
        return list(dict.fromkeys(found))

    def optimizer_of(self, parameter: nn.Parameter) -> Optimizer:
        return self._home[parameter]

    def _optimizers(self, part: BoundSlice) -> tuple[Optimizer, ...]:
        """The one that steps it, and those inside of it."""
        return layers(self._home[part.parameter])

    def _counting(self, part: BoundSlice) -> Optimizer | None:
        """The one for which entries count their own steps."""
        return next((each for each in self._optimizers(part) if each in self._young), None)

    # -- what can be forgotten ------------------------------------------------------------------------------------

    def _check(self, group: BoundGroup, part: BoundSlice) -> None:
        parameter = cast(nn.Parameter, part.parameter)
        home = self._home.get(parameter)
        if home is None:
            raise ValueError(
                f"group '{group.name}': no optimizer given steps '{part.part.parameter}'. Pass the optimizer that was built "
                f"from this model's parameters, or leave the group out"
            )
        if self.policy == "keep":
            return
        for optimizer in layers(home):
            check_keys(
                optimizer, rule_of(optimizer, _OTHERWISE), parameter, _OTHERWISE, f" for '{part.part.parameter}'"
            )
            self._check_settings(settings_of(optimizer, parameter))

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """At construction and, since a schedule may have changed them, at every reset."""
        if self.policy == "fresh" and settings.get("momentum") and settings.get("dampening"):
            raise ValueError(
                "optimizer_state='fresh' cannot restart SGD momentum with dampening (its first step is undampened). "
                "Use dampening=0, or optimizer_state='zero'"
            )

    # -- forgetting -----------------------------------------------------------------------------------------------

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """Forget what is remembered about the chosen units' entries, whose new weights are in place."""
        if self.policy == "keep":
            return
        for part, optimizer in self._slices[group]:
            state: dict[str, Any] = optimizer.state.get(part.parameter, {})
            if not state:
                continue
            parameter = cast(nn.Parameter, part.parameter)
            check_keys(optimizer, self._rules[optimizer], parameter, _OTHERWISE, f" for '{part.part.parameter}'")
            self._forget(optimizer, part, chosen, {k: v for k, v in state.items() if isinstance(v, Tensor)})
            if optimizer in self._young:
                self._young[optimizer].rejuvenate(optimizer, part, chosen)

    def _forget(self, optimizer: Optimizer, part: BoundSlice, chosen: SelectedUnits, state: dict[str, Tensor]) -> None:
        rule = self._rules[optimizer]
        settings = settings_of(optimizer, cast(nn.Parameter, part.parameter))
        self._check_settings(settings)
        if rule.value and not settings.get("train_mode", True):
            raise RuntimeError(
                f"'{part.part.parameter}' cannot be reset while {type(optimizer).__name__} is in eval mode, where "
                f"parameters hold averages: call optimizer.train() before training steps"
            )
        fill = self.policy == "fill" or (self.policy == "fresh" and rule.fills)
        for key, memory in state.items():
            if rule.lacks is not None and key in rule.lacks:
                memory = memory.unsqueeze(rule.lacks[key])
            own = None if key in rule.shared else _within(part, memory)
            if own is None:
                continue
            if key in rule.value:
                own.write(chosen, part.read(chosen), memory)
            elif rule.start is not None and key in rule.start:
                own.write(chosen, settings[rule.start[key]], memory)
            else:
                own.write(
                    chosen, _mean_of_others(own, chosen, memory) if fill and key not in rule.average else 0.0, memory
                )

    # -- saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Steps since the reset of each unit's entries, for every slice whose entries count their own."""
        return {
            f"{group.name}|{number}": self._young[optimizer].state_of(optimizer, part)
            for group in self._groups
            for number, part in enumerate(group.slices())
            if (optimizer := self._counting(part)) is not None
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """An empty one: no entry was ever reset."""
        for group in self._groups:
            for number, part in enumerate(group.slices()):
                optimizer = self._counting(part)
                if optimizer is not None:
                    self._young[optimizer].load(
                        optimizer, part, entry(state, f"{group.name}|{number}", {}) if state else None
                    )


def _within(part: BoundSlice, memory: Tensor) -> BoundSlice | None:
    """The slice as it lies in state of a broadcast shape; None if that has no axis by which units differ."""
    whole, held = tuple(part.parameter.shape), tuple(memory.shape)
    if held == whole:
        return part
    if len(held) != len(whole) or any(kept not in (1, size) for kept, size in zip(held, whole, strict=True)):
        raise ValueError(f"no rule for optimizer state of shape {held} for '{part.part.parameter}', which has {whole}")
    lead = 1 if part.stacked else 0
    full = part.part.shape or whole[lead:]
    seen = _broadcast_shape(full, whole[lead:], held[lead:])
    if any(seen[axis] != full[axis] for axis in part.part.axes):
        return None
    return BoundSlice(replace(part.part, shape=seen), memory, stacked=part.stacked)


def _broadcast_shape(split: tuple[int, ...], whole: tuple[int, ...], held: tuple[int, ...]) -> tuple[int, ...]:
    """`split`, which is `whole` with axes split, with 1 where `held` has 1 in place of an axis of `whole`."""
    found: list[int] = []
    for size, kept in zip(whole, held, strict=True):
        first = len(found)
        while prod(split[first : len(found)]) < size:
            found.append(split[len(found)])
        if kept != size:
            found[first:] = [1] * (len(found) - first)
    return (*found, *split[len(found) :])


def _mean_of_others(part: BoundSlice, chosen: SelectedUnits, memory: Tensor) -> Tensor:
    """Mean over the entries of units that stay and of no unit, for each chosen one, shaped to be written."""
    view = part.front(memory)
    left = torch.ones(view.shape[0], part.units, device=memory.device)
    left[chosen.where] = 0.0
    others = part.spread(left, rest=1.0).expand_as(view)
    axes = tuple(range(1, view.dim()))
    mean = torch.where(others > 0, view, 0.0).sum(axes, dtype=left.dtype) / others.sum(axes).clamp(min=1.0)
    return mean[chosen.runs].to(memory.dtype).view(-1, *[1] * (1 + len(part.row)))
