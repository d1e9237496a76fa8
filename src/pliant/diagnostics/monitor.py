"""Measures of `diagnose` while a network trains, of the training batch, at every so many steps of its optimizer.

    activity, gradients   of the forwards and backwards that the step is made of: no forward is run for it
    update                the parameters after the step, less those before it

Between measurements there are two hooks at the optimizer, which count, and none in the model. Parameters, gradients and random
numbers are those of the run without a monitor, to the bit; a model that is compiled runs eagerly in the step that is measured,
which may round otherwise.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import count
from math import isfinite
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import flag, number, whole
from pliant.base.saving import count_in, counts_in, entry
from pliant.base.tables import Cells, Table, curves
from pliant.diagnostics.alarms import alarms_of
from pliant.diagnostics.destinations import To, destinations
from pliant.diagnostics.diagnosis import Diagnosis
from pliant.diagnostics.in_passing import Passing
from pliant.diagnostics.measuring import measured, movement
from pliant.diagnostics.rows import TITLES, GroupDiagnosis
from pliant.diagnostics.watch import ForwardRecord
from pliant.diagnostics.weights import weight_magnitude
from pliant.engine.attached import (
    Attached,
    Optimizers,
    each_of,
    home_of_parameters,
    inner,
    uncompiled,
    when_gradients_are_there,
)
from pliant.engine.data_parallel import Ranks
from pliant.engine.planning import Where, check_groups, planned
from pliant.engine.taken_steps import LateSteps
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.forwards import Mask
from pliant.units.groups import UnitGroup
from pliant.units.map import UnitMap
from pliant.units.models import checked

log = logging.getLogger("pliant")

FORMAT = 1
COUNTS = ("dead", "dormant_by_firing", "dormant_by_activity", "dormant_by_gradient", "saturated", "linearized",
          "not_finite", "stagnant", "volatile")  # of units: trackers get shares  # fmt: skip
LABELS = ("group", "run", "activation", "units", "n", "columns")


class Monitor(Attached, Table):
    """Measures `model` at the first and at every `every`-th step of `optimizer`, and says once what is worth a word.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = Monitor(model, optimizer, torch.zeros(1, 3), every=10)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(16, 3)).square().mean().backward()
    ...     optimizer.step()
    >>> [(row["step"], row["group"], row["n"]) for row in monitor.rows]
    [(1, '0', 16), (10, '0', 16), (20, '0', 16)]

    Args:
        model: the network that trains.
        optimizer: what steps it, or several, each with its own count of steps; a group's is that of its first incoming weight.
        example_inputs: what one forward takes: the units are found by tracing, see `pliant.trace`. Or
        groups: the units, such as `method.plan`.
        every: optimizer steps from one measurement to the next.
        to: beside `monitor.rows`: a file (.csv, .parquet), a SummaryWriter, a W&B run, MLflow, a function of values and step, or
            a list of these, see `pliant.diagnostics.destinations`.
        tau: as for `diagnose`.
        rows: examples x positions of a forward that are measured at most, spread evenly over all.
        warn: whether to log a warning, once per group and measure, where a threshold of `pliant.diagnostics.alarms` is passed.
        include, exclude, residual, heads, mask, attach, process_group: as for every method, see `pliant.engine.planning.Where`.

    Raises at construction for what does not fit, with nothing changed and no hook left.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        example_inputs: Any = None,
        *,
        groups: Sequence[UnitGroup] | UnitMap | None = None,
        every: int = 1000,
        to: To = None,
        tau: float = 0.025,
        rows: int = 256,
        warn: bool = True,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        residual: bool = False,
        heads: bool = False,
        mask: Mask | None = None,
        attach: bool = True,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(each_of(optimizer), attach=attach)
        self.every = whole("every", every, 1, of="optimizer steps")
        self.tau, self.most, self.warn = number("tau", tau), whole("rows", rows, 1), flag("warn", warn)
        names = NamedModel(checked(model))
        self._ranks = Ranks(model, process_group)
        where: Where = {
            "groups": groups, "example_inputs": example_inputs, "include": include, "exclude": exclude,
            "residual": residual, "heads": heads, "mask": mask, "trial": False,
        }  # fmt: skip
        self.plan = planned(model, names, self.optimizers, self._ranks, where, activity=False)
        if not self.plan.rows:
            raise ValueError("no groups are left to measure: none were given, or all are excluded")
        self.groups = [BoundGroup(spec, names) for spec in self.plan.groups]
        check_groups(self.groups, activity=False)
        if mask is not None and self.groups[0].spec.stacked:
            raise ValueError("mask: not for a stack of runs")
        self._names = names
        self._of = self._by_optimizer()
        self._passing = {
            each: Passing(
                model, names, [tap for group in found for tap in group.spec.taps], found[0].spec.runs, mask, self.most
            )
            for each, found in self._of.items()
        }
        self._destinations = destinations(to)
        self.steps = [0] * len(self.optimizers)
        self.rows: list[dict[str, Any]] = []
        self._firsts: dict[tuple[str, int | None], GroupDiagnosis] = {}
        self._started = set[int]()  # optimizers of which there is a first measurement
        self._told = set[tuple[str, int | None, str]]()
        self._told_unseen = False
        self._sizes = {group.name: self._size(group) for group in self.groups}
        self._late = LateSteps[int, None]()
        self._unsettled = set[int]()  # optimizers of whose last step only the device knows
        self._before: dict[Optimizer, dict[str, Tensor]] = {}
        self._found: dict[Optimizer, list[GroupDiagnosis]] = {}
        with self._or_nothing_left():
            self._follow_steps()
            for place, each in enumerate(self.optimizers):
                self._prepare(place, each)

    # -- around a step ------------------------------------------------------------------------------------------------

    def _follow_steps(self) -> None:
        """Ours is the first hook after a step: what a method writes there is no part of the step. Before it ours is the last so
        far: a pull is part of the gradient."""
        super()._follow_steps()
        for handle in self._handles:
            hooks = cast(OrderedDict[int, Any], handle.hooks_dict_ref())
            if any(hooks is getattr(each, "_optimizer_step_post_hooks", None) for each in self.optimizers):
                hooks.move_to_end(handle.id, last=False)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        changed = super()._before_step(optimizer, args, kwargs)
        passing = self._passing.get(optimizer)
        if passing is None or not passing.on or self._is_captured():
            return changed
        args, kwargs = (args, kwargs) if changed is None else changed
        parts = [part for group in self._of[optimizer] for part in group.incoming_weights()]
        self._before[optimizer] = {part.part.parameter: part.parameter.detach().clone() for part in parts}
        calls = (
            count()
        )  # what was recorded before the first may be the forward itself: loops give closures that do nothing

        def again() -> None:
            if next(calls):
                passing.clear()

        found = when_gradients_are_there(args, kwargs, lambda: self._measure(optimizer), again)
        return changed if found is None else found

    def _ended(self, optimizer: Optimizer) -> None:
        if self._steps_by_itself:
            self._count(self.optimizers.index(optimizer), optimizer)

    @uncompiled
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Count a step of `optimizer`, or of all, and measure it if it is time. Runs after `optimizer.step()`."""
        for place, each in enumerate(self.optimizers):
            if optimizer is None or inner(optimizer) is each:
                self._count(place, each)

    def _count(self, place: int, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        outcome = self._clocks[optimizer].ask()
        if self._late:
            self._settle()
            self.steps[place] += len(self._late.pop(place))
        on = self._is_on(optimizer)
        if isinstance(outcome, Tensor) and on:
            outcome = bool(outcome)  # a measured step waits for the device anyway
        if isinstance(outcome, Tensor):
            self._late.add(place, outcome, [None])
            self._unsettled.add(place)
        elif outcome:
            self.steps[place] += 1
            if on:
                self._take(place, optimizer)
        if on:
            self._forget(optimizer)
        self._prepare(place, optimizer)

    def _settle(self) -> None:
        self._late.settle()
        self._unsettled.clear()

    def _is_on(self, optimizer: Optimizer) -> bool:
        return optimizer in self._passing and self._passing[optimizer].on

    def _is_due(self, place: int, step: int) -> bool:
        """The first step too: there is something to compare with from the start."""
        return place not in self._started or step % self.every == 0

    def _prepare(self, place: int, optimizer: Optimizer) -> None:
        """Record what comes, if the next step is to be measured."""
        passing = self._passing.get(optimizer)
        if passing is None or not self._ranks.leads:
            return
        owed = len(self._late.owed.get(place, ())) + (place in self._unsettled)
        if self._is_due(place, self.steps[place] + owed + 1):
            passing.start()
        elif passing.on:
            passing.stop()

    @torch.no_grad()
    def _measure(self, optimizer: Optimizer) -> None:
        """Activity and gradients, just before the optimizer reads these."""
        passing, groups = self._passing[optimizer], self._of[optimizer]
        self._check_parameters(groups)
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)  # a GradScaler's, for fused steps
        gradients = {
            part.part.parameter: _unscaled(part.parameter.grad, scale)
            for group in groups
            for part in group.incoming_weights()
        }
        record = ForwardRecord(passing.records, None, gradients)
        self._found[optimizer] = [
            replace(row, weight_growth=_ratio(row.weight_magnitude, self._sizes[group.name][row.run or 0]))
            for group in groups
            for row in measured(group, record, self.tau)
        ]

    @torch.no_grad()
    def _take(self, place: int, optimizer: Optimizer) -> None:
        """A step was taken: keep what was measured of it, with how far it moved the weights."""
        if optimizer not in self._found:
            self._measure(optimizer)  # no hook saw the step
        found, before = self._found[optimizer], self._before.get(optimizer, {})
        step = self.steps[place]
        if not self._is_due(place, step):
            return
        if before:
            found = [replace(row, **self._moved(row, before)) for row in found]
        if not self._passing[optimizer].seen and not self._told_unseen:
            self._told_unseen = True
            log.warning(
                "step %d: no forward in training mode with gradients came before it, so it shows no activity", step
            )
        rows = [{"step": step, "optimizer": place, **asdict(row)} for row in found]
        self._say(step, found)
        self._keep(rows)
        self._started.add(place)
        for each in self._destinations:
            each.write(rows, _values(found), step)

    def _moved(self, row: GroupDiagnosis, before: Mapping[str, Tensor]) -> dict[str, Any]:
        group = next(each for each in self.groups if each.name == row.group)
        parts = group.incoming_weights()
        after = {part.part.parameter: part.parameter.detach() for part in parts}
        return {
            name: of_runs[row.run or 0] for name, of_runs in movement([(part, before, after) for part in parts]).items()
        }

    def _forget(self, optimizer: Optimizer) -> None:
        self._before.pop(optimizer, None)
        self._found.pop(optimizer, None)
        if optimizer in self._passing:
            self._passing[optimizer].clear()

    def _say(self, step: int, found: Sequence[GroupDiagnosis]) -> None:
        """A warning for each measure that passes a threshold for the first time; of the first measurement only what is broken."""
        for row in found if self.warn else ():
            first = self._first(row)
            for measure, said in alarms_of(row, row if first is None else first):
                key = (row.group, row.run, measure)
                if key in self._told or (first is None and measure in ("volatile", "stagnant")):
                    continue  # Adam's first step is its largest, and a warmup's may be of size 0
                self._told.add(key)
                where = row.group if row.run is None else f"{row.group}' run '{row.run}"
                log.warning("step %d, '%s': %s", step, where, said)

    def _first(self, row: GroupDiagnosis) -> GroupDiagnosis | None:
        return self._firsts.get((row.group, row.run))

    def _keep(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; the first of each group that shows activity, if any does, is what later ones are compared with."""
        for row in rows:
            self.rows.append(row)
            key = row["group"], row["run"]
            if key not in self._firsts or (row["n"] and not self._firsts[key].n):
                self._firsts[key] = _row(row)

    # -- construction -------------------------------------------------------------------------------------------------

    def _acted_on(self) -> Iterable[tuple[str, Tensor]]:
        return [(part.part.parameter, part.parameter) for group in self.groups for part in group.incoming_weights()]

    def _by_optimizer(self) -> dict[Optimizer, list[BoundGroup]]:
        """The groups of each optimizer. Raises `ValueError` for one that none steps."""
        home = home_of_parameters(self.optimizers)
        found: dict[Optimizer, list[BoundGroup]] = {}
        for group in self.groups:
            if group.first not in home:
                name = group.incoming[0].part.parameter
                raise ValueError(
                    f"group '{group.name}': '{name}' is not in the optimizer given; exclude the group, or give its own"
                )
            found.setdefault(home[group.first], []).append(group)
        return found

    @staticmethod
    @torch.no_grad()
    def _size(group: BoundGroup) -> list[float]:
        """Mean |incoming weight| of each run."""
        return cast(
            list[float], weight_magnitude(*(part.entries() for part in group.incoming_weights()), leading=1).tolist()
        )

    def _check_parameters(self, groups: Iterable[BoundGroup]) -> None:
        """Raise `RuntimeError` if a weight that is measured is no longer the model's."""
        for group in groups:
            for part in group.incoming_weights():
                home, leaf = group.place(part.part.parameter)
                if home.get(leaf) is not part.parameter:
                    raise RuntimeError(
                        f"'{part.part.parameter}' was replaced by another tensor after the Monitor attached "
                        f"(load_state_dict(assign=True), a conversion, a parametrization?). detach(), and attach to the model as "
                        f"it is now"
                    )

    def detach(self) -> None:
        """Remove every hook. What was measured stays."""
        super().detach()
        for passing in getattr(self, "_passing", {}).values():
            passing.stop()

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        owed = [len(self._late.owed.get(place, ())) for place in range(len(self.steps))]
        return {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint(),
            "steps": list(self.steps),
            "owed": owed,
            "sizes": {name: list(sizes) for name, sizes in self._sizes.items()},
            "told": [list(each) for each in sorted(self._told, key=str)],
            "rows": [dict(row) for row in self.rows],
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, {"format": FORMAT})
        self.plan.check_fingerprint(state["fingerprint"])
        rows = [_checked_row(row) for row in entry(state, "rows", [])]
        steps, owed = counts_in(state, "steps", len(self.steps)), counts_in(state, "owed", len(self.steps))
        sizes = {name: [float(size) for size in state["sizes"][name]] for name in self._sizes}
        told = {(str(group), None if run is None else int(run), str(measure)) for group, run, measure in state["told"]}
        self.steps, self._sizes, self._told, self.rows, self._firsts = steps, sizes, told, [], {}
        self._keep(rows)
        self._started = {row["optimizer"] for row in rows}
        self._unsettled.clear()
        self._late.clear({place: [None] * count for place, count in enumerate(owed) if count})
        for each in self._destinations if self._ranks.leads else ():
            each.go_on(rows)
        for place, each in enumerate(self.optimizers):
            self._forget(each)
            if self._handles or not self._steps_by_itself:
                self._prepare(place, each)

    def _state_after(self, other: Attached, state: dict[str, Any]) -> dict[str, Any]:
        """Steps, rows and what was told go on, and so do the sizes at the start of groups that are still there."""
        sizes = {name: state["sizes"].get(name, held) for name, held in self.state_dict()["sizes"].items()}
        return {**state, "fingerprint": self.plan.fingerprint(), "sizes": sizes}

    # -- for readers --------------------------------------------------------------------------------------------------

    def latest(self) -> Diagnosis | None:
        """The last measurement of each group, beside its first, as `diagnose` gives it; None before the first step."""
        last = {(row["group"], row["run"]): _row(row) for row in self.rows}
        if not last:
            return None
        first = [cast(GroupDiagnosis, self._first(row)) for row in last.values()]
        steps = ", ".join(map(str, sorted({row["step"] for row in self.rows[-len(last) :]})))
        return Diagnosis(
            list(last.values()), self.plan, "training", self.tau,
            reference=Diagnosis(first, self.plan, "training", self.tau, name="first"), name="last",
            remarks=[f"at step {steps}, beside the first measurement"],
        )  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        return {"every": self.every, "steps": list(self.steps), "rows": self.records()}

    def table(self) -> tuple[Cells, Sequence[str]]:
        latest = self.latest()
        return ([("nothing measured yet",)], [repr(self)]) if latest is None else latest.table()

    def plot(self) -> Any:
        """A figure of every measure against optimizer steps, a line per group."""
        series: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for row in self.rows:
            name = row["group"] if row["run"] is None else f"{row['group']} run {row['run']}"
            for field, title in TITLES.items():
                if field not in LABELS and row[field] is not None:
                    xs, ys = series.setdefault(title, {}).setdefault(name, ([], []))
                    xs.append(row["step"])
                    ys.append(float(row[field]))
        return curves("optimizer steps", series)

    def __repr__(self) -> str:
        hooked = "" if self._handles else ", detached"
        measured_at = len({(row["step"], row["optimizer"]) for row in self.rows})
        return f"Monitor({len(self.groups)} groups, every={self.every}, {max(self.steps)} steps, {measured_at} measured{hooked})"


