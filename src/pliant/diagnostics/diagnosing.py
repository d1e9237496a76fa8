"""All measures of this package on the hidden units of a model: one row per group of the unit map.

units      traced from `x`, or given: the same as those that a reset method replaces
activity   recorded at the same taps, behind activation, pooling and dropout, as the input of the next weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import flag, is_a, number, shown, whole
from pliant.diagnostics.batches import Batches, batches_of
from pliant.diagnostics.checkpoints import State, with_state
from pliant.diagnostics.diagnosis import Diagnosis, NetworkDiagnosis
from pliant.diagnostics.measuring import measured
from pliant.diagnostics.references import Reference, none_because, reference_of
from pliant.diagnostics.sharpness import sharpness_of
from pliant.diagnostics.trial_step import TrialStep, optimizers_of, trial_step
from pliant.diagnostics.watch import watch
from pliant.engine.attached import Optimizers
from pliant.engine.data_parallel import refuse_shards
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.forwards import Mask, check_mask
from pliant.units.groups import UnitGroup
from pliant.units.map import UnitMap
from pliant.units.models import checked, first, prefix_of
from pliant.units.trace import trace

FEW = 8  # examples that are enough to trace


@torch.inference_mode(False)
def diagnose(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    groups: Sequence[UnitGroup] | UnitMap | None = None,
    loss: Callable[..., Tensor] | None = None,
    tau: float = 0.025,
    residual: bool = False,
    heads: bool = False,
    mask: Tensor | Sequence[Tensor] | Mask | None = None,
    state: State | None = None,
    reference: Reference = "fresh",
    optimizer: Optimizers | None = None,
    sharpness: bool = False,
    examples: int = 512,
) -> Diagnosis:
    """Dead, dormant, saturated and linearized units, ranks, sizes of weights, gradients and steps: one row per group of hidden
    units, and below it the same of a fresh network.

    The model runs one forward on `x`, in the mode that it is in. In training mode batch norms use the batch, and dropout is
    active, which raises ranks and hides saturation: call `model.eval()` first to measure the model as it predicts. Everything is
    afterwards as it was, to the bit: parameters, gradients, buffers, modes, hooks and the random state; attached methods do not
    record this forward. All recorded activity is held in memory at once, examples x positions x units numbers per group. Under
    `torch.no_grad` and `torch.inference_mode`, and with inputs made under them, the result is the same.

    Args:
        model: any network whose units can be traced.
        x: a tensor (the one argument of the forward), a tuple (its arguments), a mapping (its keyword arguments), or a list of
            those, which count as one batch; or a DataLoader, of whose batches (x, y) the forward takes x; or a dataset, or a list
            of single examples, see `pliant.diagnostics.single_examples`. As many examples as a
            layer has units, or n caps its ranks.
        y: the targets of `x`, for `loss(output, y)`; a DataLoader brings its own.
        groups: the units, such as `method.plan` or `chain_groups(model)`; without them, the model is traced on the first 8
            examples.
        loss: for gradients and the trial step: of the model's output, `lambda output: cross_entropy(output, labels)`, or, where
            there are targets, of output and target, such as `cross_entropy`. Without it there are no such columns, whatever
            `.grad` holds.
        tau: at most this share of its layer's mean |activity| makes a unit dormant by ReDo's measure.
        residual, heads: also these kinds of units, see `pliant.trace`.
        mask: which positions of `x` are real, where some are padding or special tokens: a tensor (batch, positions), True or 1
            where real, a list of them if `x` is one, or as a method takes it, the name of an argument of the forward or a
            function of all its arguments. Every measure of activity is then over real positions, and `n` counts them; where an
            example has one row (behind a pool) it counts if any of its positions is real. See `pliant.units.forwards`.
        state: a checkpoint's file, or a state dictionary (nested ones too), which is diagnosed in the place of the model's own
            numbers; the model stays as it is. See `pliant.diagnostics.checkpoints`.
        reference: the network to compare with: "fresh", a new one as the modules' own resets draw it, where they draw all of
            it; a function that builds one; a model; a saved state, such as the initial one; None: none.
        optimizer: what steps the model, or several, for the measures of its next step, which is tried on a copy. Needs `loss`.
        sharpness: also the largest eigenvalue of the loss's Hessian on the first batch: up to 50 backward passes. Needs `loss`.
        examples: how many a DataLoader, or a dataset, is read for.

    Raises `ValueError` where no unit is found, a group does not fit the model, `loss` comes with a list without targets or is
    not one number, `x` is an empty list, the mask does not fit, or a state is of another model.

    >>> diagnosis = diagnose(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(4, 3))
    >>> [(row.group, row.activation, row.units, row.n, row.srank) for row in diagnosis.rows]
    [('0', 'relu', 8, 4, 1.0)]
    """
    residual, heads, tau = flag("residual", residual), flag("heads", heads), number("tau", tau)
    sharpness, count = flag("sharpness", sharpness), whole("examples", examples, 1)
    model = checked(model)
    refuse_shards(model)
    network = model if state is None else with_state(model, state)
    batches = batches_of(network, x, y, count)
    _check_loss(
        batches, loss, needed_by={"y": y is not None, "optimizer": optimizer is not None, "sharpness": sharpness}
    )
    losses = batches.losses(loss)
    optimizers = () if optimizer is None else optimizers_of(model, optimizer)
    if groups is not None and (residual or heads):
        raise ValueError(
            "diagnose: residual and heads are options of tracing; groups given by hand are used as they are"
        )
    check_mask(mask, batches.examples[0])
    masks = _masks(mask, len(batches.examples), batches.several)
    units = _units(model if state is None else network, batches.examples, groups, residual=residual, heads=heads)
    if mask is not None and any(group.stacked for group in units.groups):
        raise ValueError("diagnose: mask is not for a stack of runs")
    beside = reference_of(network, reference, batches.examples)

    def found(each: nn.Module, name: str, prefix: str) -> Diagnosis:
        bound = [BoundGroup(spec, NamedModel(each, prefix=prefix)) for spec in units.groups]
        taps = dict.fromkeys(tap for group in bound for tap in group.spec.taps)
        record = watch(each, batches.examples, taps, losses, masks, prefix)
        step = trial_step(model, each, optimizers, batches, loss, prefix_of(model)) if optimizers and loss else None
        with torch.no_grad():
            rows = [row for group in bound for row in measured(group, record, tau, step)]
        eigenvalue = sharpness_of(each, batches.examples[0], losses[0]) if sharpness and losses else None
        whole = (
            NetworkDiagnosis(record.loss, sharpness=eigenvalue)
            if step is None
            else NetworkDiagnosis(
                record.loss, step.loss_after, step.plasticity, step.churn, step.update_ratio, eigenvalue
            )
        )
        modes = {module.training for module in each.modules()}
        mode = "mixed" if len(modes) > 1 else "training" if True in modes else "evaluation"
        remarks = [] if step is None else [_said(step, optimizers)]
        return Diagnosis(rows, units, mode, tau, whole, None, name, remarks)

    own = found(network, "model", "")
    if beside.network is None:
        return replace(own, remarks=[*own.remarks, beside.note])
    try:
        other = found(beside.network, beside.name, prefix_of(network))
    except Exception as error:
        if is_a(reference, str) and reference == "fresh":  # nobody asked for it by name
            return replace(own, remarks=[*own.remarks, none_because(error)])
        error.add_note(
            f"diagnose: this is of the {beside.name} network beside the model; leave it out with reference=None"
        )
        raise
    grown = [
        replace(row, weight_growth=row.weight_magnitude / old.weight_magnitude if old.weight_magnitude else None)
        for row, old in zip(own.rows, other.rows, strict=True)
    ]
    return replace(own, rows=grown, reference=other, remarks=[*own.remarks, beside.note])


def _check_loss(batches: Batches, loss: Callable[..., Tensor] | None, needed_by: dict[str, bool]) -> None:
    for name, given in needed_by.items():
        if given and loss is None:
            raise ValueError(f"diagnose: {name} needs loss=..., such as torch.nn.functional.cross_entropy")
    alone = batches.targets is None and not all(
        is_a(each, Mapping) for each in batches.examples
    )  # those hold their labels
    if loss is not None and alone and len(batches.examples) > 1:
        raise ValueError("diagnose: loss=... is of one output; give x as one batch, not a list, or give the targets y")


def _said(step: TrialStep, optimizers: Sequence[Optimizer]) -> str:
    names = " and ".join(type(each).__name__ for each in optimizers)
    of = "mean over samples" if step.of_samples else "of the batch"
    return (
        f"step: the next one of {names}, on {step.examples} examples; plasticity: share of the loss it takes away, {of}"
    )


def _units(
    model: nn.Module, examples: list[Any], groups: Sequence[UnitGroup] | UnitMap | None, **kinds: bool
) -> UnitMap:
    """The units to measure."""
    if groups is None:
        units = _traced(model, examples, **kinds)
    elif isinstance(groups, UnitMap):
        units = groups
    else:
        several = is_a(groups, Sequence) and not is_a(groups, str)
        if not several or not all(isinstance(group, UnitGroup) for group in cast(Sequence[Any], groups)):
            raise TypeError(
                "diagnose: groups are UnitGroups or a UnitMap; to choose some by name: trace(model, x).include(...)"
            )
        names = NamedModel(model)
        units = UnitMap([BoundGroup(spec, names).plan_row(hand_over=True) for spec in groups])
    if not units.rows:
        raise ValueError("diagnose: groups is empty; give some, or none at all to find them by tracing")
    return units


def _masks(mask: Any, batches: int, listed: bool) -> Sequence[Tensor] | Mask | None:
    """One mask per batch, or the name or function that gives the mask of every batch."""
    if mask is None or isinstance(mask, str) or (callable(mask) and not isinstance(mask, Tensor)):
        return cast(Mask | None, mask)
    if not isinstance(mask, Tensor | Sequence):
        raise TypeError(f"mask must be a tensor, a list of tensors, a name or a function, got {shown(mask)}")
    masks = [mask] if isinstance(mask, Tensor) else list(cast(Sequence[Tensor], mask))
    if len(masks) != batches or listed == isinstance(mask, Tensor):
        given = "one" if isinstance(mask, Tensor) else f"a list of {len(masks)}"
        raise ValueError(
            f"diagnose: mask is {given}, x {f'a list of {batches}' if listed else 'one batch'}; give one for each"
        )
    return masks


def _traced(model: nn.Module, examples: Sequence[Any], **kinds: bool) -> UnitMap:
    """The model's units, traced from a few examples, because tracing stores more per example than a forward does.

    Where the first few entries are no valid input (one image of more than 8 channels, without a batch axis), all of it is traced.
    """
    few = [first(FEW, example) for example in examples]
    try:
        try:
            return trace(model, few, trial=False, **kinds)
        except RuntimeError:
            return trace(model, list(examples), trial=False, **kinds)
    except (RuntimeError, ValueError) as error:
        if len(examples) > 1:
            error.add_note(
                "diagnose takes each entry of a list as a batch; inputs and targets are diagnose(model, x, y, ...)"
            )
        error.add_note(
            f"diagnose traces the first {FEW} examples of x; give groups=pliant.trace(model, ...) to choose others"
        )
        raise
