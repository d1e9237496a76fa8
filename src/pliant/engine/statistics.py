"""Statistics of all groups on one device, side by side in flat tensors, so that a step costs few operations however many
groups there are.

    entries   what the readers sum, one after another; a reader serves every group that reads there
    columns   of groups: `columns[:, j]` is entry `entry_of_column[j]`; the columns of a unit stand together
    units     of groups, one after another

Groups with equally many columns per unit are neighbours, and neighbours that ran in a step are one `Span`: its columns viewed
as (runs, units, width) lie on its units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.base.deprecation import renamed
from pliant.base.saving import counts_in, fill
from pliant.engine.activity import Reader, Reading
from pliant.engine.attached import home_of_parameters
from pliant.engine.magnitude import SCRATCH, Magnitude
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import SelectedUnits
from pliant.units.groups import Tap
from pliant.units.hooks import attach


def side_by_side(
    groups: Sequence[BoundGroup], names: NamedModel, optimizers: Iterable[Optimizer], *, masked: bool
) -> list[ActivityStatistics]:
    """Statistics of groups that are on one device and step together; with `masked`, over real positions."""
    clocks = home_of_parameters(optimizers)
    together: dict[tuple[torch.device, Optimizer | None], list[BoundGroup]] = {}
    for group in groups:
        together.setdefault((group.first.device, clocks.get(group.first)), []).append(group)
    return [ActivityStatistics(found, names, clock, masked=masked) for (_, clock), found in together.items()]


def home_of_groups(all_statistics: Iterable[ActivityStatistics]) -> dict[BoundGroup, ActivityStatistics]:
    """Where the statistics of each group are."""
    return {group: statistics for statistics in all_statistics for group in statistics.groups}


class Span(NamedTuple):
    """Neighbouring groups with `width` columns per unit: their places among all units and all columns."""

    units: slice
    columns: slice
    width: int

    def of_units(self, tensor: Tensor) -> Tensor:
        """Its part of `tensor` (runs, all units), which is all of it as a rule: an index costs as much as an operation."""
        return tensor if self.units.stop - self.units.start == tensor.shape[1] else tensor[:, self.units]

    def of_columns(self, tensor: Tensor) -> Tensor:
        """Its part of `tensor` (runs, all columns)."""
        return tensor if self.columns.stop - self.columns.start == tensor.shape[1] else tensor[:, self.columns]


@dataclass
class Means:
    """What the columns did since the last step, each (runs, columns); `ran` is None if all of them did anything.

    `masked`: a group may have run without a single real example; only the device knows.
    """

    by_reading: dict[Reading, Tensor]
    ran: Tensor | None
    masked: bool = False


class ActivityStatistics:
    """Groups on one device that step together: their readers, ages and places. All have equally many runs."""

    def __init__(
        self, groups: Sequence[BoundGroup], names: NamedModel, clock: Optimizer | None, *, masked: bool = False
    ) -> None:
        self.clock = clock
        self.groups = sorted(groups, key=lambda group: group.columns)
        self.runs = groups[0].runs
        self.first = self.groups[0].first  # its device is that of all
        self.device = self.first.device
        self.dtype = max((group.dtype for group in groups), key=lambda dtype: dtype.itemsize)
        self.units = self.columns = 0
        self._spans: dict[BoundGroup, Span] = {}
        for group in self.groups:
            units, columns = self.units, self.columns
            self.units, self.columns = units + group.units, columns + group.units * group.columns
            self._spans[group] = Span(slice(units, self.units), slice(columns, self.columns), group.columns)
        self.all_spans = _joined(self._spans.values())
        # at which step of its group each unit was new: ages follow without an operation per step
        self._born = torch.zeros(self.runs, self.units, dtype=torch.int64, device=self.device)
        self.steps = dict.fromkeys(self.groups, 0)
        self._all_ran = False
        self.observe_every = 1  # steps of a group, of which the last is taken in by the score: it says how many
        self.masked = masked  # whether some positions of the recorded activity are padding
        self._place_readers(names)
        self._place_outgoing()

    def _place_readers(self, names: NamedModel) -> None:
        """One reader for each place in the model, and the entry that every column finds its sums in."""
        self.readers: list[Reader] = []
        self._readers_of: dict[BoundGroup, list[Reader]] = {group: [] for group in self.groups}
        taken: dict[tuple[object, ...], tuple[Reader, set[int]]] = {}
        # of every consumer in order: its reader, and the (units, repeat) entries of it
        local: list[tuple[Reader | None, Tensor]] = []
        for group in self.groups:
            for consumer in group.consumers:
                if consumer.tap is None:
                    local.append((None, torch.zeros(group.units, consumer.repeat, dtype=torch.int64)))
                    continue
                index = _entries(consumer.tap, group.units, consumer.repeat)
                reader = self._reader(taken, group, consumer.tap, index, names)
                self._readers_of[group].append(reader)
                local.append((reader, index))
        self._number_entries(local)

    def _reader(
        self,
        taken: dict[tuple[object, ...], tuple[Reader, set[int]]],
        group: BoundGroup,
        tap: Tap,
        index: Tensor,
        names: NamedModel,
    ) -> Reader:
        """The reader at a tap: an earlier group's if it reads other entries there, since an entry has one running mean."""
        wanted = set(cast(list[int], index.flatten().tolist()))
        key = (
            id(names.module(tap.module, group.name)),
            tap.at,
            tap.axis,
            tap.argument,
            tap.parameter,
            tap.part,
            tap.calls,
        )
        while key in taken and taken[key][1] & wanted:
            key = (*key, "again")
        if key not in taken:
            parameter = names.parameter(tap.parameter, group.name) if tap.parameter else None
            module = names.module(tap.module, group.name)
            taken[key] = Reader(tap, module, parameter, runs=group.spec.runs), set()
            self.readers.append(taken[key][0])
        reader, entries = taken[key]
        entries |= wanted
        reader.entries = max(reader.entries, max(entries) + 1)
        return reader

    def _number_entries(self, local: Sequence[tuple[Reader | None, Tensor]]) -> None:
        starts: dict[Reader | None, int] = {}
        total = 0
        for reader in self.readers:
            starts[reader] = total
            total += reader.entries
        self._silent = total  # one more entry, always 0, for consumers that nothing is read from
        places = iter(local)
        pieces: list[Tensor] = []
        owners: list[Tensor] = []
        numbers = {reader: number for number, reader in enumerate(self.readers)}
        for group in self.groups:
            of_group = [next(places) for _ in group.consumers]
            found = [index + starts[reader] if reader else index.fill_(self._silent) for reader, index in of_group]
            pieces.append(torch.cat(found, dim=1).flatten())
            owner = [torch.full_like(index, numbers[reader] if reader else len(numbers)) for reader, index in of_group]
            owners.append(torch.cat(owner, dim=1).flatten())
        self.entry_of_column = torch.cat(pieces).to(self.device)
        self.reader_of_column = torch.cat(owners).to(self.device)
        silent = bool((self.entry_of_column == self._silent).any())
        self._identity = (
            not silent
            and torch.equal(self.entry_of_column.cpu(), torch.arange(total)[: len(self.entry_of_column)])
            and total == len(self.entry_of_column)
        )

    def _place_outgoing(self) -> None:
        """Where each outgoing slice's mean |w| goes."""
        self._outgoing_means = torch.zeros(self.runs, self.columns, dtype=self.dtype, device=self.device)
        self.outgoing: list[Magnitude] = []
        for group in self.groups:
            of_group = self.by_unit(self._outgoing_means, group)
            for each in group.consumers:
                target = of_group[:, :, each.columns]
                self.outgoing += [Magnitude(each, part, target) for part in each.slices]
        small = [each.part.parameter.numel() for each in self.outgoing if each.is_matrix]
        scratch = self._outgoing_means.new_empty(min(max(small, default=0), SCRATCH))
        for each in self.outgoing:
            each.share(scratch)

    # -- places -------------------------------------------------------------------------------------------------

    def span(self, group: BoundGroup) -> Span:
        return self._spans[group]

    def readers_of(self, group: BoundGroup) -> Sequence[Reader]:
        return self._readers_of[group]

    @property
    def one_column_each(self) -> bool:
        """Whether entries, columns and units are the same, in one order."""
        return self._identity and self.columns == self.units

    def spans(self, groups: Sequence[BoundGroup]) -> list[Span]:
        """The spans that these groups make, given in their order here."""
        if len(groups) == len(self.groups):
            return self.all_spans
        return _joined(self._spans[group] for group in groups)

    def by_unit(self, columns: Tensor, group: BoundGroup) -> Tensor:
        """A group's part of `columns` (runs, all columns), as a view (runs, units, columns of a unit)."""
        return columns[:, self._spans[group].columns].view(self.runs, group.units, group.columns)

    def age_of(self, group: BoundGroup) -> Tensor:
        """Optimizer steps since each unit was new, (runs, units)."""
        return self.steps[group] - self._born[:, self._spans[group].units]

    def observations_of(self, group: BoundGroup) -> Tensor:
        """Steps since each unit was new that the score has taken in, (runs, units): those whose number is a multiple of
        `observe_every`."""
        if self.observe_every == 1:
            return self.age_of(group)
        born = self._born[:, self._spans[group].units]
        return self.steps[group] // self.observe_every - born.div(self.observe_every, rounding_mode="floor")

    def observations(self) -> Tensor:
        """Those of all units, (runs, units)."""
        return torch.cat([self.observations_of(group) for group in self.groups], dim=1)

    def renew(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """The age of chosen units that are fully replaced is 0 again."""
        born = self._born[:, self._spans[group].units]
        now = self.steps[group]
        if chosen.all_at_full_strength:
            chosen.fill(born, now)
        else:
            born[chosen.where] = torch.where(chosen.strength >= 1.0, now, born[chosen.where])

    def count_step(self, groups: Iterable[BoundGroup]) -> None:
        """These groups made a step."""
        for group in groups:
            self.steps[group] += 1
        self.look_ahead()

    def observe(self, every: int) -> None:
        """From here on only every so many steps of a group are taken in."""
        self.observe_every = every
        self.look_ahead()

    def observed(self, groups: Sequence[BoundGroup]) -> Sequence[BoundGroup]:
        """Of groups that make a step now, which is yet to be counted, those whose activity in it is taken in."""
        if self.observe_every == 1:
            return groups
        return [group for group in groups if (self.steps[group] + 1) % self.observe_every == 0]

    def look_ahead(self, *, unsure: bool = False) -> None:
        """Readers rest until a step is to come that is taken in. `unsure`: the last one is not counted yet, and may be none."""
        if self.observe_every > 1:
            coming = {steps + ahead for steps in self.steps.values() for ahead in ((1, 2) if unsure else (1,))}
            rests = all(step % self.observe_every for step in coming)
            for reader in self.readers:
                reader.rests = rests

    def ran(self) -> list[BoundGroup]:
        """The groups of which anything was read since the last step. One without a tap always counts as read."""
        self._all_ran = all([reader.ran for reader in self.readers])  # noqa: C419  (a list is quicker)
        if self._all_ran:
            return self.groups
        heard = {reader for reader in self.readers if reader.ran or reader.captured}
        return [group for group in self.groups if heard.intersection(self._readers_of[group]) or not group.spec.taps]

    # -- one step -----------------------------------------------------------------------------------------------

    def pop_means(self) -> Means:
        """The means since the last step, and start afresh."""
        if not self.readers:
            return Means({}, None)
        quiet: list[int] = []
        if not self._all_ran:
            quiet = [number for number, reader in enumerate(self.readers) if not (reader.ran or reader.captured)]
        ran = self._saw_examples() if self.masked else None
        means = self.sums / self._counts()
        self.sums.zero_()
        self.clear_readers()
        by_reading: dict[Reading, Tensor] = dict(zip(self._readings, means.unbind(), strict=True))
        if self._all_nonnegative:
            by_reading["magnitude"] = by_reading["mean"]
        elif self._nonnegative is not None and "magnitude" in by_reading:
            by_reading["magnitude"] = torch.where(self._nonnegative, by_reading["mean"], by_reading["magnitude"])
        if not self._identity:
            by_reading = {reading: self._columns(entries) for reading, entries in by_reading.items()}
        if quiet and not self.masked:
            ran = ~torch.isin(self.reader_of_column, torch.tensor(quiet, device=self.device))
        return Means(by_reading, ran, self.masked)

    def clear_readers(self) -> None:
        """Start afresh, with sums that are 0."""
        for reader in self.readers:
            reader.clear()

    def drop(self) -> None:
        """Forget what was summed since the last step."""
        self.sums.zero_()
        self.clear_readers()

    def examples_of(self, group: BoundGroup) -> int:
        """How many examples and positions the group's first reader has summed since the last step; reads the device."""
        readers = self._readers_of[group]
        return int(readers[0].count()) if readers else 0

    def examples_of_all(self) -> int | None:
        """How many each reader has summed; None if they differ, or only the device knows."""
        examples = self.readers[0].examples
        for reader in self.readers:
            if reader.compiled or reader.examples != examples:
                return None
        return examples

    def _saw_examples(self) -> Tensor:
        """Whether each column was shown any example, (columns,), as the device knows; True where nothing is read."""
        counts = [torch.as_tensor(reader.count(), device=self.device, dtype=self.dtype) for reader in self.readers]
        return torch.stack([*counts, torch.ones_like(counts[0])])[self.reader_of_column] > 0

    def _counts(self) -> Tensor | int:
        """What to divide the sums by: one number if the host knows it, as a rule, or one for each entry."""
        known = self.examples_of_all()
        if known is not None:
            return known
        counts = [reader.count() for reader in self.readers]
        each = [torch.as_tensor(n, dtype=self.dtype).to(self.device, non_blocking=True) for n in counts]
        widths = [each.expand(reader.entries) for each, reader in zip(each, self.readers, strict=True)]
        return torch.cat(widths).clamp(min=1.0)

    def _columns(self, entries: Tensor) -> Tensor:
        """(runs, entries) -> (runs, columns), 0 where nothing is read."""
        return torch.nn.functional.pad(entries, (0, 1))[:, self.entry_of_column]

    def outgoing_magnitude(self) -> Tensor:
        """Mean |w| over all weights that leave each column, (runs, columns); the same memory at every call."""
        for magnitude in self.outgoing:
            magnitude.write()
        return self._outgoing_means

    def incoming_magnitude(self) -> Tensor:
        """Mean |w| over all weights that enter each unit, at each of its columns, (runs, columns)."""
        by_group = [group.incoming_magnitude().repeat_interleave(group.columns, dim=1) for group in self.groups]
        return torch.cat(by_group, dim=1).to(self.dtype)

    def shares(self) -> Tensor | None:
        """What each column counts for in its unit, (columns,), 1 in sum; None if every unit has one column.

        A unit with several consumers is weighed by the number of weights in each, so that its contribution is the sum
        over consumers of (sum |w| x |h|) over their total number of weights.
        """
        if all(group.columns == 1 for group in self.groups):
            return None
        pieces: list[Tensor] = []
        for group in self.groups:
            rows = sum(consumer.rows for consumer in group.consumers)
            of_unit = torch.cat(
                [torch.full((each.repeat,), each.rows / rows / each.repeat) for each in group.consumers]
            )
            pieces.append(of_unit.repeat(group.units))
        return torch.cat(pieces).to(self.device, self.dtype)

    def columns_of(self, reader: Reader) -> tuple[Tensor, Tensor]:
        """The columns that a reader serves and their entries within it."""
        columns = (self.reader_of_column == self.readers.index(reader)).nonzero().flatten()
        start = sum(each.entries for each in self.readers[: self.readers.index(reader)])
        return columns, self.entry_of_column[columns] - start

    def unit_of_column(self) -> Tensor:
        owners = [
            torch.arange(group.units).repeat_interleave(group.columns) + self._spans[group].units.start
            for group in self.groups
        ]
        return torch.cat(owners).to(self.device)

    # -- living with the model ----------------------------------------------------------------------------------

    def listen(self, reads: Sequence[Reading]) -> Iterator[RemovableHandle]:
        """Start to read activity. Each handle is given as soon as its hook is there: should the next one fail, none is lost."""
        self._readings: list[Reading] = list(dict.fromkeys(("mean", *reads)))
        entries = sum(reader.entries for reader in self.readers)
        shape = (len(self._readings), self.runs, entries)
        self._allocate(torch.zeros(shape, dtype=self.dtype, device=self.device))
        yield from map(attach, self.readers)

    def _allocate(self, sums: Tensor) -> None:
        """Give every reader its part of `sums` (readings, runs, entries), which is zeroed and shared in one operation."""
        self.sums = sums
        first = 0
        for reader in self.readers:
            of_reader = sums[:, :, first : first + reader.entries]
            by_run = of_reader if reader.runs is not None else of_reader.squeeze(1)
            reader.allocate(dict(zip(self._readings, by_run.unbind(), strict=True)))
            first += reader.entries
        signs = [torch.full((reader.entries,), reader.tap.nonnegative) for reader in self.readers]
        self._nonnegative = torch.cat(signs).to(self.device) if any(map(torch.any, signs)) else None
        self._all_nonnegative = all(map(torch.all, signs))

    def share_between_ranks(self, process_group: dist.ProcessGroup, *, agree: bool) -> None:
        """Add up sums and counts over the ranks of a data-parallel model, uneven batches included, in one message.

        `agree` also lets ranks agree on which readers ran, where a rank may leave a part of the model out.
        """
        for reader in self.readers:
            reader.counted += reader.examples
            reader.examples, reader.compiled = 0, True
        tensors = [self.sums, *(reader.counted for reader in self.readers)]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=process_group)
        for tensor, piece in zip(tensors, _split(flat, tensors), strict=True):
            tensor.copy_(piece)
        if agree:
            ran = torch.tensor([reader.ran for reader in self.readers], dtype=torch.int32, device=self.device)
            dist.all_reduce(ran, group=process_group)
            for reader, anywhere in zip(self.readers, cast(list[int], ran.tolist()), strict=True):
                reader.ran = bool(anywhere)

    def to(self, device: torch.device) -> None:
        self.device = device
        for name in ("_born", "entry_of_column", "reader_of_column"):
            setattr(self, name, getattr(self, name).to(device))
        self._place_outgoing()
        counted = [reader.counted for reader in self.readers]
        self._allocate(self.sums.to(device))
        for reader, held in zip(self.readers, counted, strict=True):
            reader.counted.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps.values()),
            "born": self._born.clone(),
            "sums": self.sums.clone(),
            "activity": [reader.state_dict() for reader in self.readers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = dict(zip(self.groups, counts_in(state, "steps", len(self.groups)), strict=True))
        self.look_ahead()
        fill(self._born, state["born"], "born")
        if self._born.numel() and int(self._born.min()) < 0:
            raise ValueError("'born' of this state holds steps below 0")
        fill(self.sums, state["sums"], "sums")
        for reader, held in zip(self.readers, state["activity"], strict=True):
            reader.load_state_dict(held)


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`flat` cut into the shapes of others."""
    pieces = cast(Sequence[Tensor], flat.split([tensor.numel() for tensor in like]))
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Neighbours of equal width made one."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and last.width == span.width and last.units.stop == span.units.start:
            units, columns = slice(last.units.start, span.units.stop), slice(last.columns.start, span.columns.stop)
            joined[-1] = Span(units, columns, span.width)
        else:
            joined.append(span)
    return joined


def _entries(tap: Tap, units: int, repeat: int) -> Tensor:
    """(units, repeat) positions along the axis of a tap."""
    index = torch.arange(units * repeat).view(units, repeat) if tap.index is None else torch.tensor(tap.index)
    if index.shape != (units, repeat):
        raise ValueError(f"the tap at the {tap} has {tuple(index.shape)} positions, its slices {(units, repeat)}")
    return index


__getattr__ = renamed(__name__, {"Panel": "ActivityStatistics"})
