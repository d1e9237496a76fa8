"""What every method promises, on every network and with every optimizer: one grid.

    METHODS     a method is one row: how it is built, when it is off, and which promises it cannot keep, with the reason
    PROMISES    functions of a cell (method, network, optimizer), which raise `AssertionError` where the promise is broken

Runs are compared to the bit unless a promise says otherwise, and in each of them something happened: 20 units or more were
replaced in every group, and the network is another than without the method.
"""

import copy
import pickle
import random
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pliant
from tests.methods.runs import (
    NETWORKS,
    OPTIMIZERS,
    STEPS,
    Cell,
    Run,
    acted,
    acted_at_all,
    alike,
    differences,
    plain,
    plain_weights,
    same,
    same_methods,
    weights,
)

# -- one row for each method ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A row: a method, with settings under which much happens in `STEPS` steps."""

    name: str
    build: Callable[..., Any]  # (model, optimizer or optimizers, example inputs, **settings)
    settings: Mapping[str, Any]
    off: Mapping[str, Any]  # settings with which it changes nothing
    wrong: Mapping[str, Any]  # settings that it refuses; none where it is a call, which attaches to nothing
    cannot: Mapping[str, str] = field(default_factory=dict)  # name of a promise -> why it does not hold
    like: str = (
        ""  # the row of which it shares the engine: of the promises that this keeps for it, some are asked by default
    )

    @property
    def draws(self) -> bool:
        return "seed" in self.settings

    @property
    def is_a_call(self) -> bool:
        return not self.wrong


def resets_units(kind, **fixed):
    def build(model, optimizer, x, **settings):
        return kind(model, optimizer, example_inputs=x, **fixed, **settings)

    return build


def on_parameters(kind, **fixed):
    def build(model, optimizer, x, **settings):
        return kind(model, optimizer, **fixed, **settings)

    return build


class Every:
    """A call at every so many steps, by hand, as a training loop makes it; what is saved is how often it was called."""

    def __init__(self, act, model, optimizer, *, period, seed=0):
        self.act, self.model, self.optimizer, self.period, self.seed = act, model, optimizer, period, seed
        self.steps = 0

    def tick(self, others):
        self.steps += 1
        if self.period is not None and self.steps % self.period == 0:
            self.act(self.model, self.optimizer, self.seed + self.steps)
            for other in others:
                if self.act is new_network and hasattr(other, "restart"):
                    other.restart()

    def state_dict(self):
        return {"seed": self.seed, "steps": self.steps}

    def load_state_dict(self, state):
        self.seed, self.steps = state["seed"], state["steps"]


def new_head(model, optimizer, seed):
    *_, head = getattr(model, "_orig_mod", getattr(model, "module", model)).children()
    pliant.reset_head(head, optimizer, seed=seed)


def new_network(model, optimizer, seed):
    pliant.reset_network(model, optimizer, seed=seed)


def new_optimizer(model, optimizer, seed):
    pliant.reset_optimizer(optimizer)


