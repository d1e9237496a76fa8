"""One engine for every method that resets hidden units.

    score     how useful is each unit?           select    which ones go, and when?
    redraw    what takes their place?            forget    what does the optimizer keep of them?

`UnitReset(score, select, redraw, forget)` runs after each optimizer step, in phases over all groups: hand over
means; redraw incoming weights and own affine; zero outgoing weights; clear gradients; forget. So the weights
where two replaced units cross end at zero. Continual backpropagation, ReDo and the others are presets of the
four parts (`pliant.methods`), not code paths.

Source: Dohare et al., Nature 632 (2024), algorithm 1, for the loop; the order of phases is ours: layer by layer, as
released, the fresh rows of one layer overwrite the zeros that the layer before it has just written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from inspect import getattr_static, signature
from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import called_with, is_a, known_names, shown
from pliant.base.saving import entry
from pliant.engine import interfaces
from pliant.engine.attached import Attached, Optimizers, each_of, inner, seeds_of_runs, uncompiled
from pliant.engine.compiled import in_one_call
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import Feedback, written
from pliant.engine.interfaces import Forget, Redraw, Score, Select
from pliant.engine.planning import Where, check_alone, check_groups, planned, warnings_of
from pliant.engine.redraw import state_follows
from pliant.engine.replacement import Replaced, Replacement
from pliant.engine.same_model import SameModel
from pliant.engine.statistics import ActivityStatistics, home_of_groups, side_by_side
from pliant.engine.successors import state_of_successor
from pliant.engine.taken_steps import LateSteps, Outcome
from pliant.streams import stream_key
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import SelectedUnits
from pliant.units.forwards import told
from pliant.units.hooks import attach, follow
from pliant.units.map import UnitMap
from pliant.units.models import checked, unwrapped

log = logging.getLogger("pliant")

FORMAT = 2  # 1 lacked what `_of_today` adds


class UnitReset(Attached):
    """Resets hidden units of `model` after each step of `optimizer`.

    Args:
        model: the network that trains.
        optimizer: what steps it, or several (each parameter is looked up in its own, the first that lists it); a group's
            clock is the optimizer of its first incoming weight.
        score, select, redraw, forget: the four parts, see `pliant.engine.interfaces`.
        where: `example_inputs=x` or `groups=...`, and the rest of `pliant.engine.planning.Where`.

    Raises `ValueError` or `TypeError` if a group does not fit the model, if no optimizer steps it or if a method of the same
    kind already resets it after that optimizer's steps, and `RuntimeError` at the first step if the tapped modules never ran
    in training mode, and at one before which a copy of the weights was fed back to units just replaced (`feedback`).
    """

    @torch.inference_mode(False)  # what is kept from step to step must not be a tensor of that mode
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        score: Score,
        select: Select,
        redraw: Redraw,
        forget: Forget,
        **where: Unpack[Where],
    ) -> None:
        known_names(type(self).__name__, where, [*Where.__annotations__, *signature(type(self)).parameters])
        super().__init__(each_of(optimizer), attach=where.get("attach", True))
        _check_parts(score=score, select=select, redraw=redraw, forget=forget)
        self.score, self.select, self.redraw, self.forget = score, select, redraw, forget
        if redraw.hand_over_mean and not score.keeps_means:
            raise ValueError(f"{type(score).__name__} keeps no means to hand over; use Redraw(hand_over_mean=False)")
        _check_observed(score, select)
        names, mask, reads_activity = NamedModel(checked(model)), where.get("mask"), bool(score.reads)
        self._ranks = Ranks(model, where.get("process_group", "auto"))
        units = planned(model, names, self.optimizers, self._ranks, where, activity=reads_activity)
        self.groups = [BoundGroup(spec, names) for spec in units.groups]
        check_groups(self.groups, activity=reads_activity)
        if self._steps_by_itself:  # each would reset the units at its own rate
            check_alone(type(self).__name__, self.groups, [group for each in self._beside() for group in each.groups])
        if mask is not None and self.groups[0].spec.stacked:
            raise ValueError("mask: not for a stack of runs, which share one count of examples")
        self._same = SameModel(model, names, self.groups, units.unreached, self._ranks, hand_over=redraw.hand_over_mean)
        self._replaced = Replaced({group.name: group.runs for group in self.groups})
        self.seeds = self._ranks.agree_on(seeds_of_runs(where.get("seed"), self.groups[0].runs))
        # keyed: a generator seeded with the seed itself would repeat what the model was initialized with
        self.generators = [torch.Generator().manual_seed(stream_key(each, "fresh units")) for each in self.seeds]
        self.all_statistics = side_by_side(self.groups, names, self.optimizers, masked=mask is not None)
        self._home = home_of_groups(self.all_statistics)
        self._on_replace = where.get("on_replace")
        if self._on_replace is not None:
            called_with("on_replace", self._on_replace, "replacement")
        self._feedback = Feedback()
        self._late = LateSteps[ActivityStatistics, BoundGroup]()  # owed: groups whose units are yet to be chosen
        self.score.bind(self.all_statistics)
        self.select.bind(self.groups, self.seeds)
        self._measures = {  # of each group, what computes the ages and the scores of its units
            group: (partial(self._home[group].age_of, group), partial(score.value, group, self.generators))
            for group in self.groups
        }
        self.redraw.bind(names, self.groups, self.optimizers, self._ranks.agree_on)
        readers = [reader for statistics in self.all_statistics for reader in statistics.readers]
        forwards = told(unwrapped(model), mask, [*readers, *redraw.recorders])
        rows = [group.plan_row(hand_over=redraw.hand_over_mean) for group in self.groups]
        with self._or_nothing_left():
            self.forget.bind(self.optimizers, self.groups)
            self._notes = [*units.notes, *self.forget.notes, *warnings_of(units)]
            self.plan = self._with_fresh(UnitMap(rows, units.skipped, unreached=units.unreached))
            for statistics in self.all_statistics:
                self._handles.extend(statistics.listen(score.reads))
            self._handles.extend(map(attach, redraw.recorders))
            self._handles.extend(() if forwards is None else follow(forwards))
            self._in_one_call = {each: in_one_call(each, score) for each in self.all_statistics}
            self._start = [statistics.state_dict() for statistics in self.all_statistics]
            self._follow_steps()

    # -- one step ----------------------------------------------------------------------------------------------

    @uncompiled
    @torch.no_grad()
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Replace the units that are due. Runs after `optimizer.step()`; by itself unless `attach=False`.

        A step that a GradScaler leaves out is none, see `taken_steps`. Where only a CUDA device knows, units due by a
        step are chosen as they would be at once and replaced after the next one.
        """
        self._step(self.optimizers if optimizer is None else (inner(optimizer),))

    def _step(self, optimizers: Sequence[Optimizer]) -> None:
        """The same inside of a hook, which is not compiled anyway: leaving the compiler twice takes as long as the sums."""
        outcomes: dict[Optimizer | None, Outcome] = {
            each: self._clocks[each].ask() for each in optimizers if each in self._clocks
        }
        stepped = [(each, outcomes[each.clock]) for each in self.all_statistics if each.clock in outcomes]
        late: dict[BoundGroup, SelectedUnits] = {}
        if self._late:
            self._settle()
            late = self._choose([group for statistics, _ in stepped for group in self._owed(statistics)])
        taken = [group for statistics, outcome in stepped for group in self._observe(statistics, outcome)]
        if late:
            self._replace(late)
        chosen = self._choose(taken)
        if chosen:
            self._replace(chosen)
        self._feedback.leave()

    def _choose(self, groups: Sequence[BoundGroup]) -> dict[BoundGroup, SelectedUnits]:
        """The units to replace in groups that made a step."""
        chosen: dict[BoundGroup, SelectedUnits] = {}
        for group in groups:
            age, value = self._measures[group]
            units = self.select(group, age, value)
            if units is not None:
                chosen[group] = units
        return chosen

    def _replace(self, chosen: dict[BoundGroup, SelectedUnits]) -> None:
        """The phases, each over all groups before the next."""
        self._same.check_parameters(chosen)
        before = self._feedback.before(chosen)
        if self.redraw.hand_over_mean:
            for group, units in chosen.items():
                self.redraw.hand_over(group, units, self.score.mean(group))
        for group, units in chosen.items():
            self.redraw.incoming(group, units, self.generators)
        for group, units in chosen.items():
            self.redraw.outgoing(group, units)
        for group, units in chosen.items():
            group.clear_gradients(units)
            self.forget.forget(group, units)
            self.score.forget(group, units)
            self._home[group].renew(group, units)
            self._replaced.add(group.name, units.counts, self._home[group].steps[group])
            log.debug("replaced %s of '%s' at step %s", units.counts, group.name, self._replaced.last[group.name])
        self._feedback.replaced(before)
        written((part.parameter for group in chosen for part in group.slices()), by=self._feedback)
        if self._on_replace is not None:
            for group, units in chosen.items():
                self._on_replace(Replacement(group.name, self._home[group].steps[group], units.runs, units.units))

    def _observe(self, statistics: ActivityStatistics, outcome: Outcome) -> list[BoundGroup]:
        """Take in what groups side by side did, and return those that made a step that the host knows to be taken.

        Groups that did nothing, or are frozen, keep their clock. What was read for a step that was not taken is dropped.
        """
        if statistics.device != statistics.first.device:
            self._move(statistics, statistics.first.device)
        self._ranks.share(statistics)
        ran = statistics.ran()
        self._same.check(statistics, ran)
        groups = self._same.training(ran)
        if not groups:
            statistics.drop()
            return []
        observed = statistics.observed(groups)
        one_call = (
            self._in_one_call[statistics] if outcome is True and len(observed) == len(statistics.groups) else None
        )
        if one_call is not None and one_call.update():
            statistics.count_step(groups)
            return [*groups]
        means, skipped = None, None
        if observed:
            means = statistics.pop_means()
        else:
            statistics.drop()
        if isinstance(outcome, Tensor):
            taken = outcome.to(statistics.device, non_blocking=True)
            self._late.add(statistics, taken, [*groups])
            statistics.look_ahead(unsure=True)
            skipped = (~taken).to(statistics.dtype)
        elif outcome:
            statistics.count_step(groups)
        if means is not None and outcome is not False:
            self.score.update(statistics, statistics.spans(observed), means, skipped)
        return [*groups] if outcome is True else []

    def _owed(self, statistics: ActivityStatistics) -> Sequence[BoundGroup]:
        """Groups whose units are yet to be chosen, for an earlier step; those that are frozen by now go on waiting."""
        owed = self._late.pop(statistics)
        groups = self._same.training(owed)
        self._late.owe(statistics, [group for group in owed if group not in groups])
        return groups

    def _settle(self) -> None:
        """Count the steps of which only the device knew."""
        for statistics, groups in self._late.settle():
            statistics.count_step(groups)

    def _begins(self, optimizer: Optimizer) -> None:
        self._feedback.look(optimizer)

    def _ended(self, optimizer: Optimizer) -> None:
        if self._steps_by_itself:
            with torch.no_grad():
                self._step((optimizer,))
        else:
            self._feedback.leave()

    def _acted_on(self) -> Iterable[tuple[str, Tensor]]:
        return [(part.part.parameter, part.parameter) for group in self.groups for part in group.slices()]

    # -- what happened -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each group, by name, integers of the host: nothing is read from the device but, where it alone knows, whether
        the last step was taken (`taken_steps`); the units due by that are replaced after the next one.

        `steps` the group has seen, units `replaced` per run, and the step at which one `last_replaced_at`. Selection by rate
        adds, per run, how many are `mature` and the sum of eligible units over steps, which the rate is a share of.
        """
        self._settle()
        return {
            group.name: {
                "steps": self._home[group].steps[group],
                "replaced": list(self._replaced.counts[group.name]),
                "last_replaced_at": self._replaced.last[group.name],
                **self.select.stats(group),
            }
            for group in self.groups
        }

    def ages(self) -> dict[str, Tensor]:
        """Optimizer steps since each unit was new, (runs, units), by group."""
        self._settle()
        return {group.name: self._home[group].age_of(group) for group in self.groups}

    @torch.no_grad()
    def utilities(self) -> dict[str, Tensor]:
        """How useful each unit is by this method's score, (runs, units), by group; the least is replaced first. A score that
        draws (`utility="random"`) draws from copies of the generators, which stay as they are."""
        self._settle()
        copies = [torch.Generator().set_state(generator.get_state()) for generator in self.generators]
        return {group.name: self.score.value(group, copies).clone() for group in self.groups}

    def recorded(self) -> dict[str, int]:
        """Examples, and positions of each, that each group's first tap was shown since the last step."""
        return {group.name: self._home[group].examples_of(group) for group in self.groups}

    def drop_recorded(self, optimizer: Optimizer | None = None) -> None:
        """What was recorded since the last step, of the units that `optimizer` steps or of all, counts for nothing: a forward in
        training mode, with gradients, that no step follows. `recording_paused` keeps it from being recorded at all."""
        for statistics in self.all_statistics:
            if optimizer is None or statistics.clock is inner(optimizer):
                statistics.drop()

    def __repr__(self) -> str:
        units, stats = sum(group.units for group in self.groups), self.stats().values()
        steps, replaced = max(each["steps"] for each in stats), sum(sum(each["replaced"]) for each in stats)
        hooked = "" if self._handles else ", detached"
        return f"{type(self).__name__}({len(self.groups)} groups of {units} units, {steps} steps, {replaced} replaced{hooked})"

    # -- attaching, moving, saving ------------------------------------------------------------------------------

    def _with_fresh(self, plan: UnitMap) -> UnitMap:
        """The plan with what fresh units are drawn from now."""
        pairs = zip(plan.rows, self.groups, strict=True)
        rows = [replace(row, fresh_std=self.redraw.fresh_std(group)) for row, group in pairs]
        return replace(plan, rows=rows, notes=[*self._notes, *self.redraw.notes])

    def detach(self) -> None:
        """Remove every hook. From here on the optimizer steps the entries of young units like all others."""
        super().detach()
        self._feedback.clear()
        self._same.newcomers.detach()
        self.forget.detach()

    def to(self, device: torch.device | str) -> Self:
        """Move our state. It follows the model by itself at the next step."""
        for statistics in self.all_statistics:
            self._move(statistics, torch.device(device))
        return self

    def _move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        statistics.to(device)
        self.score.move(statistics, device)

    def restart(self, *, optimizer_state: bool = False) -> None:
        """Begin anew with the units as they are: for after `reset_network`. Ages, utilities and what is owed are 0 again.

        Generators go on, and `stats()` still counts what was replaced before. With `optimizer_state`, young entries are none any
        more: for where the optimizer has started over by other means than `reset_network`.
        """
        self._feedback.clear()
        self._late.clear()
        for statistics, start in zip(self.all_statistics, self._start, strict=True):
            statistics.load_state_dict(start)
        self.score.bind(self.all_statistics)
        self.select.bind(self.groups, self.seeds)
        if optimizer_state:
            self.forget.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint(),
            "settings": self._settings(),
            "panels": [statistics.state_dict() for statistics in self.all_statistics],
            "counts": self._replaced.state_dict(),
            **{name: getattr(self, name).state_dict() for name in ("score", "select", "redraw", "forget")},
            "newcomers": self._same.newcomers.state_dict(),
            "owed": [group.name for groups in self._late.owed.values() for group in groups],
            "seeds": list(self.seeds),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def _load(self, state: dict[str, Any]) -> None:
        state = _of_today(state)
        self.plan.check_fingerprint(state["fingerprint"])
        before, here = ({"observe_every": 1, **each} for each in (state["settings"], self._settings()))
        self._check_saved(before, here)
        self.redraw.load_state_dict(state["redraw"])
        self.plan = self._with_fresh(self.plan)
        for statistics, held in zip(self.all_statistics, state["panels"], strict=True):
            statistics.load_state_dict(held)
        self._feedback.clear()
        self._same.newcomers.load_state_dict(state["newcomers"])
        names = [group.name for group in self.groups]
        if any(name not in names for name in entry(state, "owed", [])):
            raise ValueError(f"'owed' of this state names {state['owed']}, here groups are {names}")
        owed = {each: [group for group in each.groups if group.name in state["owed"]] for each in self.all_statistics}
        self._late.clear({each: groups for each, groups in owed.items() if groups})
        self._replaced.load_state_dict(state["counts"])
        self.seeds = [int(seed) for seed, _ in zip(state["seeds"], self.seeds, strict=True)]
        self.select.bind(self.groups, self.seeds)
        for name in ("score", "select", "forget"):
            getattr(self, name).load_state_dict(state[name])
        for generator, held in zip(self.generators, state["generators"], strict=True):
            generator.set_state(held.cpu())

    def _taking_over(self) -> AbstractContextManager[None]:
        return state_follows()

    def _state_after(self, other: Attached, state: dict[str, Any]) -> dict[str, Any]:
        return state_of_successor(self, self.state_dict(), cast(UnitReset, other), state)

    def _settings(self) -> dict[str, Any]:
        """What a state depends on; the replacement rate and `count` may change between saving and loading."""
        return {
            "score": type(self.score).__name__,
            "select": type(self.select).__name__,
            **self.score.settings,
            **self.select.settings,
            "runs": self.groups[0].runs,
            "optimizers": [type(each).__name__ for each in self.optimizers],
            "optimizer_state": self.forget.policy,
            "hand_over_mean": self.redraw.hand_over_mean,
        }


