"""What the tracer finds in each network of the zoo, as a Markdown table: `python -m tests.zoo.report [part of a name]`."""

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from pliant.units import AffineEntry, Slice, UnitMap
from pliant.units.trace import trace
from tests.zoo.models import Model, zoo
from tests.zoo.more import more

SMALL, FEW = 200_000, 300  # parameters, units; of larger networks a sample is verified:
GROUPS = 3  # groups, spread over the depth
ROUNDS = 2  # and of each group two sets of half of its units, which shows whatever is wrong with many


@dataclass(frozen=True)
class Row:
    """One network: what was found, what the verifier says of a sample, and how much of its hidden layers is covered."""

    model: Model
    parameters: int
    groups: int
    units: int
    kinds: dict[str, int]
    verdicts: dict[str, int]
    wrong: tuple[str, ...]
    hidden: float | None  # share of the weights named in `Model.hidden` that enter a unit
    whole: float  # share of all weights that enter or leave a unit
    skipped: int  # parameters
    seconds: float
    plan: UnitMap | None

    def cells(self) -> dict[str, str]:
        """Column -> what stands there."""
        counts = {
            "units": self.units,
            "exact groups": self.kinds.get("exact", 0),
            "approximate": self.kinds.get("approximate", 0),
            "recurrent": self.kinds.get("recurrent", 0),
            "parameters left alone": self.skipped,
            "verified": sum(self.verdicts.values()),
            "vacuous": self.verdicts.get("vacuous", 0),
            "wrong": self.verdicts.get("wrong", 0),
        }
        return {
            "network": self.model.name,
            "from": self.model.source,
            "million parameters": f"{self.parameters / 1e6:.2f}",
            **{name: str(count) for name, count in counts.items()},
            "of the hidden weights": "-" if self.hidden is None else f"{self.hidden:.0%}",
            "of all weights": f"{self.whole:.0%}",
            "seconds to trace and try": f"{self.seconds:.2f}",
        }


def measure(entry: Model) -> Row:
    """Trace, verify a sample, count."""
    model, example = entry.make()
    started = time.perf_counter()
    plan = traced(model, example, entry)
    seconds = time.perf_counter() - started
    rows = plan.rows if plan else ()
    count = sum(parameter.numel() for parameter in model.parameters())
    large = count > SMALL or sum(row.units for row in rows) > FEW
    sample = [rows[i * len(rows) // GROUPS] for i in range(min(GROUPS, len(rows)))] if large else rows
    names = [row.group.name for row in sample]
    rounds = ROUNDS if large else None
    verification = plan.verify(model, example, groups=names, rounds=rounds) if plan else None
    weights = [name for name, each in model.named_parameters() if each.dim() > 1]
    hidden = [name for name in weights if entry.is_hidden(name)]
    return Row(
        model=entry,
        parameters=count,
        groups=len(rows),
        units=sum(row.units for row in rows),
        kinds=Counter(row.group.kind for row in rows),
        verdicts=Counter(row.verdict for row in verification.rows) if verification else {},
        wrong=tuple(f"{row.group.name}: {row.why}" for row in verification.wrong) if verification else (),
        hidden=_share(model, hidden, plan, incoming_only=True) if hidden else None,
        whole=_share(model, weights, plan, incoming_only=False),
        skipped=sum(len(each.parameters) for each in plan.skipped) if plan else len(list(model.parameters())),
        seconds=seconds,
        plan=plan,
    )


def traced(model: nn.Module, example: object, entry: Model) -> UnitMap | None:
    """The plan, or None where a network has no unit and the zoo's table says so."""
    try:
        return trace(model, example, **entry.options)
    except ValueError:
        if entry.groups:
            raise
        return None


def _share(model: nn.Module, names: list[str], plan: UnitMap | None, *, incoming_only: bool) -> float:
    """Share of the elements of some parameters that belong to a unit."""
    parameters = dict(model.named_parameters())
    owned = {name: torch.zeros(()) for name in names}
    for group in plan.groups if plan else ():
        own = [each.part for each in group.affine if isinstance(each, AffineEntry)]
        for part in [*group.incoming, *own, *(() if incoming_only else group.outgoing)]:
            if part.parameter in owned:
                owned[part.parameter] = owned[part.parameter] + _mask(part, parameters[part.parameter])
    covered = sum(int((mask > 0).expand(parameters[name].shape).sum()) for name, mask in owned.items())
    return covered / sum(parameters[name].numel() for name in names)


def _mask(part: Slice, parameter: torch.Tensor) -> torch.Tensor:
    """1 where an element belongs to a unit of the slice, in the parameter's shape."""
    mask = torch.zeros(part.shape or parameter.shape)
    axes = part.axes
    front = mask.movedim(axes, tuple(range(len(axes))))
    leading = front.shape[: len(axes)]
    positions = torch.arange(leading.numel()) if part.index is None else torch.tensor(part.index).flatten()
    front[torch.unravel_index(positions, leading)] = 1.0
    return mask.view(parameter.shape)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(part: str = "") -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    headed = False
    for entry in (*zoo(), *more()):
        if part in entry.name:
            cells = measure(entry).cells()
            if not headed:
                print(line(cells), line(["---"] * len(cells)), sep="\n")
            headed = True
            print(line(cells.values()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
