"""Find the units of any model by running it once.

Every ATen operation of one forward runs under a dispatch mode, which computes labels with the numbers (`rules`): the units that a
number was computed from. Where a weight meets labels, its columns belong to these units and its rows to new ones (`grouping`).
Units that cannot be proved are left out, with the reason in the plan.

The model is afterwards as it was: parameters, buffers, modes, hooks and the random state, to the bit. It must not be used in
another thread meanwhile; other models may, see `pliant.base.process`.
"""

# pyright: reportPrivateUsage=false
# Buffers by name and the version of a tensor have no public name in PyTorch.

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from pliant.base.arguments import flag
from pliant.base.dispatch import DispatchMode
from pliant.base.process import random_numbers
from pliant.units.groups import PlanRow, Skipped
from pliant.units.map import UnitMap
from pliant.units.models import (
    arguments,
    check_examples,
    checked,
    is_plain,
    operation_name,
    prefix_of,
    tensors_in,
    unwrapped,
)
from pliant.units.python_state import PythonState
from pliant.units.trace.call import Call
from pliant.units.trace.grouping import Options, unit_map
from pliant.units.trace.record import Frame, Kept, TraceRecord
from pliant.units.trace.rules import rule_of
from pliant.units.trace.signs import note_sign
from pliant.units.trace.sources import lose, sources
from pliant.units.trace.taps import note_outputs
from pliant.units.trace.zeros import note_zeros
from pliant.units.undisturbed import Writes, undisturbed
from pliant.units.verify.whole_plan import tried


@torch.inference_mode(False)
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    residual: bool = False,
    heads: bool = False,
    strict: bool = False,
    activity: bool = False,
    trial: bool = True,
) -> UnitMap:
    """Every resettable unit of a model, and what was left alone with the reason.

    Args:
        example_inputs: a tensor (the one argument of the forward), a tuple (its arguments), a mapping (its keyword
            arguments), or a list of those where control flow depends on the input: only groups that all agree on are kept.
            A batch of two and small images are enough; sequences need two steps or more.
        residual: also channels of residual streams, where no norm over units lies between.
        heads: also attention heads.
        strict: without units whose reset changes other units through a norm.
        activity: only units whose activity a hook can record.
        trial: try the whole plan on a float64 copy, in a few forwards, and leave wrong groups alone. The plan says if that
            was not possible: `pliant.units.verify.whole_plan`.

    Under `torch.no_grad` and `torch.inference_mode`, and with inputs made under them, the result is the same.

    Raises `ValueError` where nothing is found, with the plan, and for models that cannot be traced; `RuntimeError` where
    the forward raises.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(row.group.name, row.units) for row in trace(model, torch.zeros(2, 3)).rows]
    [('0', 8)]
    """
    trial = flag("trial", trial)
    options = Options(
        residual=flag("residual", residual),
        heads=flag("heads", heads),
        strict=flag("strict", strict),
        activity=flag("activity", activity),
    )
    records, traced = recorded(model, example_inputs)
    maps = [unit_map(record, traced, options) for record in records]
    found = maps[0] if len(maps) == 1 else _agreed(maps)
    if trial:
        found = found.without(tried(found.groups, model, example_inputs))
    if not found.rows:
        raise ValueError(f"trace: no resettable unit found in {type(model).__name__}.\n{found}")
    return found