def _unscaled(gradient: Tensor | None, scale: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or scale is None else gradient / scale.to(gradient.device)


def _ratio(now: float, start: float) -> float | None:
    return now / start if start else None


def _row(record: Mapping[str, Any]) -> GroupDiagnosis:
    return GroupDiagnosis(**{each.name: record[each.name] for each in fields(GroupDiagnosis)})


def _checked_row(record: Any) -> dict[str, Any]:
    """A row of a saved state. Raises `ValueError` if it is none."""
    names = ["step", "optimizer", *(each.name for each in fields(GroupDiagnosis))]
    if not isinstance(record, Mapping) or list(cast(Mapping[str, Any], record)) != names:
        raise ValueError("'rows' of this state holds what is no measurement: load what state_dict() gave")
    row = dict(cast(Mapping[str, Any], record))
    count_in(row, "step")
    return row


def _values(found: Sequence[GroupDiagnosis]) -> dict[str, float]:
    """Numbers by name, for trackers: counts of units as shares."""
    values: dict[str, float] = {}
    for row in found:
        where = f"pliant/{row.group}" if row.run is None else f"pliant/{row.group}/run {row.run}"
        for name in (each.name for each in fields(row) if each.name not in LABELS):
            value = getattr(row, name)
            if value is not None and isfinite(value):
                shared = name in COUNTS
                values[f"{where}/{name}{'_share' if shared else ''}"] = value / row.units if shared else float(value)
    return values
