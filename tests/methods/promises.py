"""What every method promises, on every network and with every optimizer: one grid.

    METHODS    a method is one row: how it is built, when it is off, and which promises it cannot keep, with the reason
    NETWORKS   OPTIMIZERS    the other two sides of the grid
    PROMISES   functions of a cell, which raise `AssertionError` where the promise is broken

Runs are compared to the bit unless a promise says otherwise, and in each of them something happened: 20 units or more were
replaced in every group, and the network is another than without the method.
"""

import copy
import io
import pickle
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import pliant
from tests.networks import batch, convnet, enough, mlp, recurrent, transformer

STEPS = 32  # enough for 20 replacements among five units

# -- the sides of the grid -----------------------------------------------------------------------------------------------

NETWORKS = {  # how it is built, and the shape of an example
    "mlp": (mlp, (6,)),
    "convnet": (convnet, (2, 8, 8)),
    "transformer": (transformer, (4, 6)),
    "recurrent": (recurrent, (3, 6)),
}

OPTIMIZERS = {
    "momentum": lambda parameters, **also: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **also),
    "adam": lambda parameters, **also: torch.optim.Adam(parameters, lr=0.003, **also),
    "adamw": lambda parameters, **also: torch.optim.AdamW(parameters, lr=0.003, **also),
}


@dataclass(frozen=True)
class Method:
    """A row: a method, with settings under which much happens in `STEPS` steps."""

    name: str
    build: Callable[..., Any]  # (model, optimizer or optimizers, example inputs, **settings)
    settings: Mapping[str, Any]
    off: Mapping[str, Any]  # settings with which it changes nothing
    wrong: Mapping[str, Any]  # settings that it refuses; none where it is a call, which attaches to nothing
    cannot: Mapping[str, str] = field(default_factory=dict)  # name of a promise -> why it does not hold

    @property
    def draws(self) -> bool:
        return "seed" in self.settings

    @property
    def is_a_call(self) -> bool:
        return not self.wrong


def resets_units(kind, **fixed):
    """The trial of a plan has tests of its own, and takes longer than all steps here."""

    def build(model, optimizer, x, **settings):
        return kind(model, optimizer, example_inputs=x, trial=False, **fixed, **settings)

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


def called(act):
    def build(model, optimizer, x, **settings):
        return Every(act, model, optimizer, **settings)

    return build


A_CALL = {
    "a_copy_of_the_method_is_refused": "a call holds nothing to copy",
    "detached_it_leaves_no_hook_and_training_is_plain": "a call is never attached",
    "a_construction_that_fails_leaves_no_hook": "a call is never attached",
    "a_step_that_a_grad_scaler_skips_is_none": "who calls it counts the steps",
    "a_step_that_a_grad_scaler_skips_is_none_once_what_was_read_is_dropped": "who calls it counts the steps",
    "a_fused_step_that_a_grad_scaler_skips_is_none": "who calls it counts the steps",
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
ANY_SIZE = {"a_state_of_other_sizes_is_refused_and_changes_nothing": "a fault: targets of any size are taken"}
TWO_OF_A_KIND = {
    name: "two of one class on the same units refuse one another"
    for name in (
        "built_before_continual_backprop_it_keeps_its_word",
        "built_after_continual_backprop_it_keeps_its_word",
    )
}
OFTEN = {"replacement_rate": 0.3, "maturity_threshold": 1, "seed": 1}

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
        settings={"tau": 1.0, "period": 2, "seed": 1},
        off={"period": 10**9},
        wrong={"optimizer_state": "nothing known"},
        cannot=READS_ACTIVITY,
    ),
    Method(
        "random replacement",  # a class of its own is `resets_units(pliant.RandomReplacement)`, and can all
        resets_units(pliant.ContinualBackprop, utility="random"),
        settings=OFTEN,
        off={"replacement_rate": 0.0},
        wrong={"maturity_threshold": -1},
        cannot=READS_ACTIVITY | TWO_OF_A_KIND,
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
        cannot=NO_DRAW | ANY_SIZE,
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
]

BESIDE = METHODS[0]


@dataclass(frozen=True, eq=False)
class Cell:
    method: Method
    network: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.method.name}, {self.network}, {self.optimizer}"


# -- a network in training -----------------------------------------------------------------------------------------------


