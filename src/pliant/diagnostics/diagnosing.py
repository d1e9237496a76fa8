"""All measures of this package on the hidden units of a model: one row per group of the unit map.

units      traced from `x`, or given: the same as those that a reset method replaces
activity   recorded at the same taps, behind activation, pooling and dropout, as the input of the next weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import called_with, flag, is_a, number, shown
from pliant.diagnostics.diagnosis import Diagnosis
from pliant.diagnostics.measuring import measured
from pliant.diagnostics.watch import watch
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.forwards import Mask, check_mask
from pliant.units.groups import UnitGroup
from pliant.units.map import UnitMap
from pliant.units.models import check_examples, checked, first
from pliant.units.trace import trace

FEW = 8  # examples that are enough to trace


@torch.inference_mode(False)
def diagnose(
    model: nn.Module,
    x: Any,
    *,
    groups: Sequence[UnitGroup] | UnitMap | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    tau: float = 0.025,
    residual: bool = False,
    heads: bool = False,
    mask: Tensor | Sequence[Tensor] | Mask | None = None,
) -> Diagnosis:
    """Dead, dormant, saturated and linearized units, ranks, sizes of weights and gradients: one row per group of hidden units.

    The model runs one forward on `x`, in the mode that it is in. In training mode batch norms use the batch, and dropout is
    active, which raises ranks and hides saturation: call `model.eval()` first to measure the model as it predicts. Everything is
    afterwards as it was, to the bit: parameters, gradients, buffers, modes, hooks and the random state; attached methods do not
    record this forward. All recorded activity is held in memory at once, examples x positions x units numbers per group. Under
    `torch.no_grad` and `torch.inference_mode`, and with inputs made under them, the result is the same.

    Args:
        model: any network whose units can be traced.
        x: a tensor (the one argument of the forward), a tuple (its arguments), a mapping (its keyword arguments), or a list of
            those, which count as one batch. As many examples as a layer has units, or n caps its ranks.
        groups: the units, such as `method.plan` or `chain_groups(model)`; without them, the model is traced on the first 8
            examples.
        loss: of the model's output, for gradients: `lambda output: cross_entropy(output, labels)`. Without it gradients are
            those in `.grad`, if any.
        tau: at most this share of its layer's mean |activity| makes a unit dormant by ReDo's measure.
        residual, heads: also these kinds of units, see `pliant.trace`.
        mask: which positions of `x` are real, where some are padding or special tokens: a tensor (batch, positions), True or 1
            where real, a list of them if `x` is one, or as a method takes it, the name of an argument of the forward or a
            function of all its arguments. Every measure of activity is then over real positions, and `n` counts them; where an
            example has one row (behind a pool) it counts if any of its positions is real. See `pliant.units.forwards`.

    Raises `ValueError` where no unit is found, a group does not fit the model, `loss` comes with a list or is not one number,
    `x` is an empty list, or the mask does not fit.

    >>> diagnosis = diagnose(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(4, 3))
    >>> [(row.group, row.activation, row.units, row.n, row.srank) for row in diagnosis.rows]
    [('0', 'relu', 8, 4, 1.0)]
    """
    examples = cast(list[Any], x) if isinstance(x, list) else [x]
    if not examples:
        raise ValueError("diagnose: x is an empty list; give at least one batch")
    check_examples("x", x)
    if loss is not None and len(examples) > 1:
        raise ValueError("diagnose: loss=... is of one output; give x as one batch, not a list")
    if loss is not None:
        called_with("loss", loss, "the model's output")
    residual, heads, tau = flag("residual", residual), flag("heads", heads), number("tau", tau)
    if groups is not None and (residual or heads):
        raise ValueError(
            "diagnose: residual and heads are options of tracing; groups given by hand are used as they are"
        )
    check_mask(mask, examples[0])
    masks = _masks(mask, len(examples), isinstance(x, list))
    names = NamedModel(checked(model))
    if groups is None:
        units = _traced(model, examples, residual=residual, heads=heads)
    elif isinstance(groups, UnitMap):
        units = groups
    else:
        several = is_a(groups, Sequence) and not is_a(groups, str)
        if not several or not all(isinstance(group, UnitGroup) for group in cast(Sequence[Any], groups)):
            raise TypeError(
                "diagnose: groups are UnitGroups or a UnitMap; to choose some by name: trace(model, x).include(...)"
            )
        units = UnitMap([BoundGroup(spec, names).plan_row(hand_over=True) for spec in groups])
    if not units.rows:
        raise ValueError("diagnose: groups is empty; give some, or none at all to find them by tracing")
    bound = [BoundGroup(spec, names) for spec in units.groups]
    if mask is not None and any(group.spec.stacked for group in bound):
        raise ValueError("diagnose: mask is not for a stack of runs")
    record = watch(model, examples, dict.fromkeys(tap for group in bound for tap in group.spec.taps), loss, masks)
    with torch.no_grad():
        rows = [row for group in bound for row in measured(group, record, tau)]
    modes = {module.training for module in model.modules()}
    mode = "mixed" if len(modes) > 1 else "training" if True in modes else "evaluation"
    return Diagnosis(rows, units, mode, tau)


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
        error.add_note(
            f"diagnose traces the first {FEW} examples of x; give groups=pliant.trace(model, ...) to choose others"
        )
        raise
