"""`examine`: diagnose beside a fresh network, probe with treatments, and say what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pliant.base.arguments import flag, is_a, listed, whole
from pliant.base.choices import shortened
from pliant.diagnostics import diagnose
from pliant.diagnostics.diagnosis import Diagnosis
from pliant.diagnostics.fresh import Fresh
from pliant.diagnostics.probe.optimizers import Maker
from pliant.diagnostics.probe.probing import Prepared, probed
from pliant.diagnostics.probe.settings import Settings, Tell, budget_of, teller
from pliant.diagnostics.probe.tasks import Loss, Tasks
from pliant.doctor.advice import Treatment, advice_of, shrinking, starts_by_resets, treatments, utility_for
from pliant.doctor.examination import Examination
from pliant.doctor.findings import findings_of
from pliant.doctor.settings import first_setting
from pliant.units.models import first


def examine(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | Maker,
    loss: Loss | None = None,
    fresh: Fresh | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    budget: int | str | None = None,
    seeds: int = 5,
    steps_to_come: int = 100_000,
    try_treatments: bool = True,
    progress: bool | Tell | None = None,
) -> Examination:
    """Is it plasticity, in which layers does something differ, and what to try first?

    `pliant.diagnose` beside a fresh network, `pliant.probe_plasticity` with continual backpropagation and shrink and perturb
    tried on copies, and what follows from both. The model, its optimizer and all random states are afterwards as before.

    Args:
        model, x, y, optimizer, loss, fresh, checkpoints, seeds, progress: as for `pliant.probe_plasticity`.
        budget: of the probe, in optimizer steps or as a time ("5min"); the diagnosis comes beside it, one forward.
        steps_to_come: optimizer steps that the training has before it, from which the first setting follows.
        try_treatments: whether to try them, which takes about half as long again as the probe alone.

    Raises what `pliant.probe_plasticity` raises.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
    >>> _ = nn.init.constant_(model[0].bias, -100.0)  # no unit fires
    >>> make = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
    >>> examination = examine(model, x, y, optimizer=make, seeds=3, budget=2200, progress=False)
    >>> examination.verdict, examination.findings[0].says
    ('yes', '64 of 64 units dead (fresh: 0)')
    """
    steps_to_come, tried = whole("steps_to_come", steps_to_come, 1), flag("try_treatments", try_treatments)
    settings, limit, tell = Settings.checked(seeds, data=x), budget_of(budget), teller(progress)
    prepared = Prepared.of(model, x, y, optimizer, loss, fresh, settings.examples)
    diagnosis, notes = _diagnosed(prepared, optimizer)
    shrink, utility, example = shrinking(diagnosis), utility_for(diagnosis), first(8, prepared.data.inputs)
    usable, untried = _usable(treatments(example, shrink, utility) if tried else {}, prepared)
    probe = probed(prepared, settings, limit, perf_counter(), tell, checkpoints, usable)
    setting = first_setting(width=_width(diagnosis), batch_size=probe.batch_size, steps=steps_to_come)
    findings = [] if diagnosis is None else findings_of(diagnosis)
    network = prepared.fresh.draw(0)
    by_resets = starts_by_resets(network, prepared.optimizers.on(network, 1.0, state=False), example)
    advice = advice_of(probe, setting, shrink, utility, untried, by_resets=by_resets)
    return Examination(probe, diagnosis, findings, advice, notes)


def _diagnosed(prepared: Prepared, optimizer: Any) -> tuple[Diagnosis | None, list[str]]:
    """The diagnosis beside a fresh network; None, and why, where there are no units to measure."""
    data, given = prepared.data, dict[str, Any]()
    if data.has_targets:
        of = Tasks.loss_of(prepared.loss)

        def of_output(output: Any) -> Tensor:
            return of(output, None)

        given["loss"] = of_output if data.targets is None else of
        if _tries_a_step(optimizer):
            given["optimizer"] = optimizer
    try:
        return diagnose(prepared.root, data.inputs, data.targets, reference=lambda: prepared.fresh.draw(0), **given), []
    except (ValueError, RuntimeError, TypeError) as error:
        return None, [f"no layer was measured: {shortened(error, 200)}"]


def _tries_a_step(optimizer: Any) -> bool:
    """Whether there are optimizers whose next step can be tried."""
    several = [optimizer] if hasattr(optimizer, "param_groups") else listed(optimizer) or []
    return bool(several) and not any(is_a(each, LBFGS) for each in several)


def _usable(wanted: Mapping[str, Treatment], prepared: Prepared) -> tuple[dict[str, Treatment], dict[str, str]]:
    """Those that work on a fresh network, and why the others do not."""
    usable, untried = dict[str, Treatment](), dict[str, str]()
    for name, treatment in wanted.items():
        network = prepared.fresh.draw(0)
        stepped = prepared.optimizers.on(network, 1.0, state=False)
        try:
            made = treatment(network, stepped[0] if len(stepped) == 1 else stepped)
        except (ValueError, RuntimeError, TypeError) as error:
            untried[name] = shortened(error, 200)
            continue
        if hasattr(made, "detach"):
            made.detach()
        usable[name] = treatment
    return usable, untried


def _width(diagnosis: Diagnosis | None) -> int:
    """Of the narrowest layer."""
    return 1 if diagnosis is None else min(row.units for row in diagnosis.rows)