class Run:
    """A network in training, with the methods of a cell or without any."""

    def __init__(
        self,
        cell,
        methods=None,  # rows, in the order in which they are built; None: the cell's
        *,
        off=False,
        dtype=torch.float32,
        device="cpu",
        initial=0,
        split=False,
        wrap=lambda model: model,
        apart=False,
        fused=False,
        **settings,
    ):
        build, self.shape = NETWORKS[cell.network]
        self.dtype, self.device = dtype, device
        self.inner = build(seed=initial).to(device=device, dtype=dtype)
        if apart:
            examples_apart(self.inner)
        self.model = wrap(self.inner)
        parameters = [list(child.parameters()) for child in self.inner.children()]
        parameters = [each for each in parameters if each]
        half = len(parameters) // 2
        self.first_parts = [name for name, child in self.inner.named_children() if [*child.parameters()]][:half]
        parts = [sum(parameters[:half], []), sum(parameters[half:], [])] if split else [self.inner.parameters()]
        self.optimizers = [OPTIMIZERS[cell.optimizer](part, **({"fused": True} if fused else {})) for part in parts]
        given = self.optimizers if split else self.optimizers[0]
        x = torch.zeros(2, *self.shape, dtype=dtype, device=device)
        self.methods = []
        for row in [cell.method] if methods is None else methods:
            mine = row is cell.method
            changed = {**row.settings, **(row.off if off and mine else {}), **(settings if mine else {})}
            self.methods.append(row.build(self.model, given, x, **changed))

    def batch(self, number, size=8):
        return [each.to(device=self.device, dtype=self.dtype) for each in batch(number, self.shape, size)]

    def loss(self, x, y, model=None):
        return nn.functional.mse_loss((model or self.model)(x), y)

    def train(self, numbers, step=None, after=lambda: None):
        """One optimizer step for each number, each on its own batch."""
        for number in numbers:
            torch.manual_seed(number)  # dropout
            (step or one_step)(self, number)
            after()
        return self

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self, number):
        """The second optimizer, where there are two, steps every second time."""
        for optimizer in self.optimizers if number % 2 else self.optimizers[:1]:
            optimizer.step()
        self.tick()

    def tick(self):
        for method in self.methods:
            if isinstance(method, Every):
                method.tick([other for other in self.methods if other is not method])

    def parts(self):
        return [self.inner, *self.optimizers, *self.methods]

    def save(self):
        saved = io.BytesIO()
        torch.save([each.state_dict() for each in self.parts()], saved)
        return saved.getvalue()

    def load(self, saved):
        for each, state in zip(self.parts(), torch.load(io.BytesIO(saved), weights_only=True), strict=False):
            each.load_state_dict(state)
        return self


def one_step(run, number):
    x, y = run.batch(number)
    run.zero_grad()
    run.loss(x, y).backward()
    run.step(number)