def shrinking_by_direction(model, optimizer, x, **settings):
    """DASH, by the loss on the same portion of data at each event; each rank has its own."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    portion = torch.linspace(-1.0, 1.0 + rank, x.numel()).view_as(x).to(x)

    def event(model, optimizer, seed):
        pliant.DASH(model, optimizer).apply(model(portion).square().mean() for _ in range(2))

    return Every(event, model, optimizer, **settings)


class WithEvents:
    """A method with an event after every seventh step, while it is attached, on one batch; each rank has its own."""

    def __init__(self, model, optimizer, x, **settings):
        self.ticks, rank = 0, dist.get_rank() if dist.is_initialized() else 0
        self.model = model
        self.x = torch.linspace(-1.0, 1.0 + rank, 4 * x.numel()).view(-1, *x.shape[1:]).to(x)
        super().__init__(model, optimizer, **settings)

    def tick(self, others):
        self.ticks += 1
        if self.ticks % 7 == 0 and self._handles:
            self.event()

    def state_dict(self):
        return {**super().state_dict(), "ticks": self.ticks}

    def _load(self, state):
        super()._load(state)
        self.ticks = state["ticks"]


class SoftlyReset(WithEvents, pliant.SoftResets):
    def event(self):
        self.apply(lambda: self.model(self.x).square().mean())


class KeptInRank(WithEvents, pliant.L2ER):
    def __init__(self, model, optimizer, x, **settings):
        names = dict(getattr(model, "_orig_mod", getattr(model, "module", model)).named_modules())
        features = next(name for name in ("3", "layer", "middle", "1") if name in names)
        super().__init__(model, optimizer, x, features=features, **settings)

    def event(self):
        self.apply(self.x)


def called(act):
    def build(model, optimizer, x, **settings):
        return Every(act, model, optimizer, **settings)

    return build


CALLED_BY_HAND = dict.fromkeys(
    [
        "a_step_that_a_grad_scaler_skips_is_none",
        "a_step_that_a_grad_scaler_skips_is_none_once_what_was_read_is_dropped",
        "a_fused_step_that_a_grad_scaler_skips_is_none",
    ],
    "who calls it counts the steps",
)
A_CALL = CALLED_BY_HAND | {
    "a_copy_of_the_method_is_refused": "a call holds nothing to copy",
    "detached_it_leaves_no_hook_and_training_is_plain": "a call is never attached",
    "a_construction_that_fails_leaves_no_hook": "a call is never attached",
    "a_foreign_state_is_refused_and_changes_nothing": "a call has no state",
    "a_state_of_other_sizes_is_refused_and_changes_nothing": "a call has no state",
}
READS_ACTIVITY = {
    "a_step_that_a_grad_scaler_skips_is_none": "no hook tells of it, so its batch is read with the next (docs/any-network.md)"
}
NO_DRAW = {"another_seed_gives_another_network": "it draws nothing"}
OF_NO_SIZE = {
    "a_state_of_other_sizes_is_refused_and_changes_nothing": "the state has no sizes: it fits any network of these names"
}
TWO_OF_A_KIND = dict.fromkeys(
    ["built_before_continual_backprop_it_keeps_its_word", "built_after_continual_backprop_it_keeps_its_word"],
    "two of one class on the same units refuse one another",
)
UNITS = {"seed": 1, "trial": False}  # the trial of a plan has tests of its own, and takes longer than all steps here
OFTEN = {"replacement_rate": 0.3, "maturity_threshold": 1, **UNITS}

METHODS = [
    Method(
        "continual backprop",
        resets_units(pliant.ContinualBackprop),
        settings=OFTEN,
        off={"replacement_rate": 0.0},
        wrong={"init": "nothing known"},
        cannot=READS_ACTIVITY | TWO_OF_A_KIND,
    ),
    Method(
        "redo",
        resets_units(pliant.ReDo),
        settings={"tau": 1.0, "period": 2, **UNITS},
        off={"period": 10**9},
        wrong={"optimizer_state": "nothing known"},
        cannot=READS_ACTIVITY,
    ),
    Method(
        "random replacement",
        resets_units(pliant.RandomReplacement),
        settings=OFTEN,
        off={"replacement_rate": 0.0},
        wrong={"maturity_threshold": -1},
        cannot=READS_ACTIVITY,
    ),
    Method(
        "grama",
        resets_units(pliant.GraMa),
        settings={"tau": 1.0, "period": 2, **UNITS},
        off={"period": 10**9},
        wrong={"tau": -1.0},
        like="redo",
    ),
    Method(
        "grama by activity",
        resets_units(pliant.GraMa, of="activity"),
        settings={"tau": 1.0, "period": 2, **UNITS},
        off={"period": 10**9},
        wrong={"of": "nothing known"},
        cannot=READS_ACTIVITY,
        like="redo",
    ),
    Method(
        "self-normalized resets",
        resets_units(pliant.SelfNormalizedResets),
        settings={
            "rejection": 1.0,
            "shortest": 0,
            "longest": 4,
            **UNITS,
        },  # units go as soon as they have fired, in any batch
        off={"rejection": 0.0, "longest": STEPS + 1},
        wrong={"gaps": "nothing known"},
        like="redo",
    ),
    Method(
        "partial resets",
        resets_units(pliant.PartialResets),
        settings={"replacement_rate": 0.2, "period": 3, **UNITS},
        off={"replacement_rate": 0.0},
        wrong={"replacement_rate": 1.0},
        like="redo",
    ),
    Method(
        "l2",
        on_parameters(pliant.L2),
        settings={"strength": 0.02},
        off={"strength": 0.0},
        wrong={"strength": -1.0},
        cannot=NO_DRAW | OF_NO_SIZE,
    ),
    Method(
        "l2 toward the start",
        on_parameters(pliant.L2, toward="initial"),
        settings={"strength": 0.02},
        off={"strength": 0.0},
        wrong={"strength": -1.0},
        cannot=NO_DRAW,
    ),
    Method(
        "spectral",
        on_parameters(pliant.Spectral),
        settings={"strength": 0.02},
        off={"strength": 0.0},
        wrong={"power": 0.0},
        cannot=NO_DRAW,
        like="l2 toward the start",
    ),
    Method(
        "parseval",
        on_parameters(pliant.Parseval, parameters=lambda name, parameter: parameter.dim() > 1),
        settings={"strength": 0.002},
        off={"strength": 0.0},
        wrong={"scale": -1.0},
        cannot=NO_DRAW | OF_NO_SIZE,
        like="l2",
    ),
    Method(
        "shrink and perturb",
        on_parameters(pliant.ShrinkAndPerturb),
        settings={"noise_std": 0.005, "shrink": 0.99, "period": 3, "seed": 1},
        off={"noise_std": 0.0, "shrink": 1.0},
        wrong={"shrink": 2.0},
        cannot=OF_NO_SIZE,
    ),
    Method(
        "shrink and perturb by fresh weights",
        on_parameters(pliant.ShrinkAndPerturb, source="init"),
        settings={"noise_std": 0.05, "shrink": 0.95, "period": 5, "seed": 1},
        off={"noise_std": 0.0, "shrink": 1.0},
        wrong={"parameters": "nothing known"},
        cannot=OF_NO_SIZE,
    ),
    Method(
        "weight clipping",
        on_parameters(pliant.WeightClipping),
        settings={"kappa": 0.5, "period": 2},
        off={"kappa": 1e9},
        wrong={"kappa": 0.0},
        cannot=NO_DRAW | OF_NO_SIZE,
        like="shrink and perturb",
    ),
    Method(
        "normalize and project",  # these networks have no layer whose scale does not matter, so it is told which
        on_parameters(pliant.NormalizeAndProject, parameters="*weight*"),
        settings={"period": 2},
        off={"period": 10**9},
        wrong={"parameters": "nothing known"},
        cannot=NO_DRAW | OF_NO_SIZE,
        like="shrink and perturb",
    ),
    Method(
        "hare and tortoise",
        on_parameters(pliant.HareAndTortoise),
        settings={"decay_rate": 0.9, "period": 5},
        off={"period": None},
        wrong={"decay_rate": 1.0},
        cannot=NO_DRAW,
        like="shrink and perturb",
    ),
    Method(
        "selective reinitialization",
        on_parameters(pliant.SelectiveReinitialization),
        settings={"tau": 0.1, "period": 3, "seed": 1},
        off={"period": 10**9},
        wrong={"utility": "nothing known"},
        cannot=OF_NO_SIZE,
        like="shrink and perturb by fresh weights",
    ),
    Method(
        "fire",
        on_parameters(pliant.FIRE),
        settings={"period": 7},
        off={"period": None},
        wrong={"parameters": "nothing known"},
        cannot=NO_DRAW | OF_NO_SIZE,
        like="shrink and perturb",
    ),
    Method(
        "reset head",
        called(new_head),
        settings={"period": 7, "seed": 1},
        off={"period": None},
        wrong={},
        cannot=A_CALL,
    ),
    Method(
        "reset network",
        called(new_network),
        settings={"period": 7, "seed": 1},
        off={"period": None},
        wrong={},
        cannot=A_CALL,
    ),
    Method(
        "reset optimizer",
        called(new_optimizer),
        settings={"period": 7},
        off={"period": None},
        wrong={},
        cannot=A_CALL | NO_DRAW,
    ),
    Method(
        "wasserstein",
        on_parameters(pliant.Wasserstein),
        settings={"strength": 0.02},
        off={"strength": 0.0},
        wrong={"strength": -1.0},
        cannot=NO_DRAW,
        like="l2 toward the start",
    ),
    Method(
        "l2-er",
        KeptInRank,
        settings={"strength": 0.02, "rank_step_size": 0.01},
        off={"strength": 0.0, "rank_step_size": 0.0},
        wrong={"rank_step_size": -1.0},
        cannot=NO_DRAW | OF_NO_SIZE | CALLED_BY_HAND,
        like="l2",
    ),
    Method(
        "soft resets",
        SoftlyReset,
        settings={"gamma_step_size": 0.1, "spread": 0.9, "seed": 1},
        off={"gamma_step_size": 0.0},
        wrong={"spread": 0.0},
        cannot=CALLED_BY_HAND,
        like="shrink and perturb",
    ),
    Method(
        "dash",
        shrinking_by_direction,
        settings={"period": 7},
        off={"period": None},
        wrong={},
        cannot=A_CALL | NO_DRAW,
    ),
]


def row_of(name):
    (row,) = (method for method in METHODS if method.name == name)
    return row


BESIDE = row_of("continual backprop")


# -- off, seeds, saving --------------------------------------------------------------------------------------------------


def off_it_changes_nothing(cell):
    off = Run(cell, off=True).train(range(STEPS))
    same(off, plain(cell))
    if hasattr(off.methods[0], "stats"):
        assert {group["steps"] for group in off.methods[0].stats().values()} == {STEPS}
    acted_at_all(Run(cell).train(range(STEPS)), cell)


def it_repeats_with_its_seed(cell):
    first = Run(cell).train(range(STEPS))
    torch.manual_seed(99)
    second = Run(cell).train(range(STEPS))
    acted_at_all(first, cell)
    same(first, second)
    same_methods(first, second)


def another_seed_gives_another_network(cell):
    first, second = (Run(cell, seed=seed).train(range(STEPS)) for seed in (1, 2))
    acted_at_all(first, cell)
    acted(second, first)


def it_resumes_to_the_bit(cell):
    acted_at_all(resumed(cell), cell)


def resumed(cell, methods=None, **how):
    """A run that was never stopped, after one that was, saved and loaded into new objects, has come out the same."""
    half = STEPS // 2 + 1
    straight = Run(cell, methods, **how).train(range(STEPS))
    stopped = Run(cell, methods, **how).train(range(half))
    saved = stopped.save()
    stopped.train(range(half, half + 3))  # what was saved must not follow
    other_seed = {"seed": 99} if cell.method.draws else {}
    loaded = Run(cell, methods, initial=5, **other_seed, **how).load(saved).train(range(half, STEPS))
    same(straight, loaded)
    same_methods(straight, loaded)
    return straight


# -- what it leaves alone ------------------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def it_keeps_dtype_and_device(cell):
    for device in DEVICES:
        for dtype in (torch.float64, torch.bfloat16):
            how = {"dtype": dtype, "device": device}
            run, without = Run(cell, **how).train(range(STEPS)), plain(cell, **how)
            assert kinds(run) == kinds(without)
            acted(run, without)


def kinds(run):
    """Dtype and device of all that the network and its optimizers hold."""
    states = {
        (number, name): held
        for number, optimizer in enumerate(run.optimizers)
        for each, entries in optimizer.state_dict()["state"].items()
        for name, held in ((f"{each}/{key}", value) for key, value in entries.items())
    }
    tensors = {**run.inner.state_dict(), **states}
    return {name: (held.dtype, held.device) for name, held in tensors.items() if isinstance(held, torch.Tensor)}


def it_leaves_the_global_random_state_alone(cell):
    def states():
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    def seen(**how):
        torch.manual_seed(7)
        run = Run(cell, **how)
        found = [states()]
        run.train(range(STEPS), after=lambda: found.append(states()))
        return run, found

    (run, found), (_, expected) = seen(), seen(methods=[])
    acted_at_all(run, cell)
    assert found == expected


def a_copy_of_the_model_is_inert(cell):
    """Copies of network and optimizer train as if nothing had been attached, and the original does not notice."""
    half = STEPS // 2
    run = Run(cell).train(range(half))
    before = copy.deepcopy([method.state_dict() for method in run.methods])
    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, expected = Run(cell, []), Run(cell, [])
        twin.inner, (optimizer,) = copied((run.inner, run.optimizers))
        twin.model, twin.optimizers = twin.inner, [optimizer]
        expected.load(run.save())
        same(twin, expected)
        twin.train(range(half, STEPS))
        same(twin, expected.train(range(half, STEPS)))
        assert differences(before, [method.state_dict() for method in run.methods]) == []
        assert not any(sum(method.recorded().values()) for method in run.methods if hasattr(method, "recorded"))
    run.train(range(half, STEPS))
    acted_at_all(run, cell)
    same(run, Run(cell).train(range(STEPS)))


def a_copy_of_the_method_is_refused(cell):
    (method,) = Run(cell).methods
    refused(lambda: copy.deepcopy(method), TypeError, r"load this one's state_dict\(\)")
    refused(lambda: pickle.dumps(method), TypeError, r"save its state_dict\(\)")


def refused(act, error, says=None):
    """`act` raises such an error, which says what to do."""
    with pytest.raises(error, match=says):
        act()


# -- hooks ---------------------------------------------------------------------------------------------------------------


def hooks(run):
    """How many hooks of each kind hang on the optimizers, the modules and the parameters, and what else was put on them."""
    found = {}
    for number, each in enumerate([*run.optimizers, *run.model.modules(), *run.inner.parameters()]):
        for name, held in vars(each).items():
            found[number, name] = len(held) if "hook" in name and isinstance(held, Mapping) else None
    for number, parameter in enumerate(run.inner.parameters()):
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found[number, name] = len(getattr(parameter, name) or ())
    return found


def detached_it_leaves_no_hook_and_training_is_plain(cell):
    run = Run(cell)
    assert hooks(run) != hooks(Run(cell, []))
    run.train(range(STEPS))
    acted_at_all(run, cell)
    run.methods[0].detach()
    assert hooks(run) == hooks(plain(cell))
    alone = Run(cell, []).load(run.save())
    after = range(STEPS, STEPS + 8)
    same(run.train(after), alone.train(after))
    run = Run(cell)
    with run.methods[0]:
        pass
    assert hooks(run) == hooks(Run(cell, []))


def a_construction_that_fails_leaves_no_hook(cell):
    """Of wrong settings, then of an optimizer of another network."""
    run, other = Run(cell, []), Run(cell, [])
    before, row, x = hooks(run), cell.method, torch.zeros(2, *run.shape)
    for optimizers, wrong in ((run.optimizers, row.wrong), (other.optimizers, {})):
        settings = {**row.settings, **wrong}
        refused(lambda given=optimizers, s=settings: row.build(run.model, given, x, **s), (ValueError, TypeError))
        assert hooks(run) == before
        assert hooks(other) == before
    same(run.train(range(STEPS)), plain(cell))
    acted_at_all(Run(cell).train(range(STEPS)), cell)


# -- training loops ------------------------------------------------------------------------------------------------------


def it_goes_with_two_optimizers(cell):
    """Of two kinds, of which the second steps every second time; off it changes nothing, and it resumes to the bit."""
    without = plain(cell, split=True)
    same(Run(cell, off=True, split=True).train(range(STEPS)), without)
    run = resumed(cell, split=True)
    acted_in_half(run, without)


def acted_in_half(run, without):
    for method in run.methods:
        for name, group in method.stats().items() if hasattr(method, "stats") else ():
            assert group["steps"] == (STEPS if name.split(".")[0] in run.first_layers else STEPS // 2)
            assert sum(group["replaced"]) >= 10
    for optimizer in run.optimizers:
        own = {id(each) for settings in optimizer.param_groups for each in settings["params"]}
        theirs = without.inner.state_dict()
        assert any(
            not torch.equal(each, theirs[name]) for name, each in run.inner.named_parameters() if id(each) in own
        )


def a_closure_changes_nothing(cell):
    """Forward and backward then happen within the step."""

    def with_closure(run, number):
        x, y = run.batch(number)

        def closure():
            run.zero_grad()
            loss = run.loss(x, y)
            loss.backward()
            return loss

        run.optimizers[0].step(closure)
        run.tick()

    within = Run(cell).train(range(STEPS), with_closure)
    without = Run(cell).train(range(STEPS))
    acted_at_all(within, cell)
    same(within, without)
    same_methods(within, without)


def accumulated_gradients_are_those_of_the_joint_batch(cell):
    """In float64, to rounding."""

    def in_parts(run, number):
        x, y = run.batch(number)
        run.zero_grad()
        for part in (slice(0, 3), slice(3, 8)):
            (run.loss(x[part], y[part]) * (part.stop - part.start) / 8).backward()
        run.step(number)

    def built(methods=None):
        """Where a gradient is 0 (the bias of keys), L2 under Adam lets rounding grow by step size · strength / eps."""
        run = Run(cell, methods, dtype=torch.float64, apart=True)
        for group in run.optimizers[0].param_groups:
            group["eps"] = 1e-3
        return run

    joint, parts = built().train(range(STEPS)), built().train(range(STEPS), in_parts)
    acted(joint, built(methods=[]).train(range(STEPS)))
    alike(joint, parts)


def a_step_that_a_grad_scaler_skips_is_none(cell, fused=False, then=lambda run: None):
    """Training is that without the batches that overflow: every third, and two in a row."""

    def overflows(number):
        return number % 3 == 1 or number in (20, 21)

    def with_scaler(scaler):
        def step(run, number):
            x, y = run.batch(number)
            if overflows(number):
                x[0] = torch.inf
            run.zero_grad()
            scaler.scale(run.loss(x, y)).backward()
            scaler.step(run.optimizers[0])
            scaler.update()
            run.tick()
            if overflows(number):
                then(run)

        return step

    def trained(numbers, methods=None):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=10_000)
        run = Run(cell, methods, fused=fused).train(numbers, with_scaler(scaler))
        assert scaler.get_scale() == 2.0 ** (20 - sum(map(overflows, numbers))), "no step was skipped"
        return run

    numbers = range(48)
    taken = [number for number in numbers if not overflows(number)]
    run, other = trained(numbers), trained(taken)
    acted(run, trained(numbers, methods=[]))
    assert torch.equal(weights(run), weights(other))
    same_methods(
        run, other, but=["buffers"]
    )  # torch's norms take in the batch that overflows, and so does an average of them
    if hasattr(run.methods[0], "stats"):
        assert {group["steps"] for group in run.methods[0].stats().values()} == {len(taken)}


def a_fused_step_that_a_grad_scaler_skips_is_none(cell):
    """The optimizer is called all the same, and decides by itself."""
    a_step_that_a_grad_scaler_skips_is_none(cell, fused=True)


def a_step_that_a_grad_scaler_skips_is_none_once_what_was_read_is_dropped(cell):
    """No hook of an unfused optimizer runs then: the loop says that no step came."""

    def drop(run):
        for method in run.methods:
            if hasattr(method, "drop_recorded"):
                method.drop_recorded()

    a_step_that_a_grad_scaler_skips_is_none(cell, then=drop)


@contextmanager
def compiling():
    """With nothing compiled before and after, and without warnings of Dynamo's own: of deprecated code that it loads, and where a
    hook runs after a recurrent layer has ended a graph."""
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script_method", category=DeprecationWarning)
            yield
    finally:
        torch._dynamo.reset()


def a_compiled_model_trains_as_in_eager_mode(cell):
    """In float64, to rounding: means of activity are summed in another order there. A state fits the plain model."""
    how = {"dtype": torch.float64}
    with compiling():
        compiled = Run(cell, wrap=lambda model: torch.compile(model, backend="eager"), **how).train(range(STEPS))
    acted(compiled, plain(cell, **how))
    alike(compiled, Run(cell, **how).train(range(STEPS)))
    if not cell.method.is_a_call:
        same_methods(compiled, Run(cell, initial=5, **how).load(compiled.save()))


def a_compiled_step_trains_as_in_eager_mode(cell):
    """Of the optimizer, its hooks included. Torch's own compiled Adam, which counts in float32, sets the tolerance."""

    def built(**also):
        """Where a gradient is 0 (a bias before a norm), L2 under Adam lets rounding grow by step size · strength / eps."""
        run = Run(cell, dtype=torch.float64, **also)
        for group in run.optimizers[0].param_groups:
            group["eps"] = 1e-3
        return run

    def compiled(**also):
        run = built(**also)
        for optimizer in run.optimizers:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        return run.train(range(STEPS))

    with compiling():
        run = compiled()
        acted(run, compiled(methods=[]))
    alike(run, built().train(range(STEPS)), rtol=1e-4, atol=1e-5)


