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
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.optimizer_state import OptimizerState
from pliant.redraw import Redraw
from pliant.replacement import blend
from pliant.units.activity import Reading
from pliant.units.bound import BoundGroup, Chosen
from pliant.units.map import Slice, UnitGroup, UnitMap

log = logging.getLogger("pliant")

FORMAT = 1


class Score(Protocol):
    """How useful units are. Remembers what it needs between steps, per group."""

    reads: Sequence[Reading]
    keeps_means: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What a saved state is only good for: names, strings and numbers."""
        ...

    def bind(self, groups: Sequence[BoundGroup]) -> None:
        """Start at zero for these groups."""
        ...

    def update(self, group: BoundGroup) -> None:
        """Take in what the group did in this step."""
        ...

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        """Usefulness of each unit, (runs, units); less is replaced sooner."""
        ...

    def mean(self, group: BoundGroup) -> Tensor:
        """Mean activity of each column, (runs, units, columns), to hand over."""
        ...

    def forget(self, group: BoundGroup, chosen: Chosen) -> None:
        """The chosen units are new."""
        ...

    def move(self, group: BoundGroup, device: torch.device) -> None:
        """What is kept of the group goes to `device`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Select(Protocol):
    """Which units go, and when."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a saved state is only good for: names, strings and numbers."""
        ...

    def bind(self, groups: Sequence[BoundGroup], seeds: Sequence[int]) -> None:
        """Start the clocks of these groups; one seed a run."""
        ...

    def __call__(self, group: BoundGroup, value: Callable[[], Tensor]) -> Chosen | None:
        """The units of one group to replace in this step; `value` computes their usefulness if it is needed."""
        ...

    def stats(self, group: BoundGroup) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UnitReset:
    """Resets hidden units of `model` after each step of `optimizer`.

    Args:
        model: the network that trains.
        optimizer: what steps it, or several (each parameter is looked up in its own); a group's clock is the
            optimizer of its first incoming weight.
        groups: the units, see `pliant.units.UnitGroup` and `chain_groups`.
        score, select, redraw, forget: the four parts.
        seed: of all draws, or one for each run of a stack; None takes `torch.initial_seed()`.
        attach: True resets by itself after `optimizer.step()`; False waits for you to call `step()` there.

    Raises `ValueError` or `TypeError` if a group does not fit the model or no optimizer steps it, and
    `RuntimeError` at the first step if the tapped modules never ran in training mode.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        groups: Sequence[UnitGroup],
        score: Score,
        select: Select,
        redraw: Redraw,
        forget: OptimizerState,
        seed: int | Sequence[int] | None = None,
        attach: bool = True,
    ) -> None:
        self.optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
        self.groups = [BoundGroup(spec, model) for spec in groups]
        self._heard: set[str] = set()  # groups whose taps ran since we attached
        self._steps = {group.name: 0 for group in self.groups}
        self._last: dict[str, int | None] = dict.fromkeys(self._steps)
        self._replaced = {group.name: [0] * group.runs for group in self.groups}
        self._check_overlap()
        self.seeds = self._seeds_of_runs(seed)
        self.generators = [torch.Generator().manual_seed(each) for each in self.seeds]
        self.score, self.select, self.redraw, self.forget = score, select, redraw, forget
        if redraw.hand_over_mean and not score.keeps_means:
            raise ValueError(f"{type(score).__name__} keeps no means to hand over; use Redraw(hand_over_mean=False)")
        self.score.bind(self.groups)
        self.select.bind(self.groups, self.seeds)
        self.redraw.bind(self.groups)
        self.plan = UnitMap([group.plan_row(hand_over=redraw.hand_over_mean) for group in self.groups])
        self.forget.bind(self.optimizers, self.groups)  # hooks from here on: nothing may fail after it
        self._handles = [group.listen(score.reads) for group in self.groups]
        if attach:
            self._handles += [each.register_step_post_hook(self._after_step) for each in self.optimizers]

    # -- one step ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Replace the units that are due. Runs after `optimizer.step()`; by itself unless `attach=False`."""
        chosen: dict[BoundGroup, Chosen] = {}
        for group in self._observed(optimizer):
            group.age += 1
            self.score.update(group)
            units = self.select(group, lambda group=group: self.score.value(group, self.generators))
            if units is not None:
                chosen[group] = units
        self._replace(chosen)

    def _replace(self, chosen: dict[BoundGroup, Chosen]) -> None:
        """The phases, each over all groups before the next."""
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
            group.age[units.where] = torch.where(units.strength >= 1.0, 0, group.age[units.where])
            self._count(group, units)

    def _count(self, group: BoundGroup, units: Chosen) -> None:
        for run, count in enumerate(units.counts):
            self._replaced[group.name][run] += count
        self._last[group.name] = self._steps[group.name]
        log.debug("replaced %s units of '%s' at step %d", units.counts, group.name, self._steps[group.name])

    def _observed(self, optimizer: Optimizer | None) -> list[BoundGroup]:
        """Groups of this clock that ran since its last step; the others keep theirs."""
        clocked = [group for group in self.groups if optimizer in (None, self.forget.optimizer_of(group.first))]
        observed = [group for group in clocked if group.activity.examples]
        self._heard.update(group.name for group in observed)
        if clocked and not any(group.name in self._heard for group in clocked):
            names = ", ".join(sorted({f"'{group.spec.tap.module}'" for group in clocked}))
            raise RuntimeError(
                f"the optimizer stepped, but none of the tapped modules ({names}) ran in training mode with gradients before "
                f"it. Call model.train(), and attach before the first call of a compiled model"
            )
        for group in observed:
            self._steps[group.name] += 1
            if group.age.device != group.first.device:
                self._move(group, group.first.device)
        return observed

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.step(optimizer)

    # -- what happened -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each group, host integers: steps seen, units replaced (one entry a run), the last step that replaced any."""
        return {
            group.name: {
                "steps": self._steps[group.name],
                "replaced": list(self._replaced[group.name]),
                "last_replaced_at": self._last[group.name],
                **self.select.stats(group),
            }
            for group in self.groups
        }

    # -- attaching, moving, saving ------------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove every hook. From here on the optimizer counts young entries' steps with its shared counter, and their
        moments are scaled to fit it."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def to(self, device: torch.device | str) -> Self:
        """Move our state. It follows the model by itself at the next step."""
        for group in self.groups:
            self._move(group, torch.device(device))
        return self

    def _move(self, group: BoundGroup, device: torch.device) -> None:
        group.to(device)
        self.score.move(group, device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries."""
        return {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint(),
            "settings": self._settings(),
            "groups": {group.name: group.state_dict() for group in self.groups},
            "counts": {
                name: {"steps": self._steps[name], "replaced": list(self._replaced[name]), "last": self._last[name]}
                for name in self._steps
            },
            "score": self.score.state_dict(),
            "select": self.select.state_dict(),
            "forget": self.forget.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises `ValueError` if it was saved for other units or by another format."""
        if state["format"] != FORMAT:
            raise ValueError(f"this state has format {state['format']}, this version reads {FORMAT}")
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
        for group in self.groups:
            group.load_state_dict(state["groups"][group.name])
            held = state["counts"][group.name]
            self._steps[group.name], self._last[group.name] = held["steps"], held["last"]
            self._replaced[group.name] = list(held["replaced"])
        self.score.load_state_dict(state["score"])
        self.select.load_state_dict(state["select"])
        self.forget.load_state_dict(state["forget"])
        for generator, held in zip(self.generators, state["generators"], strict=True):
            generator.set_state(held.cpu())

    def _settings(self) -> dict[str, Any]:
        """What a state depends on; the replacement rate and `count` may change between saving and loading."""
        parts = {"score": type(self.score).__name__, "select": type(self.select).__name__}
        return {**parts, **self.score.settings, **self.select.settings, "runs": self.groups[0].runs}

    def __deepcopy__(self, memo: object) -> Self:
        raise TypeError(
            f"{type(self).__name__} holds hooks on one model and cannot be copied. Copy the model and its optimizer, build "
            f"a new {type(self).__name__} on the copies, and load this one's state_dict()"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(f"{type(self).__name__} holds hooks on one model and cannot be pickled; save its state_dict()")

    # -- construction checks -----------------------------------------------------------------------------------

    def _check_overlap(self) -> None:
        """No group named twice, no slice in two groups, one number of runs."""
        if not self.groups:
            raise ValueError("no groups given, so no unit could ever be replaced")
        places = {
            "incoming": [_place(group, part) for group in self.groups for part in group.spec.incoming],
            "outgoing": [_place(group, part) for group in self.groups for part in group.spec.outgoing],
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

    def _seeds_of_runs(self, seed: int | Sequence[int] | None) -> list[int]:
        runs = self.groups[0].runs
        if seed is None or not isinstance(seed, Sequence):
            first = torch.initial_seed() if seed is None else index(seed)
            return [first + run for run in range(runs)]
        if len(seed) != runs:
            raise ValueError(f"{len(seed)} seeds for {runs} runs; give one each, or one number")
        return list(seed)


def _place(group: BoundGroup, part: Slice) -> tuple[tuple[int, int], str]:
    """Which entries a slice owns, whatever name they go by, and that name."""
    return (id(group.parameter(part.parameter)), part.axis), f"{part.parameter}, axis {part.axis}"


def _clear_gradients(group: BoundGroup, chosen: Chosen) -> None:
    for part in group.slices():
        gradient = group.parameter(part.parameter).grad
        if gradient is not None:
            view = group.view(part, gradient)
            view[chosen.where] = blend(view[chosen.where], 0.0, chosen.strength)