def examples_apart(model):
    """Batch norms and dropout as in evaluation, so that what becomes of an example does not depend on the others."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.eval()


def plain(cell, steps=STEPS, **how):
    return Run(cell, [], **how).train(range(steps))


@lru_cache(maxsize=64)
def plain_weights(network, optimizer, steps):
    return copy.deepcopy(plain(Cell(BESIDE, network, optimizer), steps).inner.state_dict())


def acted(run, other):
    """Something happened: without this an equality could hold with the method commented out. `other` is without it."""
    for method in run.methods:
        if hasattr(method, "stats"):
            enough(method)
    other = other if isinstance(other, dict) else other.inner.state_dict()
    own = {name: each for name, each in run.inner.named_parameters()}
    assert any(not torch.equal(own[name], other[name]) for name in own), "nothing happened"
    assert all(each.isfinite().all() for each in own.values())


def acted_at_all(run, cell):
    acted(run, plain_weights(cell.network, cell.optimizer, STEPS))


def differences(first, second, path=""):
    """Where two states differ, to the bit."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = {*first, *second}
        missing = [f"{path}/{key}" for key in keys if (key in first) != (key in second)]
        both = [key for key in first if key in second]
        return missing + [each for key in both for each in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [each for place, pair in pairs for each in differences(*pair, f"{path}/{place}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        alike = (first.dtype, first.device, first.shape) == (second.dtype, second.device, second.shape)
        return [] if alike and torch.equal(first.nan_to_num(), second.nan_to_num()) else [path]
    return [] if type(first) is type(second) and first == second else [path]


def same(first, second):
    """The same networks and optimizers."""
    pairs = zip([first.inner, *first.optimizers], [second.inner, *second.optimizers], strict=True)
    assert differences(*zip(*((a.state_dict(), b.state_dict()) for a, b in pairs), strict=True)) == []


def same_methods(first, second):
    for a, b in zip(first.methods, second.methods, strict=True):
        assert differences(a.state_dict(), b.state_dict()) == []


def alike(first, second):
    """The same replacements, and the same parameters but for rounding in float64."""
    assert_close(weights(first), weights(second), rtol=1e-7, atol=1e-9)
    for a, b in zip(first.methods, second.methods, strict=True):
        if hasattr(a, "stats"):
            assert a.stats() == b.stats()


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.inner.parameters()])


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


def refused(act, error, says=""):
    """`act` raises such an error, which says what to do."""
    try:
        act()
    except error as raised:
        assert re.search(says, str(raised)), str(raised)
    else:
        raise AssertionError("it was not refused")


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


def a_construction_that_fails_leaves_no_hook(cell):
    """Its own settings, then an optimizer of another network."""
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
    """Of which the second steps every second time; off it changes nothing, and it resumes to the bit."""
    without = plain(cell, split=True)
    same(Run(cell, off=True, split=True).train(range(STEPS)), without)
    run = resumed(cell, split=True)
    acted_in_half(run, without)


def acted_in_half(run, without):
    for method in run.methods:
        for name, group in method.stats().items() if hasattr(method, "stats") else ():
            assert group["steps"] == (STEPS if name.split(".")[0] in run.first_parts else STEPS // 2)
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

    how = {"dtype": torch.float64, "apart": True}
    joint, parts = Run(cell, **how).train(range(STEPS)), Run(cell, **how).train(range(STEPS), in_parts)
    acted(joint, plain(cell, **how))
    alike(joint, parts)


def a_step_that_a_grad_scaler_skips_is_none(cell, fused=False, then=lambda run: None):
    """Training is that without the batches that overflow: every third, and two in a row. `then` follows each of those."""

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

    def trained(numbers):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=10_000)
        run = Run(cell, fused=fused).train(numbers, with_scaler(scaler))
        return run, scaler

    (run, scaler), (other, _) = trained(range(48)), trained([step for step in range(48) if not overflows(step)])
    assert scaler.get_scale() == 2.0 ** (20 - sum(map(overflows, range(48)))), "no step was skipped"
    taken = 48 - sum(map(overflows, range(48)))
    acted(run, plain_weights(cell.network, cell.optimizer, STEPS))
    assert torch.equal(weights(run), weights(other))
    same_methods(run, other)
    if hasattr(run.methods[0], "stats"):
        assert {group["steps"] for group in run.methods[0].stats().values()} == {taken}


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


def a_compiled_model_trains_as_in_eager_mode(cell):
    """In float64, to rounding: means of activity are summed in another order there."""
    torch._dynamo.reset()
    try:
        how = {"dtype": torch.float64}
        compiled = Run(cell, wrap=lambda model: torch.compile(model, backend="eager"), **how).train(range(STEPS))
    finally:
        torch._dynamo.reset()
    acted(compiled, plain(cell, **how))
    alike(compiled, Run(cell, **how).train(range(STEPS)))


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
    row = METHODS[3 if cell.method.name != METHODS[3].name else 0]
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

    run = trained(**({"seed": None} if cell.method.draws and not cell.method.is_a_call else {}))
    acted(run, trained(methods=[]))
    mine = [dict(run.inner.named_parameters()), *(each.state_dict() for each in run.parts()[1:])]
    both = [None, None]
    dist.all_gather_object(both, mine)
    assert differences(*both) == []


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
    built_before_continual_backprop_it_keeps_its_word,
    built_after_continual_backprop_it_keeps_its_word,
    a_foreign_state_is_refused_and_changes_nothing,
    a_state_of_other_sizes_is_refused_and_changes_nothing,
]


def broken(promise, cell):
    """Whether the promise does not hold there."""
    try:
        promise(cell)
    except (AssertionError, AttributeError, TypeError, ValueError):
        return True
    return False