# -- beside continual backprop, and states of something else -------------------------------------------------------------


def built_before_continual_backprop_it_keeps_its_word(cell):
    beside(cell, [cell.method, BESIDE])


def built_after_continual_backprop_it_keeps_its_word(cell):
    beside(cell, [BESIDE, cell.method])


def beside(cell, methods):
    """Off, it leaves continual backprop as it is alone; on, both resume to the bit."""
    alone = Run(cell, [BESIDE]).train(range(STEPS))
    same(Run(cell, methods, off=True).train(range(STEPS)), alone)
    acted(resumed(cell, methods), alone)


def a_foreign_state_is_refused_and_changes_nothing(cell):
    """Of another network, of another method, of another format, of nothing."""
    names = list(NETWORKS)
    another = names[(names.index(cell.network) + 1) % len(names)]
    row = row_of("l2" if cell.method.name != "l2" else "continual backprop")
    half = STEPS // 2
    run = Run(cell).train(range(half))
    (method,) = run.methods
    foreign = [
        Run(Cell(cell.method, another, cell.optimizer)).methods[0].state_dict(),
        Run(Cell(row, cell.network, cell.optimizer)).methods[0].state_dict(),
        {**method.state_dict(), "format": 99},
        {},
    ]
    unchanged_by(method, foreign)
    run.train(range(half, STEPS))
    acted_at_all(run, cell)
    same(run, Run(cell).train(range(STEPS)))


