"""The record of one forward, before any two rows are known to be one unit.

    family    the rows of one weight: atoms, from which units are put together later
    product   a weight met an activation: the atoms that it read, and those that it computed
    owned     entries of a parameter that met one label each: biases, scales, slopes
    mixed     sets of atoms whose numbers share one mean or variance
    dead      families that met an operation without a rule, with the reason

The rules write it, `grouping` reads it.
"""

# pyright: reportPrivateUsage=false
# The version of a tensor has no public name in PyTorch.

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from re import sub
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pliant.units.groups import BN, Tap
from pliant.units.trace.labels import NONE, Labels, by_position, distinct
from pliant.units.trace.lanes import Lane, Lanes, lanes, own_lanes
from pliant.units.trace.shadows import Arrays, Key, Memory

Role = Literal["shift", "scale", "slope", "own"]  # "own" for what reaches its unit through a function


class Activation(NamedTuple):
    """A function of single numbers: its name, where that says all of it, and its gain."""

    name: str | None
    gain: float


@dataclass(eq=False)
class Frame:
    """A module that runs, and its tensor arguments with storage and version at entry."""

    module: nn.Module
    name: str
    inputs: list[tuple[int | str, Tensor, tuple[Key, int]]]
    call: int  # how often the module was called before
    data: bool = False  # it returned what depends on the model's inputs


@dataclass(eq=False)
class Product:
    """A weight met an activation. Rows of `inputs` count the contracted axis, rows of `outputs` the units computed."""

    where: str
    parameters: frozenset[int]
    inputs: list[Lanes] | None
    outputs: list[Lanes] | None
    reads: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # family -> label of each input row
    takes_mean: str | BN | None = None
    width: int = 0  # input rows
    step: int = -1  # the operation; those of nn.Bilinear are two products
    recurrent: str | None = None  # the nn.LSTM, nn.GRU or nn.RNN that ran it
    biased: bool = False
    grouped: bool = False
    tap: Tap | None = None  # one position along its axis for each input row
    during: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # modules that ran it, and in which of their calls
    data: bool = (
        True  # what it reads depends on the model's inputs: not an identity matrix that is sent through the model
    )
    result: tuple[Key, int] | None = None  # its very result, where something after it takes the mean over
    partial: bool = False  # some of what it reads is no unit's: padding, a first state
    embedding: bool = False

    def explained(self) -> Tensor:
        """Whether some unit is known to be what each input row reads."""
        known = torch.zeros(self.width, dtype=torch.bool)
        for labels in self.reads.values():
            known |= labels != NONE
        return known


@dataclass(eq=False)
class Applied:
    """A function or a norm that met units, as a module of the kinds that are noted, or as an operation outside of these."""

    steps: range  # the operations that it ran
    module: str
    operation: str | None  # None for a module
    labels: Arrays
    shape: torch.Size
    computed: bool  # what it met depends on parameters, whether or not its units are known


@dataclass(eq=False)
class Owned:
    """Entries of a parameter, one label each."""

    role: Role
    lanes: Lanes
    labels: Tensor
    computes: bool = False  # the weight that computes these units, with another parameter


@dataclass(eq=False)
class Kept:
    """What a buffer holds after the forward: the label of each entry, and whether none is 0 or below (a variance)."""

    labels: Tensor
    positive: bool


@dataclass(eq=False)
class Normed:
    """Channels of a batch norm, one label each."""

    module: str
    labels: Tensor