@torch.inference_mode(False)
def recorded(
    model: nn.Module, example_inputs: Any, noted: tuple[type[nn.Module], ...] = ()
) -> tuple[list[TraceRecord], nn.Module]:
    """The record of a forward with each example, and the model that ran, on the CPU: `model`, or a copy of it.

    Activation functions and norms are noted in `TraceRecord.applied` if `noted` lists the modules that stand for such.
    """
    examples = cast(list[Any], example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    if not examples:
        raise ValueError("trace: example_inputs is an empty list; give at least one example")
    check_examples("trace: example_inputs", example_inputs)
    _check_model(checked(model))
    for example in examples:
        _check_devices(model, example)
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    traced = model if on_cpu else copy.deepcopy(model).cpu()
    branches = len(examples) > 1
    return [_run(traced, _to_cpu(example), branches=branches, noted=noted) for example in examples], traced


FEW, MANY, MOST = (
    4,
    16,
    40,
)  # forwards of a model that draws random numbers, and has parameters that did not take part yet


class Shadowing(DispatchMode):
    """Runs each operation, then its rule."""

    def __init__(self, record: TraceRecord, *, branches: bool) -> None:
        super().__init__()
        self.record = record
        self.branches = branches  # another input may take another way: signs are not to be trusted
        self.writes = Writes()
        self.failed: str | None = None  # the operation whose rule raised: an error of this library, not of the model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.writes.note(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        self.record.step += 1
        self.record.labels.now = f"{func.namespace}::{operation_name(func)} in '{self.record.module}'"
        try:
            self._apply(Call(self.record, func, args, kwargs or {}, result))
        except Exception:
            self.failed = self.record.labels.now
            raise
        return result

    def _apply(self, call: Call) -> None:
        """The rule, unless the result is only another view."""
        memory = self.record.memory
        if not call.inputs or not any(tensor.numel() for tensor in tensors_in(call.result)):
            return  # nothing was computed: an expert without tokens never ran
        if call.name.startswith("resize"):
            memory.resized(call.output)
        for tensor in call.inputs:
            self.record.read_by[memory.key(tensor), tensor._version - call.in_place * (tensor is call.inputs[0])] += 1
        keys = {memory.key(tensor) for tensor in call.inputs}
        is_view = (
            bool(call.outputs) and not call.in_place and all(memory.key(tensor) in keys for tensor in call.outputs)
        )
        if is_view or torch.Tag.inplace_view in call.op.tags:
            return
        for tensor in filter(memory.has_addresses, call.inputs):
            self.record.reached |= memory.parameters_in(tensor)
        rule = rule_of(call)
        _note_ancestry(call, constant=rule.__name__ == "constant")
        note_zeros(call)
        if not self.branches:
            note_sign(call)
        if any(map(memory.knows, call.inputs)):
            written = [sources(self.record, tensor) for tensor in call.inputs] if call.in_place else []
            rule(call)
            if not call.followed:
                lose(call, written or [sources(self.record, tensor) for tensor in call.inputs])


def _note_ancestry(call: Call, *, constant: bool) -> None:
    """Note the operations, parameters and inputs that the results depend on."""
    record, memory = call.record, call.record.memory
    sources = [] if constant else [memory.shadow(tensor) for tensor in call.inputs]
    computed = frozenset[int]().union(*(source.computed_from for source in sources))
    for tensor in call.inputs if not constant else ():
        computed |= memory.parameters_in(tensor) if memory.has_addresses(tensor) else frozenset()
    for output in call.outputs:
        shadow = memory.shadow(output)
        for source in sources:
            shadow.ancestors |= source.ancestors
            shadow.data |= source.data
        shadow.ancestors |= 1 << record.step
        shadow.computed_from |= computed
        if shadow.made_by is None or call.in_place:
            shadow.made_by = record.step


def _run(model: nn.Module, example: Any, *, branches: bool, noted: tuple[type[nn.Module], ...]) -> TraceRecord:
    """One forward under the mode."""
    inner = unwrapped(model)
    args, kwargs = arguments(example)
    modules: Mapping[str, nn.Module] = dict(cast(Any, model.named_modules(remove_duplicate=False)))
    record = TraceRecord(dict(model.named_parameters()), modules, prefix_of(model))
    record.noted = noted
    for record.step, tensor in enumerate(_dense((args, kwargs))):
        shadow = record.memory.shadow(tensor)
        shadow.data, shadow.made_by, shadow.ancestors = True, record.step, 1 << record.step
    mode = Shadowing(record, branches=branches)
    shapes = {name: buffer.shape for name, buffer in model.named_buffers()}
    with undisturbed(model, mode.writes), _watched(record), torch.enable_grad(), mode:
        for module in (each for each in model.modules() if hasattr(each, "training")):  # a frozen scripted one has none
            module.training = True
        try:
            outputs = _forwards(record, model, lambda: inner(*args, **kwargs))
            _note_kept(record, model, shapes)
        except Exception as error:
            if mode.failed is not None:
                raise RuntimeError(f"tracing: the rule for {mode.failed} failed: {error}") from error
            raise RuntimeError(
                f"tracing: the forward of {type(inner).__name__} raised with the example inputs given: {error}"
            ) from error
    for tensor in _dense(outputs):
        _escape(record, tensor, "reaches the model output")
        returned = record.memory.parameters_in(tensor) if record.memory.has_addresses(tensor) else ()
        record.reached.update(returned)
        for number in (*record.memory.sources(tensor), *returned):
            record.elsewhere.setdefault(number, "the model output")
    return record


def _forwards(record: TraceRecord, model: nn.Module, run: Callable[[], Any]) -> list[Any]:
    """The outputs of one forward, or of several where one does not show all that training will.

    A model that remembers reads in the second forward what the first has left. One that skips layers at random (LayerDrop,
    stochastic depth) is run until each has had its turn: no new one in `FEW` forwards, in `MANY` where their lengths differ, or
    `MOST` in all.
    """
    lengths: set[int] = set()

    def first() -> Any:
        started = record.step
        output = run()
        lengths.add(record.step - started)
        return output

    def again() -> Any:
        record.calls.clear()
        return first()

    with _disable_current_modes():
        before = random_numbers()
    outputs = [first()]
    if _remembers(model, record):
        outputs.append(again())
    with _disable_current_modes():
        drew = random_numbers() != before
    idle = 0
    while drew and record.unreached() and idle < (MANY if len(lengths) > 1 else FEW) and len(outputs) < MOST:
        known = len(record.reached)
        outputs.append(again())
        idle = 0 if len(record.reached) > known else idle + 1
    return outputs


def _remembers(model: nn.Module, record: TraceRecord) -> bool:
    """Whether the model has kept numbers that depend on units: a second forward shows what reads them."""
    with _disable_current_modes():
        held = [tensor for tensor in PythonState(model).tensors if is_plain(tensor)]
    return any(record.live(tensor) for tensor in held)


def _note_kept(record: TraceRecord, model: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """What the buffers hold of units; one that the forward gave another shape is made anew by each model that needs it."""
    with _disable_current_modes():
        for name, buffer in model.named_buffers():
            every = list(record.arrays(buffer).values()) if is_plain(buffer) else []
            if every and shapes.get(name) == buffer.shape:
                labels = reduce(record.labels.join, every).expand(buffer.shape)
                record.kept[name] = Kept(labels, buffer.is_floating_point() and bool((buffer > 0).all()))


def _dense(value: Any) -> Iterator[Tensor]:
    """Tensors that have a storage, which labels shadow."""
    return (tensor for tensor in tensors_in(value) if is_plain(tensor))


def _escape(record: TraceRecord, tensor: Tensor, reason: str) -> None:
    record.escaped += [(reason, labels) for labels in record.arrays(tensor).values()]


@contextmanager
def _watched(record: TraceRecord) -> Generator[None]:
    """Hooks that keep the stack of running modules; without the mode, they run no operation of the model."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _disable_current_modes():
            inputs = [
                (argument, value, (record.memory.key(value), value._version))
                for argument, value in [*enumerate(args), *kwargs.items()]
                if is_plain(value)
            ]
            name = record.module_names[module]
            record.stack.append(Frame(module, name, cast(Any, inputs), record.calls[name]))
            record.calls[name] += 1
            if inputs:
                record.note(inputs[0][1])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with _disable_current_modes():
            record.returned(record.stack[-1].name)
            note_outputs(record, record.stack.pop(), output)

    with ExitStack() as stack:
        for module in (each for each in record.module_names if not isinstance(each, torch.jit.ScriptModule)):
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


def _to_cpu(example: Any) -> Any:
    args, kwargs = arguments(example)

    def move(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    moved = tree_map(move, (args, kwargs))
    return moved[1] if isinstance(example, Mapping) else moved[0]


def _check_model(model: nn.Module) -> None:
    """Raises `ValueError` for models that tracing does not support."""
    name = type(model).__name__
    for path, module in cast(Any, model.named_modules()):
        if str(type(module).__module__).startswith("torch.ao.nn.quantized"):
            raise ValueError(f"trace: '{path}' of {name} is quantized; quantized models do not learn and have no units")
    for path, module in cast(Any, model.named_modules()):
        held: list[Any] = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        if any(isinstance(each, Tensor) and each.is_inference() for each in held):
            raise ValueError(
                f"trace: '{path}' of {name} holds tensors made under torch.inference_mode, which cannot be trained; make them "
                f"outside of it, or leave inference mode for torch.no_grad"
            )
    for path, tensor in model.named_parameters():
        if tensor.is_meta:
            raise ValueError(
                f"trace: '{path}' of {name} is on the meta device; tracing runs the model, which needs its numbers"
            )
        kind = type(tensor.data).__name__ if type(tensor) is nn.Parameter else type(tensor).__name__
        if kind not in ("Tensor", "Parameter", "Buffer"):
            raise ValueError(f"trace: '{path}' of {name} is a {kind}; sharded and wrapped parameters are not covered")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError(f"trace: '{path}' of {name} is {tensor.layout}; only dense parameters are covered")
    if next(model.parameters(), None) is None:
        raise ValueError(f"trace: {name} has no parameters")


def _check_devices(model: nn.Module, example: Any) -> None:
    devices = {parameter.device for parameter in model.parameters()}
    for tensor in tensors_in(example):
        if tensor.device not in devices:
            at = ", ".join(sorted(map(str, devices)))
            raise ValueError(
                f"trace: an example input is on {tensor.device}, but {type(model).__name__} is on {at}; "
                "move the example inputs there"
            )


def _agreed(maps: Sequence[UnitMap]) -> UnitMap:
    """The groups on which all examples agree."""
    kept: list[PlanRow] = []
    skipped: list[Skipped] = list(maps[0].skipped)
    for row in (row for found in maps for row in found.rows):
        if all(row.group in found.groups for found in maps):
            kept += [row] if row.group not in [other.group for other in kept] else []
        else:
            names = tuple(dict.fromkeys(part.parameter for part in row.group.incoming))
            differs = Skipped(names, "differs between the example inputs", row.units)
            skipped += [differs] if differs not in skipped else []
    never = set(maps[0].unreached).intersection(*(found.unreached for found in maps[1:]))
    return UnitMap(kept, skipped, unreached=tuple(name for name in maps[0].unreached if name in never))
