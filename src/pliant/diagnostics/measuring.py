"""The measures of one group of hidden units.

A unit with several columns (a channel behind a flatten, an attention head) is dead, dormant, ... over all of them. Ranks are
those of the columns at the first tap, the input of the next layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pliant.diagnostics.activations import RECTIFIERS, Activation
from pliant.diagnostics.features import feature_norm, wide
from pliant.diagnostics.health import (
    FLAT_ENDS,
    dead,
    dormant_by_firing,
    linearized,
    saturated,
    saturation,
    share_of_layer,
)
from pliant.diagnostics.ranks import effective_rank, singular_values, srank, stable_rank
from pliant.diagnostics.rows import GRADIENT_TAU, GroupDiagnosis
from pliant.diagnostics.trial_step import TrialStep
from pliant.diagnostics.updates import stagnant, update_ratio, volatile
from pliant.diagnostics.watch import ForwardRecord
from pliant.diagnostics.weights import gradient_norm, weight_magnitude
from pliant.units.bound import BoundGroup, Consumer
from pliant.units.entries import BoundSlice

Counts = list[int | None]  # by run


def measured(
    group: BoundGroup, record: ForwardRecord, tau: float, step: TrialStep | None = None
) -> list[GroupDiagnosis]:
    """One row of the table per run."""
    answers = [each for each in (_answers(consumer, group, record) for consumer in group.consumers) if each is not None]
    activations = {each for tap in group.spec.taps for each in record.records[tap].activations}
    activation = activations.pop() if len(activations) == 1 else None
    values = {
        **_health(answers, activation, tau),
        **_geometry(answers),
        **_sizes(group, record),
        "preactivation_std": _preactivation_std(group, record),
        **(_moved(group, step) if step is not None else {}),
    }
    first = answers[0] if answers else torch.empty(group.runs, 0, group.units, 1)
    return [
        GroupDiagnosis(
            group=group.name,
            run=run if group.spec.stacked else None,
            activation=None if activation is None else activation.name,
            units=group.units,
            n=first.shape[1],
            columns=first.shape[2] * first.shape[3],
            **cast(Any, {name: None if of_runs is None else of_runs[run] for name, of_runs in values.items()}),
        )
        for run in range(group.runs)
    ]


def _answers(consumer: Consumer, group: BoundGroup, record: ForwardRecord) -> Tensor | None:
    """The units' activity at a consumer's tap, (runs, n, units, columns per unit); None if it was not recorded."""
    tap = consumer.tap
    entries = None if tap is None else record.records[tap].by_entry(group.spec.runs)
    if tap is None or entries is None:
        return None
    wanted = group.units * consumer.repeat
    if tap.index is not None:
        index = torch.tensor(tap.index, device=entries.device).flatten()
        entries = entries[..., index[index < entries.shape[-1]]]
    if entries.shape[-1] != wanted:
        raise ValueError(
            f"diagnose: the {tap} has {entries.shape[-1]} entries of group '{group.name}' along axis {tap.axis}, not "
            f"{wanted} (units times repeat): correct the group's Tap"
        )
    return entries.reshape(*entries.shape[:-1], group.units, consumer.repeat)


def _health(answers: list[Tensor], activation: Activation | None, tau: float) -> dict[str, Any]:
    """How many units of each run are in each class, over all taps."""
    names = ("dead", "dormant_by_firing", "dormant_by_activity", "saturated", "saturation", "linearized", "not_finite")
    counts: dict[str, Any] = dict.fromkeys(names)
    if not answers:
        return counts
    by_tap = [each.transpose(2, 3).flatten(1, 2) for each in answers]
    h = by_tap[0] if len(by_tap) == 1 else torch.cat(by_tap, dim=1)  # (runs, n x columns, units)
    counts["dead"], counts["not_finite"] = _count(dead(h)), _count(~h.isfinite().all(1))
    # as ReDo reads it: the mean over columns of their means over n
    size = torch.cat([each.abs().mean(1, dtype=wide(each)) for each in answers], dim=-1).mean(-1)
    counts["dormant_by_activity"] = _count_of_shares(size, tau)
    if activation is not None and activation.name in RECTIFIERS:
        counts["dormant_by_firing"] = _count(dormant_by_firing(h))
    if activation is not None and activation.direct and activation.name in FLAT_ENDS:
        counts["saturated"] = _count(saturated(h, activation.name))
        counts["saturation"] = saturation(h, activation.name).tolist()
    if activation == Activation("relu"):
        counts["linearized"] = _count(linearized(h))
    return counts


def _geometry(answers: list[Tensor]) -> dict[str, list[float] | None]:
    """Ranks and length of the features at the first tap, of each run."""
    if not answers:
        return dict.fromkeys(("effective_rank", "srank", "stable_rank", "feature_norm"))
    h = answers[0].flatten(2)
    s = singular_values(h)
    values = {
        "effective_rank": effective_rank(s),
        "srank": srank(s),
        "stable_rank": stable_rank(s),
        "feature_norm": feature_norm(h),
    }
    return {name: value.tolist() for name, value in values.items()}


def _preactivation_std(group: BoundGroup, record: ForwardRecord) -> list[float] | None:
    """Standard deviation of what entered the activation function, over inputs and units, of each run, at the first tap.

    None where it is not known: no function was seen, the tap shows other units too, or a mask does not say what is real.
    """
    tap = next(iter(group.spec.taps), None)
    entered = [] if tap is None or tap.index is not None else record.records[tap].entered
    moments = [each for each in entered if each is not None]
    if not moments or len(moments) < len(entered):
        return None
    if group.spec.stacked and any(each.shape[0] != group.runs for each in moments):
        return None
    by_run = [each.reshape(group.runs if group.spec.stacked else 1, -1, 3).sum(1) for each in moments]
    count, total, squares = torch.stack(by_run).sum(0).unbind(-1)
    return cast(list[float], (squares / count - (total / count).square()).clamp(min=0.0).sqrt().tolist())


def _moved(group: BoundGroup, step: TrialStep) -> dict[str, Any]:
    """How far one step of the optimizer moves the incoming weights, of each run."""
    return movement([(part, step.before, step.after) for part in group.incoming_weights()])


def movement(parts: Sequence[tuple[BoundSlice, Mapping[str, Tensor], Mapping[str, Tensor]]]) -> dict[str, Any]:
    """Update ratio and counts of stagnant and volatile units, of each run, from incoming weights before and after a step."""
    before: list[Tensor] = []
    moved: list[Tensor] = []
    for part, old, new in parts:
        name = part.part.parameter
        entries = part.entries(old[name]) if name in old else part.entries()
        before.append(entries)
        moved.append(part.entries(new[name]) - entries if name in new else torch.zeros_like(entries))
    weight, update = (torch.cat(each, dim=-1).mT for each in (before, moved))  # (runs, incoming, units)
    of_units = update_ratio(update, weight)
    whole = update_ratio(update.flatten(1).unsqueeze(-1), weight.flatten(1).unsqueeze(-1)).squeeze(-1)
    return {
        "update_ratio": whole.tolist(),
        "stagnant": _count(stagnant(of_units)),
        "volatile": _count(volatile(of_units)),
    }


def _sizes(group: BoundGroup, record: ForwardRecord) -> dict[str, Any]:
    """Mean |incoming weight| of each run, and the measures of the weights' gradient, where there is one."""
    parts = group.incoming_weights()
    weights = [part.entries() for part in parts]
    sizes: dict[str, Any] = {"weight_magnitude": weight_magnitude(*weights, leading=1).tolist()}
    found = [record.gradients[part.part.parameter] for part in parts]
    if any(each is None or each.layout is not torch.strided for each in found):
        return {**sizes, "gradient_norm": None, "dormant_by_gradient": None}
    gradients = [part.entries(cast(Tensor, each).detach()) for part, each in zip(parts, found, strict=True)]
    of_units = torch.cat(gradients, dim=-1).mT  # (runs, incoming, units)
    return {
        **sizes,
        "gradient_norm": gradient_norm(*gradients, leading=1).tolist(),
        "dormant_by_gradient": _count_of_shares(of_units.abs().mean(1, dtype=wide(of_units)), GRADIENT_TAU),
    }


def _count(units: Tensor) -> Counts:
    return cast(Counts, units.sum(-1).tolist())


def _count_of_shares(size: Tensor, tau: float) -> Counts:
    """Units of at most `tau` of their layer's mean size; None in a run whose mean is not finite."""
    share = share_of_layer(size)
    return [None if bool(each.isnan().any()) else int((each <= tau).sum()) for each in share]