def _of_today(state: dict[str, Any]) -> dict[str, Any]:
    """A state of this or of the former format in this one's."""
    if not is_a(state, Mapping) or state.get("format") not in (1, FORMAT):
        held = state.get("format") if is_a(state, Mapping) else None
        raise ValueError(f"this state has format {held}, this version reads {FORMAT} and 1")
    if state["format"] == FORMAT:
        for name in ("score", "select", "redraw", "forget", "newcomers"):
            entry(state, name, {})
        return state
    redraw, forget = state.get("redraw"), cast(dict[str, Any], state["forget"])
    return {
        "newcomers": None,
        "owed": [],
        **state,
        "redraw": None if redraw is None else {"starts": None, **redraw},
        "forget": {key: {"betas": None, **held} for key, held in forget.items()},
    }


def _check_observed(score: Score, select: Select) -> None:
    """Raise `ValueError` if units may go before the score has seen anything of them."""
    every: int = getattr(score, "observe_every", 1)
    threshold: int = getattr(select, "maturity_threshold", every)
    if every > threshold + 1:
        raise ValueError(
            f"observe_every is {every} steps, but units older than maturity_threshold, {threshold} steps, may go before anything "
            f"of them was observed: give at most {threshold + 1}, or a larger maturity_threshold"
        )


def _check_parts(**parts: object) -> None:
    """Raise `TypeError` for a part that has not the methods that it is called by."""
    for name, part in parts.items():
        protocol = cast(type, getattr(interfaces, name.capitalize()))
        called = [each for each in vars(protocol) if not each.startswith("_") and "state_dict" not in each]
        missing = [each for each in called if getattr_static(part, each, None) is None]
        if missing or isinstance(part, type):
            lacks = f", which has no {missing[0]}" if missing else ""
            raise TypeError(
                f"{name} must be one of the four parts (pliant.engine.interfaces), got {shown(part)}{lacks}"
            )