def a_state_of_other_sizes_is_refused_and_changes_nothing(cell):
    """Of a network whose parts have the same names, and other widths."""

    def built(width):
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))
        row = cell.method
        return row.build(model, OPTIMIZERS[cell.optimizer](model.parameters()), torch.zeros(2, 6), **row.settings)

    unchanged_by(built(8), [built(12).state_dict()])


def unchanged_by(method, foreign):
    before = copy.deepcopy(method.state_dict())
    for state in foreign:
        refused(
            lambda state=state: method.load_state_dict(state), (ValueError, KeyError)
        )  # a fault: KeyError says nothing
        assert differences(before, method.state_dict()) == []


# -- several ranks -------------------------------------------------------------------------------------------------------


def ranks_stay_equal(cell, rank):
    """Each rank has batches of its own, of another size, and a global seed of its own, which the method may not go by."""

    def on_its_own_batch(run, number):
        run.zero_grad()
        run.loss(*run.batch(2 * number + rank, size=(8, 5)[rank])).backward()
        run.step(number)

    def trained(**how):
        torch.manual_seed(100 + rank)
        return Run(cell, initial=rank, wrap=DistributedDataParallel, **how).train(range(STEPS), on_its_own_batch)

    by_rank_0 = {"seed": None, "trial": True}  # who decides for all
    of_a_call = cell.method.is_a_call
    run = trained(**{name: each for name, each in by_rank_0.items() if name in cell.method.settings and not of_a_call})
    acted(run, trained(methods=[]))
    states = [
        {**each.state_dict(), "buffers": None} for each in run.parts()[1:]
    ]  # averages of buffers differ as these do
    mine = [dict(run.inner.named_parameters()), *states]
    both = [None, None]
    dist.all_gather_object(both, mine)
    assert differences(*both) == [], "the ranks differ"


