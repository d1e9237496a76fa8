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
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from operator import index
from threading import Lock
from typing import Any, Literal, Self, TypedDict, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import Feedback, written
from pliant.engine.interfaces import Score, Select
from pliant.engine.optimizer_state.units import OptimizerState
from pliant.engine.planning import given_units, passed_units, stepped_units, warnings_of
from pliant.engine.redraw import Redraw
from pliant.engine.statistics import ActivityStatistics, home_of_groups
from pliant.engine.taken_steps import Clock, Outcome, Pending
from pliant.streams import stream_key
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import BoundSlice, SelectedUnits
from pliant.units.forwards import Mask, told
from pliant.units.groups import PlanRow, UnitGroup
from pliant.units.hooks import follow
from pliant.units.map import UnitMap
from pliant.units.models import unwrapped
from pliant.units.trace import trace
from pliant.units.verify.whole_plan import Tried, tried

log = logging.getLogger("pliant")

FORMAT = 1
CHECK_EVERY = 64  # steps between looks at whether the parameters are still the model's; and before each replacement
PATIENCE = 100  # steps after which a group that was never read is worth a word


class Where(TypedDict, total=False):
    """Where a method attaches: what `UnitReset` takes beside the four parts, and every method passes on."""

    groups: Sequence[UnitGroup] | UnitMap
    example_inputs: Any
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    strict: bool
    residual: bool
    heads: bool
    seed: int | Sequence[int] | None
    attach: bool
    trial: bool
    process_group: dist.ProcessGroup | Literal["auto"] | None
    mask: Mask | None


_ATTACHED: WeakSet[UnitReset] = WeakSet()  # those with a hook on an optimizer
_LOCK = Lock()  # threads attach to models of their own


def _attached() -> list[UnitReset]:
    with _LOCK:
        return list(_ATTACHED)