class TraceRecord:
    """The record of one forward, and the means to write it."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], modules: Mapping[str, nn.Module], prefix: str = ""
    ) -> None:
        self.prefix = prefix  # what DataParallel and `torch.compile` put in front of every name
        self.labels = Labels()
        self.memory = Memory(parameters)
        self.modules = modules
        self.module_names = {module: name for name, module in reversed(list(modules.items()))}
        self.stack: list[Frame] = []
        self.step = 0

        self.families: dict[Lane, int] = {}
        self.atoms: list[int] = []  # first atom of each family
        self.sizes: list[int] = []  # and how many it has
        self.products: list[Product] = []
        self.owned: list[Owned] = []
        self.normed: list[Normed] = []
        self.mixed: dict[int, str] = {}  # label -> where
        self.carried: dict[str, tuple[Tap, dict[int, Tensor]]] = {}  # output of a recurrent module, label by position
        self.outputs: dict[tuple[Key, int], tuple[Frame, int, Tensor]] = {}  # of modules: which call, argument, tensor
        self.calls: Counter[str] = Counter()  # of each module
        self.read_by: Counter[tuple[Key, int]] = Counter()  # operations that read the very result of a product
        self.results: dict[Key, tuple[Product, int]] = {}  # whose result a storage holds, and at what version
        self.same: list[
            tuple[int, int, int]
        ] = []  # first atoms of two families and their size: row i of both is one unit
        self.activations: dict[int, set[Activation]] = {}
        self.noted: tuple[type[nn.Module], ...] = ()  # kinds of modules that are noted in `applied`; none: nothing is
        self.applied: list[Applied] = []
        self.weighed_steps = 0  # bit set of the operations on which the operands of weights depend
        self.dead: dict[int, str] = {}
        self.residual: set[int] = set()
        self.multiplied: set[int] = set()  # families that met another in an activation product: attention
        self.lanes: dict[Any, tuple[list[Lanes] | None, list[Lanes] | None]] = {}  # of the parameter views met so far
        self.elsewhere: dict[int, str] = {}  # parameter -> a use that no rule explains
        self.weighed: set[int] = set()  # parameters that make up computed weights, row by row
        self.mingled: dict[
            int, str
        ] = {}  # parameter -> the first operation in which it, or a function of it, met a label
        self.functions: dict[int, str] = {}  # parameter -> the first operation that made a function of it, no copy
        self.escaped: list[tuple[str, Tensor]] = []  # where labels left the model
        self.met: set[int] = set()  # parameters that met units elementwise
        self.kept: dict[str, Kept] = {}  # by name of the buffer
        self.reached: set[int] = set()  # parameters that took part in anything

    @property
    def module(self) -> str:
        return self.stack[-1].name if self.stack else ""

    def unreached(self) -> tuple[str, ...]:
        """Trainable parameters that took no part in any forward."""
        trainable = [n for n, p in enumerate(self.memory.parameters) if p.requires_grad and p.numel()]
        return tuple(self.memory.names[n] for n in trainable if n not in self.reached)

    def owner(self, parameter: str) -> nn.Module | None:
        """The module that holds a parameter."""
        return self.modules.get(parameter.rpartition(".")[0])

    def computation(self, number: int) -> str:
        """The function that computes a weight from this parameter, as far as names show it."""
        name = self.memory.names[number]
        module, _, leaf = name.rpartition(".")
        if ".parametrizations." in f".{name}":
            owner = name[: f".{name}".index(".parametrizations.")].rstrip(".")
            kinds = [type(each).__name__ for each in self.modules[module].children()]
            return f"{', '.join(map(_snake, kinds))} in '{owner}'"
        masked = hasattr(self.modules.get(module), f"{leaf.removesuffix('_orig')}_mask")
        kinds = (("_g", "weight_norm"), ("_v", "weight_norm"), ("_orig", "prune" if masked else "spectral_norm"))
        for suffix, kind in kinds:
            if leaf.endswith(suffix):
                return f"{kind} in '{module}'"
        return f"from '{name}' in {self.labels.now}"

    def live(self, tensor: Tensor) -> list[int]:
        return [family for family in self.memory.families(tensor) if family not in self.dead]

    def arrays(self, tensor: Tensor) -> Arrays:
        """Labels of every live family of a tensor."""
        return {family: self.memory.labels(tensor, family) for family in self.live(tensor)}

    def kill(self, families: list[int], reason: str) -> None:
        for family in families:
            self.dead.setdefault(family, reason)

    def note(self, tensor: Tensor, operation: str | None = None) -> None:
        """Note that the module that runs, or an operation in it, is applied to a tensor."""
        module = self.stack[-1].module if self.stack else None
        if self.noted and isinstance(module, self.noted) == (operation is None):
            shadow = self.memory.shadow(tensor)
            steps = range(self.step + 1, self.step + 1) if operation is None else range(self.step, self.step + 1)
            self.applied.append(
                Applied(steps, self.module, operation, self.arrays(tensor), tensor.shape, bool(shadow.computed_from))
            )

    def returned(self, module: str) -> None:
        """Note that a module has run all its operations."""
        for each in self.applied[::-1]:
            if each.operation is None and each.module == module:
                each.steps = range(each.steps.start, self.step + 1)
                return

    def computed(self, found: list[Lanes], rows: int) -> Arrays:
        """New labels for the rows that a weight computes; the same row of the same weight is always the same atom."""
        arrays: Arrays = {}
        for lane in found:
            if lane.lane not in self.families:
                self.families[lane.lane] = len(self.atoms)
                self.atoms.append(self.labels.atoms(lane.lane.positions))
                self.sizes.append(lane.lane.positions)
            family = self.families[lane.lane]
            values = arrays.setdefault(family, torch.full((rows,), NONE))
            values[lane.rows] = self.atoms[family] + lane.positions
        return arrays

    def unite(self, arrays: Arrays) -> Arrays:
        """One family for all whose row i meets row i everywhere: what reads the sum reads both, so they are one unit.

        Without it a residual stream carries one more family with each block.
        """
        kept: Arrays = {}
        kept_rows: dict[int, tuple[int, Tensor]] = {}  # size -> family and rows
        for family, labels in arrays.items():
            first, size = self.atoms[family], self.sizes[family]
            rows = torch.where(labels == NONE, NONE, labels - first)
            if size > 1 and bool(((rows == NONE) | ((rows >= 0) & (rows < size))).all()):
                other, met = kept_rows.setdefault(size, (family, rows))
                if other != family and met.shape == rows.shape and torch.equal(met, rows):
                    self.same.append((self.atoms[other], first, size))
                    continue
            kept[family] = labels
        return kept

    def own(self, parameter: Tensor, arrays: Arrays, role: Role) -> None:
        """A parameter meets labels elementwise: which entries belong to one label each?"""
        addresses = self.memory.addresses(parameter)
        assert addresses is not None
        for number in self.memory.parameters_in(parameter):
            index = addresses - self.memory.first[number]
            inside = (index >= 0) & (index < self.memory.parameters[number].numel())
            axes = tuple(range(self.memory.parameters[number].dim()))
            self.own_positions(number, axes, torch.where(inside, index, NONE), arrays, role)

    def own_positions(self, number: int, axes: tuple[int, ...], positions: Tensor, arrays: Arrays, role: Role) -> None:
        """The same, by positions along axes of the parameter."""
        self.met |= {number} if arrays else set()
        axes = axes if self.memory.parameters[number].dim() else ()  # a number has no axis
        tried = [own_lanes(self.memory, number, axes, positions, labels) for f, labels in arrays.items() if f >= 0]
        found = [each for each in tried if each is not None]
        told_apart = [(lane, labels) for lane, labels in found if len(distinct(labels)) > 1]
        self.owned += [Owned(role, *each) for each in told_apart or found]  # one unit that gates all of them owns none

    def columns(self, table: Tensor) -> Arrays:
        """The columns of an embedding begin new units; its rows are read by no unit."""
        found = lanes(self.memory, table.t()[None, :, :, None])
        if found is None:
            self.unexplained([table])
            return {}
        parameters = self.memory.parameters_in(table)
        self.products.append(Product(self.labels.now, parameters, None, found, embedding=True))
        return self.computed(found, table.shape[1])

    def unexplained(self, tensors: list[Tensor]) -> None:
        """Note that parameters among `tensors` are used in a way that belongs to no unit."""
        for tensor in tensors:
            if self.memory.has_addresses(tensor):
                for number in self.memory.parameters_in(tensor):
                    self.elsewhere.setdefault(number, self.labels.now)

    def product_of(self, result: Tensor) -> Product | None:
        """The product that has this tensor as its result."""
        product, version = self.results.get(self.memory.key(result), (None, 0))
        if product is not None and version == result._version:
            product.result = self.memory.key(result), version
            return product
        return None

    def absorb(self, product: Product, result: Tensor, norm: str) -> None:
        """The result goes straight into a batch norm, whose running mean can take over a mean contribution."""
        if (
            product.takes_mean is None
            and not product.biased
            and not product.partial
            and self._aligned(product, result, 1)
        ):
            product.takes_mean = BN(norm)

    def take_mean(self, product: Product, result: Tensor, axis: int, bias: Tensor) -> None:
        """A bias was added along an axis of the result: it can take over a mean contribution, if it is one parameter."""
        product.biased = True
        number = self.memory.whole(bias)
        if number is None or not self.memory.parameters[number].requires_grad or bias.shape != (result.shape[axis],):
            return
        if product.partial:
            return
        if self._aligned(product, result, axis):
            product.takes_mean = self.memory.names[number]

    def _aligned(self, product: Product, result: Tensor, axis: int) -> bool:
        """Whether position i along the axis is output i of the weight."""
        if product.grouped or product.outputs is None or len(product.outputs) != 1:
            return False
        lane = product.outputs[0].lane
        family = self.families[lane]
        if family not in self.live(result) or len(lane.axes) != 1:
            return False
        labels = by_position(self.memory.labels(result, family), axis)
        return labels is not None and torch.equal(labels, self.atoms[family] + torch.arange(lane.positions))

    def mix(self, labels: Tensor) -> None:
        """The atoms of each label share a statistic."""
        for label in distinct(labels):
            self.mixed.setdefault(label, self.labels.now)


def _snake(name: str) -> str:
    """_WeightNorm -> weight_norm"""
    return sub(r"(?<=[a-z])(?=[A-Z])", "_", name.lstrip("_")).lower()