PROMISES = [
    off_it_changes_nothing,
    it_repeats_with_its_seed,
    another_seed_gives_another_network,
    it_resumes_to_the_bit,
    it_keeps_dtype_and_device,
    it_leaves_the_global_random_state_alone,
    a_copy_of_the_model_is_inert,
    a_copy_of_the_method_is_refused,
    detached_it_leaves_no_hook_and_training_is_plain,
    a_construction_that_fails_leaves_no_hook,
    it_goes_with_two_optimizers,
    a_closure_changes_nothing,
    accumulated_gradients_are_those_of_the_joint_batch,
    a_step_that_a_grad_scaler_skips_is_none,
    a_step_that_a_grad_scaler_skips_is_none_once_what_was_read_is_dropped,
    a_fused_step_that_a_grad_scaler_skips_is_none,
    a_compiled_model_trains_as_in_eager_mode,
    a_compiled_step_trains_as_in_eager_mode,
    built_before_continual_backprop_it_keeps_its_word,
    built_after_continual_backprop_it_keeps_its_word,
    a_foreign_state_is_refused_and_changes_nothing,
    a_state_of_other_sizes_is_refused_and_changes_nothing,
]


OF_THE_ENGINE = [  # what methods share, and what takes longest
    it_leaves_the_global_random_state_alone,
    a_copy_of_the_model_is_inert,
    a_copy_of_the_method_is_refused,
    detached_it_leaves_no_hook_and_training_is_plain,
    a_closure_changes_nothing,
    accumulated_gradients_are_those_of_the_joint_batch,
    a_step_that_a_grad_scaler_skips_is_none,
    a_step_that_a_grad_scaler_skips_is_none_once_what_was_read_is_dropped,
    a_compiled_model_trains_as_in_eager_mode,
    a_compiled_step_trains_as_in_eager_mode,
    built_before_continual_backprop_it_keeps_its_word,
    built_after_continual_backprop_it_keeps_its_word,
]


# -- pairs ---------------------------------------------------------------------------------------------------------------


def together_they_train_and_resume_to_the_bit(cell, rows, steps=50):
    """Two methods on one network, built in this order: nothing breaks, both act, and both go on exactly."""
    run = Run(cell, rows).train(range(steps // 2))
    saved = run.save()
    run.train(range(steps // 2, steps))
    acted(run, plain_weights(cell.network, cell.optimizer))
    for each in run.optimizers:
        states = [held for state in each.state.values() for held in state.values() if isinstance(held, torch.Tensor)]
        assert all(held.isfinite().all() for held in states)
    again = Run(cell, rows, initial=5).load(saved).train(range(steps // 2, steps))
    same(run, again)
    same_methods(run, again)


def broken(promise, cell):
    """Whether the promise does not hold there."""
    try:
        promise(cell)
    except (AssertionError, pytest.fail.Exception, AttributeError, TypeError, ValueError):
        return True
    return False