class UnitReset:
    """Resets hidden units of `model` after each step of `optimizer`.

    Args:
        model: the network that trains.
        optimizer: what steps it, or several (each parameter is looked up in its own); a group's clock is the
            optimizer of its first incoming weight.
        score, select, redraw, forget: the four parts.
        example_inputs: what one forward takes (a tensor, a tuple of positional or a mapping of keyword arguments, or a list
            of those): the units are found by `pliant.units.trace`. Or
        groups: the units by hand, from `chain_groups`, or an edited `UnitMap`.
        include, exclude: patterns of group or parameter names (`fnmatch`), see `UnitMap`.
        strict, residual, heads: which kinds of unit are found, see `pliant.units.trace`.
        trial: try the units that were found on a float64 copy, in a few forwards, and leave alone what is wrong; rank 0 does
            it for all. See `pliant.units.verify.whole_plan`.
        seed: of all draws, or one for each run of a stack; None takes `torch.initial_seed()`, under data parallelism
            that of rank 0. Two methods of one seed draw alike: give an actor and a critic seeds of their own.
        attach: True resets by itself after `optimizer.step()`; False waits for you to call `step()` there, and takes a call that
            no step of the optimizer came before for none (a GradScaler left it out), unless steps are replayed.
        process_group: "auto" shares statistics over the ranks of a DistributedDataParallel model; a process group does so
            for any model that is the same on all its ranks; None leaves every rank to itself.
        mask: which positions of a batch are real, where some are padding: the name of an argument of the model's forward
            (`mask="attention_mask"`, True or 1 at real positions), or a function of all its arguments that gives such a
            tensor (`mask=lambda ids: ids != 0`) of shape (batch, positions). Activity, utilities and the means handed over are
            then those of real positions, see `pliant.units.forwards`. A step without any leaves averages as they are.

    Raises `ValueError` or `TypeError` if a group does not fit the model, if no optimizer steps it or if a method of the same
    kind already resets it after that optimizer's steps, and `RuntimeError` at the first step if the tapped modules never ran
    in training mode, and at one before which a copy of the weights was fed back to units just replaced (`feedback`).
    """

    @torch.inference_mode(False)  # what is kept from step to step must not be a tensor of that mode
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        score: Score,
        select: Select,
        redraw: Redraw,
        forget: OptimizerState,
        groups: Sequence[UnitGroup] | UnitMap | None = None,
        example_inputs: Any = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        strict: bool = False,
        residual: bool = False,
        heads: bool = False,
        trial: bool = True,
        seed: int | Sequence[int] | None = None,
        attach: bool = True,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
        mask: Mask | None = None,
    ) -> None:
        self.optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        if (groups is None) == (example_inputs is None):
            raise ValueError(
                "give either example_inputs=x (the units are found by running the model on it) or groups=[UnitGroup(...), ...]"
            )
        reads_activity = bool(score.reads)
        kinds = {"strict": strict, "residual": residual, "heads": heads}
        names = NamedModel(model)
        if groups is None:
            units = trace(model, example_inputs, activity=reads_activity, trial=False, **kinds)
        else:
            units = given_units(names, groups, kinds)
        units = units.include(*_patterns(include)).exclude(*_patterns(exclude))
        if groups is None:
            units = stepped_units(units, names, self.optimizers)
        self._ranks = Ranks(model, process_group)
        if groups is None and trial:
            found = tried(units.groups, model, example_inputs) if self._ranks.leads else Tried()
            units = passed_units(units, *self._ranks.agree_on([found]))
        self.groups = [BoundGroup(spec, names) for spec in units.groups]
        self._heard: set[ActivityStatistics] = set()  # of which anything ran since we attached
        self._model = model
        self._places = [place for group in self.groups for place in group.places()]
        self._tapped = {tap.module: names.modules[tap.module] for group in self.groups for tap in group.spec.taps}
        self._unreached = {name: names.parameters[name] for name in units.unreached}
        self._last: dict[str, int | None] = {group.name: None for group in self.groups}
        self._replaced = {group.name: [0] * group.runs for group in self.groups}
        self._check_groups(reads_activity)
        if attach:
            self._check_alone()
        self.seeds = self._ranks.agree_on(self._seeds_of_runs(seed))
        # keyed: a generator seeded with the seed itself would repeat what the model was initialised with
        self.generators = [torch.Generator().manual_seed(stream_key(each, "fresh units")) for each in self.seeds]
        self.score, self.select, self.redraw, self.forget = score, select, redraw, forget
        if redraw.hand_over_mean and not score.keeps_means:
            raise ValueError(f"{type(score).__name__} keeps no means to hand over; use Redraw(hand_over_mean=False)")
        self.all_statistics = self._side_by_side(names)
        self._home = home_of_groups(self.all_statistics)
        if mask is not None and self.groups[0].spec.stacked:
            raise ValueError("mask: not for a stack of runs, which share one count of examples")
        for statistics in self.all_statistics:
            statistics.masked = mask is not None
        self._forwards = told(
            unwrapped(model), mask, [each for statistics in self.all_statistics for each in statistics.readers]
        )
        self._step_calls = 0
        self._clocks = {each: Clock() for each in self.optimizers}
        self._feedback = Feedback()
        self._pending: dict[
            ActivityStatistics, tuple[Pending, list[BoundGroup]]
        ] = {}  # steps of which only the device knows so far
        self._owed: dict[
            ActivityStatistics, list[BoundGroup]
        ] = {}  # groups that made such a step, whose units are yet to be chosen
        self._patience = Counter[ActivityStatistics]()  # steps in which some group was not read
        self._on_cuda = any(statistics.device.type == "cuda" for statistics in self.all_statistics)
        self.score.bind(self.all_statistics)
        self.select.bind(self.groups, self.seeds)
        self.redraw.bind(names, self.groups, self.optimizers, self._ranks.agree_on)
        rows = [self._plan_row(group) for group in self.groups]
        self.forget.bind(self.optimizers, self.groups)  # hooks from here on: nothing may fail after it
        self._notes = [*units.notes, *self.forget.notes, *warnings_of(units)]
        self.plan = UnitMap(rows, units.skipped, [*self._notes, *self.redraw.notes], units.unreached)
        self._handles = [handle for statistics in self.all_statistics for handle in statistics.listen(score.reads)]
        if self._forwards is not None:
            self._handles += follow(self._forwards)
        self._start = [statistics.state_dict() for statistics in self.all_statistics]
        self._steps_by_itself = attach
        for each in self.optimizers:
            if attach or hasattr(each, "_optimizer_step_post_hooks"):  # a wrapper that is called an optimizer has none
                before, after = each.register_step_pre_hook, each.register_step_post_hook
                self._handles += [before(self._before_step), after(self._after_step)]
        if attach:
            with _LOCK:
                _ATTACHED.add(self)

    # -- one step ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Replace the units that are due. Runs after `optimizer.step()`; by itself unless `attach=False`.

        A step that a GradScaler leaves out is none, see `taken_steps`. Where only a CUDA device knows, units due by a
        step are chosen as they would be at once and replaced after the next one.
        """
        self._step_calls += 1
        if self._step_calls % CHECK_EVERY == 1:
            self._check_parameters()
        all_statistics = (
            self.all_statistics
            if optimizer is None
            else [statistics for statistics in self.all_statistics if statistics.clock is optimizer]
        )
        late = self._choose(self._settled(all_statistics)) if self._pending or self._owed else None
        outcomes: dict[Optimizer, Outcome] = {}
        taken: list[BoundGroup] = []
        for statistics in all_statistics:
            clock = cast(Optimizer, statistics.clock)  # `forget` found its first incoming weight in one
            if clock not in outcomes:
                outcomes[clock] = self._clocks[clock].ask()
            taken += self._observe(statistics, outcomes[clock])
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
            units = self.select(
                group,
                lambda group=group: self._home[group].age_of(group),
                lambda group=group: self.score.value(group, self.generators),
            )
            if units is not None:
                chosen[group] = units
        return chosen

    def _replace(self, chosen: dict[BoundGroup, SelectedUnits]) -> None:
        """The phases, each over all groups before the next."""
        self._check_parameters()
        replaced = self._feedback.before(chosen)
        if self.redraw.hand_over_mean:
            for group, units in chosen.items():
                self.redraw.hand_over(group, units, self.score.mean(group))
        for group, units in chosen.items():
            self.redraw.incoming(group, units, self.generators)
        for group, units in chosen.items():
            self.redraw.outgoing(group, units)
        for group, units in chosen.items():
            _clear_gradients(group, units)
            self.forget.forget(group, units)
            self.score.forget(group, units)
            self._home[group].renew(group, units)
            self._count(group, units)
        self._feedback.replaced(replaced)
        written((part.parameter for group in chosen for part in group.slices()), by=self._feedback)

    def _steps(self, group: BoundGroup) -> int:
        """Optimizer steps in which the group was seen."""
        return self._home[group].steps[group]

    def _count(self, group: BoundGroup, units: SelectedUnits) -> None:
        for run, count in enumerate(units.counts):
            self._replaced[group.name][run] += count
        self._last[group.name] = self._steps(group)
        log.debug("replaced %s units of '%s' at step %d", units.counts, group.name, self._last[group.name])

    def _observe(self, statistics: ActivityStatistics, outcome: Outcome) -> list[BoundGroup]:
        """Take in what groups side by side did, and return those that made a step that the host knows to be taken.

        Groups that did nothing keep their clock. What was read for a step that was not taken is dropped.
        """
        if statistics.device != statistics.groups[0].first.device:
            self._move(statistics, statistics.groups[0].first.device)
        self._ranks.share(statistics)
        groups = statistics.ran()
        self._check(statistics, groups)
        if not groups:
            return groups
        means, skipped = statistics.pop_means(), None
        if isinstance(outcome, Tensor):
            taken = outcome.to(statistics.device, non_blocking=True)
            self._pending[statistics], skipped = (Pending(taken), groups), (~taken).to(statistics.dtype)
        elif outcome:
            _count_step(statistics, groups)
        if outcome is not False:
            self.score.update(statistics, statistics.spans(groups), means, skipped)
        return groups if outcome is True else []

    def _settle(self) -> None:
        """Count the steps of which only the device knew."""
        while self._pending:
            statistics, (taken, groups) = self._pending.popitem()
            if taken.wait():
                _count_step(statistics, groups)
                self._owed.setdefault(statistics, []).extend(groups)

    def _settled(self, all_statistics: Sequence[ActivityStatistics]) -> list[BoundGroup]:
        """Groups of these statistics that made such a step, before the step that is taken in now."""
        self._settle()
        return [group for statistics in all_statistics for group in self._owed.pop(statistics, [])]

    def _check(self, statistics: ActivityStatistics, ran: Sequence[BoundGroup]) -> None:
        """Raise `RuntimeError` if none of the groups was ever read, or the model is no longer the one that was planned."""
        if not ran and statistics not in self._heard:
            names = ", ".join(sorted({f"'{tap.module}'" for group in statistics.groups for tap in group.spec.taps}))
            raise RuntimeError(
                f"the optimizer stepped, but none of the tapped modules ({names}) ran in training mode with gradients before "
                f"it. Call model.train(), and attach before the first call of a compiled model"
            )
        self._heard.add(statistics)
        if len(ran) < len(statistics.groups):
            self._check_modules(statistics)
            self._patience[statistics] += 1
            if self._patience[statistics] == PATIENCE:
                never = ", ".join(f"'{group.name}'" for group in statistics.groups if not statistics.steps[group])
                if never:
                    log.warning(
                        "never read in %d steps, so never replaced: %s (evaluation mode, no gradients?)",
                        PATIENCE,
                        never,
                    )
        for name, parameter in self._unreached.items():
            if parameter.grad is not None:
                raise RuntimeError(
                    f"'{name}' never ran with the example inputs but has a gradient now: it may read units, and the plan does "
                    f"not know. Give example inputs that reach it, or a list of several"
                )

    def _check_parameters(self) -> None:
        """Raise `RuntimeError` before anything is written to a parameter that is no longer the model's, or is frozen."""
        for home, leaf, parameter in self._places:
            if home.get(leaf) is not parameter or not parameter.requires_grad:
                raise RuntimeError(_changed(self.groups, home.get(leaf), parameter))

    def _check_modules(self, statistics: ActivityStatistics) -> None:
        """A group that did not run may sit in a module that was taken out of the model."""
        for tap in (tap for group in statistics.groups for tap in group.spec.taps):
            try:
                there = self._model.get_submodule(tap.module)
            except AttributeError:
                there = None
            if there is not self._tapped[tap.module]:
                raise RuntimeError(
                    f"'{tap.module}' was replaced by another module after attaching. detach(), and attach to the model as it is"
                )

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not (self._on_cuda and torch.cuda.is_current_stream_capturing()):
            self._feedback.look(optimizer)

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if self._on_cuda and torch.cuda.is_current_stream_capturing():
            self._clocks[optimizer].recorded()
            if self._steps_by_itself:
                raise RuntimeError(
                    f"optimizer.step() is being captured in a CUDA graph, whose replay calls no hook. Build "
                    f"{type(self).__name__} with attach=False, and call its step() after every replay"
                )
            return
        self._clocks[optimizer].after(optimizer)
        if self._steps_by_itself:
            self.step(optimizer)
        else:
            self._feedback.leave()

    # -- what happened -----------------------------------------------------------------------------------------

    def ages(self) -> dict[str, Tensor]:
        """Optimizer steps since each unit was new, (runs, units), by group."""
        self._settle()
        return {group.name: self._home[group].age_of(group) for group in self.groups}

    def utilities(self) -> dict[str, Tensor]:
        """How useful each unit is by this method's score, (runs, units), by group; the least is replaced first.

        A score that draws (`utility="random"`) is not drawn for this: its generators stay as they are.
        """
        self._settle()
        before = [generator.get_state() for generator in self.generators]
        found = {group.name: self.score.value(group, self.generators).clone() for group in self.groups}
        for generator, state in zip(self.generators, before, strict=True):
            generator.set_state(state)
        return found

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each group, by name, integers of the host: nothing is read from the device but, where it alone knows, whether
        the last step was taken (`pliant.engine.taken_steps`); the units due by that are replaced after the next one.

        `steps` the group has seen, units `replaced` (one entry a run), and the step at which one `last_replaced_at`. Selection
        by rate adds how many are `mature` and the sum of eligible units over steps, which the rate is a share of (one entry a
        run each).
        """
        self._settle()
        return {
            group.name: {
                "steps": self._steps(group),
                "replaced": list(self._replaced[group.name]),
                "last_replaced_at": self._last[group.name],
                **self.select.stats(group),
            }
            for group in self.groups
        }

    def recorded(self) -> dict[str, int]:
        """Examples, and positions of each, that each group was shown since the last step, by name: of its first tap."""
        return {group.name: self._home[group].examples_of(group) for group in self.groups}

    def drop_recorded(self, optimizer: Optimizer | None = None) -> None:
        """What was recorded since the last step counts for nothing: a forward in training mode, with gradients, that no step is
        to follow (validation, a loss that borrows the network). `recording_paused` keeps it from being recorded at all.

        With an `optimizer`, of the units that it steps alone.
        """
        for statistics in self.all_statistics:
            if optimizer is None or statistics.clock is optimizer:
                statistics.drop()

    def __repr__(self) -> str:
        units = sum(group.units for group in self.groups)
        replaced = sum(map(sum, self._replaced.values()))
        steps = max(self._steps(group) for group in self.groups)
        hooked = "" if self._handles else ", detached"
        return f"{type(self).__name__}({len(self.groups)} groups of {units} units, {steps} steps, {replaced} replaced{hooked})"

    # -- attaching, moving, saving ------------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove every hook. From here on the optimizer steps the entries of young units like all others."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._feedback.clear()
        self.forget.detach()
        with _LOCK:
            _ATTACHED.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

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
        if optimizer_state:
            self.forget.load_state_dict({})
        self._feedback.clear()
        self._pending, self._owed = {}, {}
        for statistics, start in zip(self.all_statistics, self._start, strict=True):
            statistics.load_state_dict(start)
        self.score.bind(self.all_statistics)
        self.select.bind(self.groups, self.seeds)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries."""
        self._settle()
        return {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint(),
            "settings": self._settings(),
            "panels": [statistics.state_dict() for statistics in self.all_statistics],
            "counts": {
                name: {"replaced": list(replaced), "last": self._last[name]}
                for name, replaced in self._replaced.items()
            },
            "score": self.score.state_dict(),
            "select": self.select.state_dict(),
            "redraw": self.redraw.state_dict(),
            "forget": self.forget.state_dict(),
            "owed": [group.name for groups in self._owed.values() for group in groups],
            "seeds": list(self.seeds),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises `ValueError` if it was saved for other units or by another format."""
        if state.get("format") != FORMAT:
            raise ValueError(f"this state has format {state.get('format')}, this version reads {FORMAT}")
        ours, theirs = self.plan.fingerprint(), list(state["fingerprint"])
        if ours != theirs:
            saved = [f"saved: {line}" for line in theirs if line not in ours]
            here = [f"here: {line}" for line in ours if line not in theirs]
            raise ValueError(
                f"this state was saved for other units; {'; '.join(saved + here) or 'their order differs'}"
            )
        for name, mine in self._settings().items():
            if state["settings"].get(name) != mine:
                raise ValueError(f"this state was saved with {name} = {state['settings'].get(name)}, here it is {mine}")
        self.redraw.load_state_dict(state.get("redraw"))
        self._plan_again()
        for statistics, held in zip(self.all_statistics, state["panels"], strict=True):
            statistics.load_state_dict(held)
        self._feedback.clear()
        self._pending, owed = {}, state.get("owed", ())
        self._owed = {
            statistics: [each for each in statistics.groups if each.name in owed]
            for statistics in self.all_statistics
            if owed
        }
        for group in self.groups:
            held = state["counts"][group.name]
            self._last[group.name] = held["last"]
            self._replaced[group.name] = list(held["replaced"])
        self.seeds = list(state["seeds"])
        self.select.bind(self.groups, self.seeds)
        self.score.load_state_dict(state["score"])
        self.select.load_state_dict(state["select"])
        self.forget.load_state_dict(state["forget"])
        for generator, held in zip(self.generators, state["generators"], strict=True):
            generator.set_state(held.cpu())

    def _settings(self) -> dict[str, Any]:
        """What a state depends on; the replacement rate and `count` may change between saving and loading."""
        parts = {"score": type(self.score).__name__, "select": type(self.select).__name__}
        return {
            **parts,
            **self.score.settings,
            **self.select.settings,
            "runs": self.groups[0].runs,
            "optimizers": [type(each).__name__ for each in self.optimizers],
            "optimizer_state": self.forget.policy,
            "hand_over_mean": self.redraw.hand_over_mean,
        }

    def __deepcopy__(self, memo: object) -> Self:
        raise TypeError(
            f"{type(self).__name__} holds hooks on one model and cannot be copied. Copy the model and its optimizer, build "
            f"a new {type(self).__name__} on the copies, and load this one's state_dict()"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(f"{type(self).__name__} holds hooks on one model and cannot be pickled; save its state_dict()")

    # -- construction ------------------------------------------------------------------------------------------

    def _side_by_side(self, names: NamedModel) -> list[ActivityStatistics]:
        """Groups side by side that are on one device and step together."""
        clocks = {id(p): each for each in self.optimizers for settings in each.param_groups for p in settings["params"]}
        together: dict[tuple[torch.device, Optimizer | None], list[BoundGroup]] = {}
        for group in self.groups:
            together.setdefault((group.first.device, clocks.get(id(group.first))), []).append(group)
        return [ActivityStatistics(groups, names, clock) for (_, clock), groups in together.items()]

    def _plan_row(self, group: BoundGroup) -> PlanRow:
        return group.plan_row(hand_over=self.redraw.hand_over_mean, fresh_std=self.redraw.fresh_std(group))

    def _plan_again(self) -> None:
        """The plan with what fresh units are drawn from now."""
        pairs = zip(self.plan.rows, self.groups, strict=True)
        rows = [replace(row, fresh_std=self.redraw.fresh_std(group)) for row, group in pairs]
        self.plan = replace(self.plan, rows=rows, notes=[*self._notes, *self.redraw.notes])

    def _check_groups(self, reads_activity: bool) -> None:
        """No group named twice, no slice in two groups, one number of runs, a tap where activity is needed."""
        if not self.groups:
            raise ValueError(
                "no groups are left, so no unit could ever be replaced: none were given, or all are excluded"
            )
        places = {
            "incoming": [place for group in self.groups for part in group.incoming for place in _places(part)],
            "outgoing": [place for group in self.groups for part in group.outgoing for place in _places(part)],
        }
        twice = [name for name, count in Counter(group.name for group in self.groups).items() if count > 1]
        if twice:
            raise ValueError(f"the same group is given more than once: {'; '.join(twice)}")
        for kind, found in places.items():
            claims = Counter(place for place, _ in found)
            twice = sorted({name for place, name in found if claims[place] > 1})
            if twice:
                raise ValueError(f"the same {kind} slice is given more than once: {'; '.join(twice)}")
        if len({group.spec.runs for group in self.groups}) > 1:
            raise ValueError("all groups must have the same number of runs")
        for group in self.groups:
            if reads_activity and not group.spec.taps:
                raise ValueError(
                    f"group '{group.name}' has no tap to read its activity from; give one, or use utility='weight'"
                )

    def _check_alone(self) -> None:
        """Raise ValueError where a method of our kind already resets units of ours: each would do so at its own rate.

        Units are the same if a weight that enters them is, whatever model they were found in and whatever their names.
        """
        taken = {
            place
            for other in _attached()
            if type(other) is type(self) and any(each is mine for each in other.optimizers for mine in self.optimizers)
            for group in other.groups
            for place in _entered(group)
        }
        shared = [group.name for group in self.groups if not taken.isdisjoint(_entered(group))]
        if shared:
            raise ValueError(
                f"units of '{shared[0]}' are already reset by a {type(self).__name__} that is attached to this optimizer: "
                "detach() that one first, or exclude its units here"
            )

    def _seeds_of_runs(self, seed: int | Sequence[int] | None) -> list[int]:
        runs = self.groups[0].runs
        if seed is None or not isinstance(seed, Sequence):
            first = torch.initial_seed() if seed is None else index(seed)
            return [first + run for run in range(runs)]
        if len(seed) != runs:
            raise ValueError(f"{len(seed)} seeds for {runs} runs; give one each, or one number")
        return list(seed)


def _changed(groups: Sequence[BoundGroup], held: Any, parameter: Tensor) -> str:
    name = next(part.part.parameter for group in groups for part in group.slices() if part.parameter is parameter)
    if held is parameter:
        return f"'{name}' was frozen after attaching. detach(), and attach to what still trains"
    return (
        f"'{name}' was replaced by another tensor after attaching (load_state_dict(assign=True), a conversion, a "
        f"parametrization?). detach(), and attach to the model as it is now"
    )


def _places(part: BoundSlice) -> list[tuple[object, str]]:
    """Which entries a slice owns, whatever name they go by, and that name."""
    spec = part.part
    name = f"{spec.parameter}, axis {spec.axis}"
    if spec.index is None:
        return [((id(part.parameter), spec.axis, spec.shape, position), name) for position in range(part.index.numel())]
    return [((id(part.parameter), spec.axis, spec.shape, position), name) for row in spec.index for position in row]


def _entered(group: BoundGroup) -> set[object]:
    """What tells a group's units from all others: the entries through which numbers enter them."""
    return {place for part in group.incoming for place, _ in _places(part)}


def _count_step(statistics: ActivityStatistics, groups: Sequence[BoundGroup]) -> None:
    for group in groups:
        statistics.steps[group] += 1


def _clear_gradients(group: BoundGroup, chosen: SelectedUnits) -> None:
    for part in group.slices():
        if part.parameter.grad is not None:
            part.write(chosen, 0.0, part.parameter.grad)


def _patterns(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given
