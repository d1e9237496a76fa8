"""`probe_plasticity`: which networks learn which tasks, all of their runs, and what these say."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from pliant.base.arguments import called_with, is_a
from pliant.base.choices import one_of, shown
from pliant.base.process import other_random_states, random_state
from pliant.diagnostics.checkpoints import with_state
from pliant.diagnostics.fresh import Fresh, FreshNetworks
from pliant.diagnostics.probe.data import Examples, examples
from pliant.diagnostics.probe.learning import Learned, called, first_loss, learned
from pliant.diagnostics.probe.optimizers import Maker, OptimizersLike
from pliant.diagnostics.probe.result import FRESH, FRESH_STATE, MODEL, MODEL_STATE, Probe, TaskProbe, task_probe
from pliant.diagnostics.probe.settings import (
    EXAMPLES,
    FACTORS,
    MARGIN,
    SEEDS,
    Settings,
    Tell,
    budget_of,
    in_words,
    sequence_of,
    teller,
)
from pliant.diagnostics.probe.tasks import KINDS, Loss, Task, Tasks
from pliant.diagnostics.probe.time_limit import TimeLimit
from pliant.engine.data_parallel import refuse_shards
from pliant.units.models import checked, copied, unwrapped

log = logging.getLogger("pliant")

Start = Callable[[int], nn.Module]  # seed -> a network to train
Treatment = Callable[[nn.Module, Any], Any]  # network, its optimizer (a list, of several) -> what to detach afterwards


class _Side(NamedTuple):
    name: str
    start: str
    state: bool = False  # whether with the optimizer state of now
    treatment: Treatment | None = None


def probe_plasticity(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | Maker,
    loss: Loss | None = None,
    fresh: Fresh | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    treatments: Mapping[str, Treatment] | None = None,
    tasks: str | Sequence[str] | None = None,
    budget: int | str | None = None,
    seeds: int = SEEDS,
    factors: Sequence[float] = FACTORS,
    examples_used: int = EXAMPLES,
    batch_size: int | None = None,
    margin: float = MARGIN,
    progress: bool | Tell | None = None,
) -> Probe:
    """Does the network learn the next task worse than a fresh copy of it? The definition of lost plasticity, measured.

    Copies of the network as it is, and fresh ones, learn the same tasks from the same examples in the same order, with the same
    kind of optimizer and three step sizes, the best of which counts on either side. The ratio of the areas under their curves of
    training loss, over seeds, gives the answer (`pliant.diagnostics.probe.comparison`). Where the optimizer has a state, copies
    learn with it too. The model, the optimizer, its state, the data and all random states are afterwards as before, to the bit.

    Args:
        model: any network; it is copied, and nothing runs but the copies. Methods that are attached to it are not.
        x: inputs of the next task, as `pliant.diagnose` takes them: a tensor, a tuple (arguments of the forward), a mapping (its
            keyword arguments, with "labels" for a model that returns its loss), a list of such batches, a
            DataLoader, a dataset or a list of single examples.
        y: their targets; a DataLoader brings its own. They may be nested, as for an actor-critic: actions, advantages and
            returns in a mapping.
        optimizer: the one that trains the model, or several; for a model alone, a function that makes one:
            `lambda parameters: torch.optim.Adam(parameters, lr=1e-3)`. Its schedule is left out: step sizes are multiples of the
            first one, which a scheduler writes down, and both it and that of now are named.
        loss: `loss(output, targets)`; without it cross-entropy of whole numbers, squared error of others, or the loss that the
            output holds: its `.loss`, an entry "loss", or its first part.
        fresh: a function that builds an untrained network (called under each seed), or one that was kept. Without it one is
            built where that is sure, see `pliant.diagnostics.fresh`. Frozen parameters are the model's in both.
        checkpoints: further starts, name -> state dictionary, path of one, or network.
        treatments: what might help, name -> function(network, optimizer), called with a copy before it learns the first kind of
            task: it may change both, or attach a method and return it, as in
            `lambda network, optimizer: pliant.ContinualBackprop(network, optimizer, example_inputs=x)`.
        tasks: "random", "own" (the targets as they are), "smooth", or several. By default "own" and "random", without targets
            "random" and "smooth". See `pliant.diagnostics.probe.tasks`.
        budget: at most so many optimizer steps in all (a number), or about so long ("90s", "10min", "1h"): fewer steps and seeds
            are planned; and where they take longer than they seemed to, fewer are made, `Probe.cut` says how many were planned.
            Without it every run has 300 steps. The cost is logged, and shown, before it starts.
        seeds: of the fresh networks, the orders of examples, and dropout; at least 3.
        factors: of the step size, from which the best is taken on each side.
        examples_used: at most so many of the first examples are learned, again and again.
        batch_size: of a step; by default the loader's, else 32.
        margin: an area that is larger by less than this share counts as equal.
        progress: True shows it on the standard error, False does not, a function is called with (runs done, of, what); by
            default it is shown in a terminal.

    Raises `TypeError` or `ValueError`, with nothing changed: no data, a frozen model, an optimizer of another model, a fresh
    network that cannot be built or is not like the model, a checkpoint of another one, a budget too small to tell.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))
    >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
    >>> with torch.no_grad():  # every unit saturated on one side
    ...     model[0].bias.fill_(100.0)[0].item()
    100.0
    >>> make = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
    >>> probe_plasticity(model, x, y, optimizer=make, seeds=3, tasks="own", progress=False).verdict
    'yes'
    """
    settings, limit, tell = (
        Settings.checked(seeds, factors, examples_used, batch_size, margin, x),
        budget_of(budget),
        teller(progress),
    )
    started = time.perf_counter()
    prepared = Prepared.of(model, x, y, optimizer, loss, fresh, settings.examples)
    return probed(prepared, settings, limit, started, tell, checkpoints, treatments, tasks)


class Prepared(NamedTuple):
    """What is probed."""

    root: nn.Module  # without wrappers
    optimizers: OptimizersLike
    fresh: FreshNetworks
    data: Examples  # where the network is
    loss: Loss | None

    @staticmethod
    def of(
        model: nn.Module, x: Any, y: Any, optimizer: Any, loss: Loss | None, fresh: Fresh | None, most: int
    ) -> Prepared:
        """From what `probe_plasticity` takes. Raises `TypeError` or `ValueError` for what does not fit."""
        root = unwrapped(checked(model))
        refuse_shards(model)
        if loss is not None:
            called_with("loss", loss, "the model's output", "the targets")
        optimizers = OptimizersLike(root, optimizer)
        data = examples(root, x, y, most).to(next(iter(root.parameters())).device)
        return Prepared(root, optimizers, FreshNetworks(root, fresh, optimizers.trained), data, loss)


def probed(
    prepared: Prepared,
    settings: Settings,
    limit: int | float | None,
    started: float,
    tell: Tell,
    checkpoints: Mapping[str, Any] | None = None,
    treatments: Mapping[str, Treatment] | None = None,
    tasks: str | Sequence[str] | None = None,
) -> Probe:
    """The probe of what is prepared. `limit` is of optimizer steps, or of seconds since `started`."""
    root, optimizers, fresh, data, loss = prepared
    starts = _starts(root, fresh, checkpoints)
    made = Tasks(data, _output(starts[MODEL](0), data, settings), loss)
    kinds = _kinds(tasks, made)
    sides = {kind: [_Side(name, name) for name in starts] for kind in kinds}
    if optimizers.has_state:
        sides[kinds[0]] += [_Side(MODEL_STATE, MODEL, state=True), _Side(FRESH_STATE, FRESH, state=True)]
    sides[kinds[0]] += [_Side(name, MODEL, treatment=each) for name, each in _treatments(treatments, starts).items()]

    per_seed = sum(map(len, sides.values())) * len(settings.factors)
    second = _seconds_per_step(starts[MODEL], optimizers, made.of(kinds[0], 0), settings)
    in_time = isinstance(limit, float)
    settings = settings.within(limit - (time.perf_counter() - started) if in_time else limit, per_seed, second)
    time_limit = TimeLimit(limit, started, per_seed, settings.steps) if in_time else None
    runs = _Runs(starts, optimizers, settings, made, sides, tell, second, time_limit)
    return Probe(
        runs.all(),
        settings.factors,
        *optimizers.step_sizes,
        optimizers.name,
        runs.seeds,
        runs.steps,
        min(settings.batch_size, data.count),
        data.count,
        settings.margin,
        runs.cut,
        time.perf_counter() - started,
    )


class _Runs:
    """All runs of a probe, one after another, and how far they have come: `seeds` that are whole, of `steps` steps."""

    def __init__(
        self,
        starts: Mapping[str, Start],
        optimizers: OptimizersLike,
        settings: Settings,
        tasks: Tasks,
        sides: Mapping[str, Sequence[_Side]],
        tell: Tell,
        seconds_per_step: float,
        limit: TimeLimit | None,
    ) -> None:
        self.starts, self.optimizers, self.settings, self.tasks = starts, optimizers, settings, tasks
        self.sides, self.tell, self.limit = sides, tell, limit
        self.seeds, self.steps, self.done = 0, settings.steps, 0
        shape = (len(settings.factors), settings.seeds, settings.steps)
        self.losses = {kind: {side.name: np.empty(shape) for side in of} for kind, of in sides.items()}
        self.held_out = {kind: {side.name: np.empty(shape[:-1]) for side in of} for kind, of in sides.items()}
        self.levels = {kind: np.empty(settings.seeds) for kind in sides}  # losses of fresh networks before any step
        self.total = settings.seeds * len(settings.factors) * sum(map(len, sides.values()))
        said = f"{self.total} runs of {self.steps} steps, about {in_words(self.total * self.steps * seconds_per_step)}"
        log.info("probe_plasticity: %s", said)
        tell(0, self.total, said)

    def all(self) -> dict[str, TaskProbe]:
        """Seed by seed, so that those which are whole can be compared wherever the time ends."""
        for seed in range(self.settings.seeds):
            if not self._whole(seed):
                self.tell(self.done, self.done, "the time ends here")
                break
            self.seeds = seed + 1
        return {kind: self._compared(kind) for kind in self.sides}

    @property
    def cut(self) -> str:
        """What the time did not allow; empty where it allowed all that was planned."""
        planned = self.settings.seeds, self.settings.steps
        if self.limit is None or (self.seeds, self.steps) == planned:
            return ""
        return f"cut from {planned[0]} seeds of {planned[1]} steps, to end within {in_words(self.limit.seconds)}"

    def _whole(self, seed: int) -> bool:
        """Make all runs under a seed; False where the time ends before they do."""
        for kind, sides in self.sides.items():
            task = self.tasks.of(kind, seed)
            batch_size = self.settings.batch_size
            self.levels[kind][seed] = first_loss(self.starts[FRESH](seed), task, batch_size=batch_size, seed=seed)
            for side in sides:
                for place, factor in enumerate(self.settings.factors):
                    steps = self.steps if self.limit is None else self.limit.steps_of_next()
                    if steps is None:
                        return False
                    self.steps = steps
                    found = self._learned(side, factor, task, seed)
                    self.losses[kind][side.name][place, seed, :steps] = found.losses
                    self.held_out[kind][side.name][place, seed] = found.held_out
                    self.done += 1
                    self.tell(self.done, self.total, f"{KINDS[kind]}: {side.name}, seed {seed}")
        return True

    def _compared(self, kind: str) -> TaskProbe:
        losses = {name: each[:, : self.seeds, : self.steps] for name, each in self.losses[kind].items()}
        held_out = {name: each[:, : self.seeds] for name, each in self.held_out[kind].items()}
        if self.steps < self.settings.steps:  # after unequal numbers of steps
            held_out = {name: np.full_like(each, np.nan) for name, each in held_out.items()}
        treated = [side.name for side in self.sides[kind] if side.treatment is not None]
        level = float(np.mean(self.levels[kind][: self.seeds]))
        return task_probe(kind, losses, held_out, treated, level, self.settings.margin)

    def _learned(self, side: _Side, factor: float, task: Task, seed: int) -> Learned:
        network = self.starts[side.start](seed)
        optimizers = self.optimizers.on(network, factor, state=side.state)
        made = None
        if side.treatment is not None:
            with random_state(), other_random_states():
                torch.manual_seed(seed)
                made = side.treatment(network, optimizers[0] if len(optimizers) == 1 else optimizers)
        batch_size = self.settings.batch_size
        found = learned(network, optimizers, task, steps=self.steps, batch_size=batch_size, seed=seed)
        if hasattr(made, "detach"):
            cast(Any, made).detach()
        return found


def _treatments(given: Mapping[str, Treatment] | None, taken: Mapping[str, Start]) -> dict[str, Treatment]:
    if given is not None and not is_a(given, Mapping):
        raise TypeError(
            f"treatments is a mapping of names to functions of a network and its optimizer, got {shown(given)}"
        )
    for name, each in (given or {}).items():
        if name in (*taken, MODEL_STATE, FRESH_STATE):
            raise ValueError(f"treatments: the name '{name}' is taken, give another")
        called_with(f"treatments: '{name}'", each, "the network", "its optimizer")
    return dict(given or {})


def _starts(root: nn.Module, fresh: FreshNetworks, checkpoints: Mapping[str, Any] | None) -> dict[str, Start]:
    """Name -> what gives a network in training mode, whose parts that were set apart by mode stay so."""

    def training(network: nn.Module) -> nn.Module:
        return network if root.training else network.train()

    if checkpoints is not None and not is_a(checkpoints, Mapping):
        raise TypeError(
            f"checkpoints is a mapping of names to state dictionaries, paths or networks, got {shown(checkpoints)}"
        )
    starts: dict[str, Start] = {
        FRESH: lambda seed: training(fresh.draw(seed)),
        MODEL: lambda seed: training(copied(root)),
    }
    for name, given in (checkpoints or {}).items():
        if name in (FRESH, MODEL, FRESH_STATE, MODEL_STATE):
            raise ValueError(f"checkpoints: the name '{name}' is taken, give another")
        state = unwrapped(given).state_dict() if isinstance(given, nn.Module) else given
        earlier = with_state(root, state, f"checkpoints: '{name}'")
        starts[str(name)] = lambda seed, earlier=earlier: training(copied(earlier))
    return starts


def _output(network: nn.Module, found: Examples, settings: Settings) -> Any:
    """Of a few examples."""
    few = found.at(torch.arange(min(found.count, max(2, min(settings.batch_size, 8)))))
    with random_state(), other_random_states(), torch.no_grad():
        return called(network, few.inputs)


def _kinds(given: str | Sequence[str] | None, made: Tasks) -> list[str]:
    """Which tasks, the one that the verdict follows first."""
    if given is None:
        return ["own", "random"] if made.data.has_targets else ["random", "smooth"]
    words = sequence_of("tasks", given)
    if not words:
        raise TypeError(f"tasks is one of {', '.join(KINDS)}, or several, got {shown(given)}")
    found = [kind for kind in ("own", "random", "smooth") if kind in {one_of("task", each, KINDS) for each in words}]
    for kind in found:
        why = made.available()[kind]
        if why is not None:
            raise ValueError(f"tasks: '{kind}' cannot be made: {why}")
    return found


def _seconds_per_step(start: Start, optimizers: OptimizersLike, task: Task, settings: Settings) -> float:
    """From a few steps, without the first, which loads what a first step loads."""
    task = replace(task, held_out=None)
    network = start(0)
    stepped = optimizers.on(network, 1.0, state=False)
    learned(network, stepped, task, steps=1, batch_size=settings.batch_size, seed=0)
    began = time.perf_counter()
    learned(network, stepped, task, steps=3, batch_size=settings.batch_size, seed=0)
    return (time.perf_counter() - began) / 3
