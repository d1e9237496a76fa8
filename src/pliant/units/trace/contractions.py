"""Products: where units are consumed ("read"), and where new ones begin.

    weight x activation   out[n, m] = sum_k act[n, k] W[k, m]
        a family that is constant over n for each k     read: unit k owns W[k, :]; its labels end here
        a family that is constant over k                passes through (depthwise, token mixing)
        any other                                       dead
        and the columns W[:, m] compute new atoms, keyed by the parameter

    activation x activation                             join along the contracted axis (attention)

A convolution is the same with channels for k and m, groups as a batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.units.models import tensors_in
from pliant.units.trace import blocks
from pliant.units.trace.call import Call
from pliant.units.trace.elementwise import pointwise
from pliant.units.trace.labels import NONE, by_group, compress, distinct, ints, uniform, values
from pliant.units.trace.lanes import Lane, Lanes, lanes
from pliant.units.trace.record import Owned, Product, TraceRecord
from pliant.units.trace.shadows import Arrays
from pliant.units.trace.sources import shape_of, sources
from pliant.units.trace.taps import find_tap

Fate = Literal["read", "pass", "dead"]
Placed = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Computed:
    """The rows of parameters of which a computed weight is made: what it reads, if it can be silenced, what it computes, and what
    belongs to that as well."""

    inputs: list[Lanes] | None
    outputs: list[Lanes]
    own: list[Lanes]

    @property
    def parameters(self) -> frozenset[int]:
        return frozenset(each.lane.parameter for each in (*(self.inputs or []), *self.outputs))


@dataclass(eq=False)
class Operands:
    """An activation and a weight of one product, brought into standard form."""

    activation: Tensor
    weight: Tensor
    arrange: Placed  # the weight -> (batch, k, m, kernel)
    standard: Placed  # labels of the activation -> (batch, n, k), broadcast
    back: Placed  # (batch, n, m) labels, broadcast -> the shape of the result, broadcast
    axis: int  # of the activation that is contracted
    groups: int = 1
    pointwise: bool = True  # each n of the result depends on one n of the activation
    channels: bool = False  # a convolution
    computed: Computed | None = None  # where the weight is a function of parameters
    joint: bool = False  # two activations meet the weight in one operation
    transposed: bool = False  # a transposed convolution: an input reaches each output through a part of the kernel only

    @property
    def blocks(self) -> Tensor:
        return self.arrange(self.weight)


def matmul(call: Call) -> None:
    """mm, bmm and their kin: the operand that is whole parameters is the weight, the second if both are."""
    *before, a, b = call.args[:3] if call.name in ("addmm", "baddbmm", "_sparse_addmm") else call.args[:2]
    bias = before[0] if before else None
    if not (a.numel() and b.numel()):  # a sum over nothing
        call.write({})
        if bias is not None:
            pointwise(call, [bias, call.output], "shift")
        return
    if call.name == "mv":
        if not (call.record.memory.shadow(a).data or call.record.memory.shadow(b).data):
            call.give_up(f"no rule for {call.where} without data")  # power iteration: a step in computing a weight
            return
        b = b.unsqueeze(-1)
    if _is_weight(call.record, b):
        weigh(call, _right(call, a, b), bias)
    elif _is_weight(call.record, a):
        weigh(call, _left(call, a, b), bias)
    elif call.is_computed(b) and not call.is_computed(a):
        weigh_computed(call, _right(call, a, b), bias)
    elif call.is_computed(a) and not call.is_computed(b):
        weigh_computed(call, _left(call, a, b), bias)
    else:
        _multiply(call, a, b)
        if bias is not None:
            pointwise(call, [bias, call.output], "shift")


def _right(call: Call, a: Tensor, b: Tensor) -> Operands:
    """activation @ weight"""
    batch, n, m = prod(a.shape[:-2]), a.shape[-2], b.shape[-1]

    def arrange(weight: Tensor) -> Tensor:
        return weight.reshape(prod(weight.shape[:-2]), a.shape[-1], m, 1)

    def back(labels: Tensor) -> Tensor:
        return labels.expand(batch, n, m).reshape(call.output.shape)

    return Operands(a, b, arrange, _batched, back, axis=a.dim() - 1)


def _left(call: Call, a: Tensor, b: Tensor) -> Operands:
    """weight @ activation, transposed"""
    batch, m, n = prod(a.shape[:-2]), a.shape[-2], b.shape[-1]

    def arrange(weight: Tensor) -> Tensor:
        return weight.reshape(prod(weight.shape[:-2]), m, b.shape[-2], 1).transpose(1, 2)

    def standard(labels: Tensor) -> Tensor:
        return _batched(labels).transpose(1, 2)

    def back(labels: Tensor) -> Tensor:
        return labels.expand(batch, n, m).transpose(1, 2).reshape(call.output.shape)

    return Operands(b, a, arrange, standard, back, axis=b.dim() - 2)


def _batched(labels: Tensor) -> Tensor:
    """Three axes: a matrix is a batch of one."""
    return labels.reshape(prod(labels.shape[:-2]), *labels.shape[-2:])


def convolution(call: Call) -> None:
    x, weight, bias = call.args[:3]
    groups, transposed = call.argument("groups"), call.argument("transposed")
    plain, shadow = _is_weight(call.record, weight), call.record.memory.shadow(weight)
    memory = call.record.memory
    frozen = plain and not any(memory.parameters[each].requires_grad for each in memory.parameters_in(weight))
    if (frozen and groups == x.shape[1] > 1) or (not plain and (shadow.data or not shadow.computed_from)):
        _filter(call, x, weight, groups, transposed)
        if bias is not None:
            pointwise(call, [bias.view(-1, *[1] * (x.dim() - 2)), call.output], "shift")
        return

    def arrange(weight: Tensor) -> Tensor:
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return split if transposed else split.transpose(1, 2)

    still = all(stride == 1 for stride in call.argument("stride")) and call.output.shape[2:] == x.shape[2:]
    aligned = still and prod(weight.shape[2:]) == 1
    space, outputs = [1] * (x.dim() - 2), call.output.shape[1] // groups

    def standard(labels: Tensor) -> Tensor:
        by_channel = labels.numel() == labels.shape[1]
        split = by_group(labels if by_channel else labels.expand(x.shape), x.shape[1], groups)
        return split.movedim((1, 2), (0, -1)).flatten(1, -2)

    def back(labels: Tensor) -> Tensor:
        channels = labels.expand(groups, -1, outputs)
        if channels.shape[1] == 1:
            return channels.reshape(1, -1, *space)
        spread = channels.reshape(groups, x.shape[0], *x.shape[2:], outputs)
        return spread.movedim((0, -1), (1, 2)).flatten(1, 2)

    operands = Operands(x, weight, arrange, standard, back, 1, groups, aligned, transposed=transposed, channels=True)
    (weigh if plain else weigh_computed)(call, operands, None)
    if bias is not None:
        pointwise(call, [bias.view(-1, *space), call.output], "shift")
        if plain:
            call.record.take_mean(call.record.products[-1], call.output, 1, bias)


def _filter(call: Call, x: Tensor, weight: Tensor, groups: int, transposed: bool) -> None:
    """A filter of constants, or of activations: each channel joins those of its group, and its own filter's."""
    record, channels = call.record, call.output.shape[1]
    record.unexplained([x, weight])
    arrays: Arrays = {}
    for family, labels in record.arrays(x).items():
        union = record.labels.reduce(by_group(labels, x.shape[1], groups), range(2, x.dim() + 1))
        spread = union.expand(-1, groups, channels // groups, *[-1] * (x.dim() - 2))  # of one group, if all are alike
        arrays[family] = spread.reshape(len(union), channels, *[1] * (x.dim() - 2))
    for family, labels in record.arrays(weight).items():
        split = labels.expand(weight.shape).reshape(groups, -1, weight.shape[1], prod(weight.shape[2:]))
        union = record.labels.reduce(split, (1, 3) if transposed else (2, 3))
        own = union.expand(groups, -1 if transposed else channels // groups, channels // groups if transposed else 1, 1)
        own = own.reshape(1, channels, *[1] * (x.dim() - 2))
        arrays[family] = record.labels.join(arrays[family], own) if family in arrays else own
    call.write(arrays)


def bilinear(call: Call) -> None:
    """out[n, o] = sum_ij x[n, i] W[o, i, j] y[n, j]: units of x own W[:, i, :], those of y W[:, :, j]."""
    x, weight, y, *how = call.args
    if how[:4] != [[1, 3], [0], [1, 2], [2, 3]] or not _is_weight(call.record, weight):
        call.give_up(f"no rule for {call.where} but in nn.Bilinear")
        return

    def back(labels: Tensor) -> Tensor:
        return labels.expand(1, len(x), len(weight)).reshape(call.output.shape)

    for activation, order in ((x, (1, 0, 2)), (y, (2, 0, 1))):

        def arrange(weight: Tensor, order: tuple[int, int, int] = order) -> Tensor:
            return weight.permute(order)[None]

        passed = call.record.arrays(call.output)
        weigh(call, Operands(activation, weight, arrange, _batched, back, 1, joint=True), None)
        for family, labels in passed.items():
            now = call.record.arrays(call.output).get(family)
            call.record.memory.add(call.output, family, labels if now is None else call.record.labels.join(now, labels))


def grouped_matmul(call: Call) -> None:
    """Tokens in the order of their experts, and one matrix per expert: a product for each that got some."""
    a, b, ends = *call.args[:2], call.argument("offs")
    if ends is None or a.dim() != 2 or b.dim() != 3 or not _is_weight(call.record, b):
        call.give_up(f"no rule for {call.where} but of tokens with the weights of experts")
        return
    call.record.kill(call.record.live(ends), f"decides which expert gets a token in {call.where}")
    start = 0
    for weight, end in zip(b, ints(ends), strict=True):
        if end > start:
            tokens = a[start:end]
            of_expert = replace(call, args=(tokens, weight), result=call.output[start:end])
            weigh(of_expert, _right(of_expert, tokens, weight), None)
        start = end
    call.followed = True


def sparse_matmul(call: Call) -> None:
    """Numbers of a sparse tensor are no unit's: units end where they enter one. In a product zeros stand in for it."""
    stand_ins: dict[int, Tensor] = {}
    for tensor in call.every_tensor:
        if tensor.layout is not torch.strided:
            stand_ins[id(tensor)] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            call.record.memory.shadow(stand_ins[id(tensor)]).data = True
    args = tuple(stand_ins.get(id(each), each) for each in call.args)
    dense = replace(call, args=args)
    if any(output.layout is not torch.strided for output in tensors_in(call.result)):
        dense.give_up(f"no rule for {call.where} of two sparse tensors")
    else:
        matmul(dense)
    call.followed = dense.followed


def embedding(call: Call) -> None:
    """Rows of a table, or sums of rows: its columns are channels of a stream."""
    call.lose_others(call.args[0])
    if _is_weight(call.record, call.args[0]):
        call.record.memory.write(call.output, call.record.columns(call.args[0]))
        call.followed = True
    else:
        call.give_up(f"no rule for {call.where} of a computed table")


def weigh(call: Call, operands: Operands, bias: Tensor | None) -> None:
    """A weight meets an activation: families that it reads end, passing families go on, new atoms begin."""
    record = call.record
    batch, k, m, _ = operands.blocks.shape
    made = operands.computed
    inputs, outputs = (made.inputs, made.outputs) if made else _both_lanes(record, operands)
    if operands.groups > 1 and k == 1:
        inputs = []  # a depthwise weight scales its channel, and reads no other
    parameters = made.parameters if made else record.memory.parameters_in(operands.weight)
    product = Product(call.where, parameters, inputs, outputs, width=batch * k, step=record.step)
    product.recurrent = next((f.name for f in record.stack if isinstance(f.module, nn.RNNBase)), None)
    product.during = {frame.name: frame.call for frame in record.stack}
    product.data = record.memory.shadow(operands.activation).data
    record.products.append(product)
    record.weighed_steps |= record.memory.shadow(operands.activation).ancestors
    record.unexplained([operands.activation])
    call.followed = True
    if inputs is None or outputs is None:
        record.unexplained([operands.weight])

    arrays = {family: operands.standard(labels) for family, labels in record.arrays(operands.activation).items()}
    passing: Arrays = {}
    for family, (fate, labels) in _fates(record, arrays, operands).items():
        if fate == "read" and inputs is not None and _reads_more(record, arrays, labels, operands):
            record.kill([family], f"its outgoing weight is also used elsewhere: on other numbers in {call.where}")
        elif fate == "read" and inputs is not None:
            product.reads[family] = labels.expand(batch, 1, k).flatten()
            product.partial |= bool(((arrays[family] == NONE) & (labels != NONE)).any())
        elif fate == "pass":
            passing[family] = operands.back(labels)
        elif made:
            names = ", ".join(f"'{record.memory.names[number]}'" for number in sorted(made.parameters))
            record.kill(
                [family], f"its outgoing weight, computed from {names}, is not silenced by zeros there, in {call.where}"
            )
        else:
            record.kill([family], f"units do not lie along whole slices of the weight in {call.where}")

    computed = record.computed(outputs or [], batch * m)
    if made:
        _own_rows(record, made, computed)
    begun = {family: operands.back(labels.view(batch, 1, m)) for family, labels in computed.items()}
    call.write({**passing, **_joined(record, passing, begun)})
    if product.reads:
        product.tap = find_tap(record, product, operands)
    product.grouped = operands.groups > 1 or operands.transposed or operands.joint or made is not None
    if not product.grouped:
        record.results[record.memory.key(call.output)] = product, call.output._version
    if bias is not None:
        pointwise(call, [bias, call.output], "shift")
        record.take_mean(product, call.output, -1, bias)


def _own_rows(record: TraceRecord, made: Computed, computed: Arrays) -> None:
    """What else makes up the rows of a computed weight is their units' own."""
    (atoms,) = computed.values()
    record.owned += [Owned("own", each, atoms[each.rows], computes=True) for each in made.own]


def weigh_computed(call: Call, operands: Operands, bias: Tensor | None) -> None:
    """A weight that is a function of parameters, if each of its rows has rows of theirs to itself: pruned, noisy, or else."""
    operands.computed = _made_of(call.record, operands)
    if operands.computed is None:
        _computed_weight(call, operands.activation, operands.weight)
        if bias is not None:
            pointwise(call, [bias, call.output], "shift")
        return
    call.record.weighed |= operands.computed.parameters
    weigh(call, operands, bias)


def _made_of(record: TraceRecord, operands: Operands) -> Computed | None:
    """The rows of parameters of which a computed weight is made; None where some cannot be told apart.

    A parameter that all rows share (a gain, a scale of columns) is nobody's. Of several that have rows, the largest computes
    the units, and the others are their own.
    """
    weight, memory = operands.weight, record.memory
    found = sources(record, weight)
    if record.live(weight) or any(not memory.parameters[n].requires_grad for n in memory.shadow(weight).computed_from):
        return None
    rows: list[Lanes] = []
    columns: dict[int, Lanes | None] = {}
    for number, block in found.items():
        arranged = operands.arrange(block.expand(weight.shape))
        shape = shape_of(record, number)
        each = _rows(number, shape, blocks.along(shape, arranged, (1, 3)))
        columns[number] = _rows(number, shape, blocks.along(shape, arranged, (2, 3)))
        if each is not None:
            rows.append(each)
        elif not torch.equal(arranged, arranged[:1, :, :1].expand_as(arranged)):
            return None
    rows.sort(key=lambda lanes: (-memory.parameters[lanes.lane.parameter].numel(), lanes.lane.parameter))
    silent = [columns.get(number) for number in sorted(memory.shadow(weight).zero_with)]
    inputs = [lanes for lanes in silent if lanes is not None]
    if not rows or memory.parameters[rows[0].lane.parameter].numel() < weight.numel():
        return None
    return Computed(inputs if inputs and len(inputs) == len(silent) else None, rows[:1], rows[1:])


def _rows(number: int, shape: tuple[int, ...], found: Tensor) -> Lanes | None:
    """Blocks, one per row, as positions of a parameter that no other row has; None if they are none."""
    by_axes = blocks.by_axes(shape, found.flatten())
    if len(by_axes) != 1 or NONE in found:
        return None
    ((axes, positions),) = by_axes.items()
    axes = tuple(axis for axis in axes if shape[axis] > 1) or axes[:1]
    if not axes or len(values(positions)) < len(positions):
        return None
    return Lanes(Lane(number, axes, shape), torch.arange(len(positions)), positions)


def _fates(record: TraceRecord, arrays: Arrays, operands: Operands) -> dict[int, tuple[Fate, Tensor]]:
    """What becomes of each family: read with labels (batch, 1, k), passed with labels (batch, n, 1), or dead."""
    k = operands.blocks.shape[1]
    columns = {family: uniform(labels, (1,)) for family, labels in arrays.items()}
    passes = {family: uniform(labels, (2,)) for family, labels in arrays.items()}
    told_apart = any(columns[family] is not None and passes[family] is None for family in arrays)
    fates: dict[int, tuple[Fate, Tensor]] = {}
    for family, labels in arrays.items():
        column, through = columns[family], passes[family]
        if through is not None and not operands.pointwise:
            through = uniform(through, (1,))  # what fills gaps, as padding does, is its neighbors' channel
        depthwise = operands.groups > 1 and k == 1
        one_of_many = told_apart or record.sizes[family] > 1
        gate = k > 1 and through is not None and one_of_many and _single(record, through)
        if column is None and through is None:
            column = _ragged(record, labels)
        if column is not None and not (depthwise or gate):
            fates[family] = "read", column
        elif through is not None:
            fates[family] = "pass", through
        else:
            fates[family] = "dead", labels
    return fates


def _reads_more(record: TraceRecord, arrays: Arrays, column: Tensor, operands: Operands) -> bool:
    """Whether a position that a unit owns also meets numbers without a label, other than padding zeros."""
    if not any(((labels == NONE) & (column != NONE)).any() for labels in arrays.values()):
        return False
    activation = operands.activation
    filled = operands.standard((activation != 0).long()) != 0
    addresses = record.memory.addresses(activation) if record.memory.has_addresses(activation) else None
    if addresses is not None:
        filled |= operands.standard(addresses) != NONE
    for labels in arrays.values():
        filled = filled & (labels == NONE)
    return bool((filled & (column != NONE)).any())


def _single(record: TraceRecord, labels: Tensor) -> bool:
    """Whether no label is a set of several atoms."""
    return not any(label in record.labels.sets for label in distinct(labels))


def _ragged(record: TraceRecord, labels: Tensor) -> Tensor | None:
    """Unions over n, if those of different k share no atom (early steps of a recurrence depend on fewer)."""
    column = record.labels.reduce(labels, (1,))
    sets = [record.labels.members(label) for label in distinct(column)]
    disjoint = sum(map(len, sets)) == len(frozenset[int]().union(*sets))
    return column if len(sets) > 1 and disjoint else None


def _joined(record: TraceRecord, passing: Arrays, begun: Arrays) -> Arrays:
    """A family that passes through its own weight keeps both labels."""
    return {f: record.labels.join(passing[f], labels) if f in passing else labels for f, labels in begun.items()}


def _both_lanes(record: TraceRecord, operands: Operands) -> tuple[list[Lanes] | None, list[Lanes] | None]:
    """Where the rows and columns of the weight lie in its parameters; found once for each view of a parameter."""
    weight, memory = operands.weight, record.memory
    seen = operands.blocks
    view = memory.key(weight), weight.storage_offset(), weight.size(), weight.stride(), seen.shape, seen.stride()
    if view not in record.lanes or not memory.holds_parameter(weight):
        inputs = lanes(memory, seen, operands.groups, last=True)
        record.lanes[view] = inputs, lanes(memory, seen.transpose(1, 2), operands.groups)
    return record.lanes[view]


def _multiply(call: Call, a: Tensor, b: Tensor) -> None:
    """Two activations: join along the contracted axis."""
    record = call.record
    record.unexplained([a, b])
    left, right = record.arrays(a), record.arrays(b)
    if left and right:
        record.multiplied.update(left, right)
    arrays: Arrays = {}
    for family in left.keys() | right.keys():
        parts = [record.labels.reduce(left[family], (-1,))] if family in left else []
        parts += [record.labels.reduce(right[family], (-2,))] if family in right else []
        joined = parts[0] if len(parts) == 1 else record.labels.join(*parts)
        arrays[family] = compress(joined)
    call.write({f: labels.squeeze(-1) if call.output.dim() < labels.dim() else labels for f, labels in arrays.items()})


def _computed_weight(call: Call, activation: Tensor, weight: Tensor) -> None:
    record = call.record
    made_of = record.memory.shadow(weight).computed_from | record.memory.parameters_in(weight)
    for number in sorted(made_of):
        record.elsewhere[number] = f"computed weight ({record.computation(number)})"
    reason = record.elsewhere[min(made_of)] if made_of else f"computed weight in {call.where}"
    record.weighed_steps |= record.memory.shadow(activation).ancestors
    record.kill([*record.live(activation), *record.live(weight)], reason)
    call.followed = True


def _is_weight(record: TraceRecord, tensor: Tensor) -> bool:
    if not record.memory.has_addresses(tensor):
        return False
    if record.memory.holds_parameter(tensor):
        return True
    addresses = record.memory.addresses(tensor)
    return addresses is not None and bool((addresses != NONE).all())
