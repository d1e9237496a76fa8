"""What to try first: of what was tried on copies, what helped most; and what the probe says about causes that are none of units.

reset optimizer      the optimizer's state holds the network back, not its weights
step size            it has decayed to less than a tenth of the first
continual backprop   tried at a rate of `TRIED_RATE`, as a probe is short; advised at a first setting for the whole run
shrink               once, toward a fresh draw: θ <- s θ + ½ ξ, s = ½ / growth of the weights, at most ½
data                 a fresh network does no better, or learns by heart only
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import nn

from pliant.diagnostics.diagnosis import Diagnosis
from pliant.diagnostics.health import FLAT_ENDS
from pliant.diagnostics.probe import Comparison, Probe
from pliant.diagnostics.probe.settings import STEPS
from pliant.doctor.settings import Setting
from pliant.methods import ContinualBackprop, ShrinkAndPerturb

log = logging.getLogger("pliant")

BACKPROP, SHRINK = "continual backprop", "shrink"
TRIED_RATE, TRIED_MATURITY = 0.02, 20
HELPS = 0.9  # times the area without
DECAYED = 0.1

Treatment = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Advice:
    """One thing to do. `line` is Python to paste, where there is such; `tried` compares the network after it to that without."""

    title: str
    why: str
    line: str = ""
    tried: Comparison | None = None


def shrinking(diagnosis: Diagnosis | None) -> float:
    """s: half of what brings the weights back to their size in a fresh network."""
    grown = [row.weight_growth for row in diagnosis.rows if row.weight_growth] if diagnosis is not None else []
    return float(f"{0.5 / max(1.0, median(grown) if grown else 1.0):.2g}")


def utility_for(diagnosis: Diagnosis | None) -> str:
    """Where activity is bounded, a saturated unit has the largest: there the utility that counts what varies alone."""
    bounded = diagnosis is not None and any(row.activation in FLAT_ENDS for row in diagnosis.rows)
    return "adaptable_contribution" if bounded else "contribution"


def treatments(example: Any, shrink: float, utility: str) -> dict[str, Treatment]:
    """What is tried on copies."""

    def replace(network: nn.Module, optimizer: Any) -> Any:
        with _unsaid():
            return ContinualBackprop(
                network,
                optimizer,
                example_inputs=example,
                replacement_rate=TRIED_RATE,
                maturity_threshold=TRIED_MATURITY,
                utility=utility,
                trial=False,
            )

    def shrink_once(network: nn.Module, optimizer: Any) -> None:
        ShrinkAndPerturb(network, shrink=shrink, noise_std=0.5, source="init", period=None, seed=0).apply()

    return {BACKPROP: replace, SHRINK: shrink_once}


def starts_by_resets(network: nn.Module, optimizer: Any, example: Any) -> bool:
    """Whether weights of a fresh network have the scale of their layers' own resets; True where no unit is found."""
    with _unsaid():
        try:
            method = ContinualBackprop(network, optimizer, example_inputs=example, trial=False)
        except (ValueError, RuntimeError, TypeError):
            return True
    method.detach()
    return not method.redraw.notes


@contextmanager
def _unsaid() -> Generator[None]:
    """What a method logs when it is attached to a copy, again and again, is nobody's news."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def advice_of(
    probe: Probe, setting: Setting, shrink: float, utility: str, untried: Mapping[str, str], *, by_resets: bool
) -> list[Advice]:
    """What to try, the first first. `untried`: what could not be tried, and why. `by_resets`: see `starts_by_resets`."""
    task, found = probe.primary, list[Advice]()
    if task.state is not None and task.state.answer == "yes":
        found.append(Advice("reset optimizer", task.state.reason, "pliant.reset_optimizer(optimizer)", task.state))
    now, first = probe.step_size_now, probe.step_size_first
    if now < DECAYED * first:
        why = f"it has decayed from {first:.3g} to {now:.3g}; with the first one the network learns as the probe shows"
        line = f'for group in optimizer.param_groups:\n    group["lr"] = {first:.3g}  # and give the schedule a floor'
        found.append(Advice("step size", why, line))
    if probe.verdict == "yes":
        helpful = [name for name, each in task.treatments.items() if each.ratio < HELPS]
        helpful.sort(key=lambda name: task.treatments[name].ratio)
        rest = [name for name in (BACKPROP, SHRINK) if name not in helpful]
        found += [
            _treatment(name, setting, shrink, utility, task.treatments.get(name), untried, by_resets=by_resets)
            for name in (*helpful, *rest)
        ]
    elif not task.fresh_learns and probe.steps < STEPS:
        found.append(Advice("a longer probe", _SHORT.format(probe.steps)))
    elif task.by_heart:
        found.append(Advice("data", _BY_HEART))
    elif not task.fresh_learns:
        found.append(Advice("data", _NOT_LEARNED))
    elif probe.verdict == "no" and not found:
        found.append(Advice("task", _NO_BETTER))
    elif not found:
        found.append(Advice("a longer probe", f"{probe.reason}; more seeds= or a larger budget= narrow it"))
    return found


_SHORT = "a fresh network does not learn this task in {} steps, to which the budget cut the runs: give a larger budget="
_BY_HEART = (
    "a fresh network learns these examples by heart, and nothing that holds for others: are the labels right, do inputs and "
    "targets belong together, are there enough of them?"
)
_NOT_LEARNED = (
    "a fresh network does not learn this task either: are the labels right, and the step size, the loss, the capacity?"
)
_NO_BETTER = (
    "a fresh network does no better here: if the loss falls more slowly than it did, the task has become harder, noisier or has "
    "fewer examples, or the step size or the capacity does not fit it"
)


_LASTS = {
    BACKPROP: "it goes on for as long as it is attached, and may follow the other",
    SHRINK: "once, it wears off: attach continual backprop behind it",
}


def _treatment(
    name: str,
    setting: Setting,
    shrink: float,
    utility: str,
    tried: Comparison | None,
    untried: Mapping[str, str],
    *,
    by_resets: bool,
) -> Advice:
    if name == BACKPROP:
        rate, maturity = setting.replacement_rate, setting.maturity_threshold
        line = (
            f"cbp = pliant.ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate={rate:g}, "
            f"maturity_threshold={maturity}{'' if utility == 'contribution' else f', utility={utility!r}'}"
            f"{', init=' + repr('reset') if by_resets else ''})"
        )
        how = (
            f"the rate is for {setting.steps:,} steps to come (steps_to_come=, --steps); tried at {TRIED_RATE:g}, as the probe "
            f"is short: "
        )
        if not by_resets:
            how = (
                f"a fresh network does not start at the scale of its layers' resets: say with init= how it does; {how}"
            )
    else:
        line = (
            f'pliant.ShrinkAndPerturb(model, shrink={shrink:g}, noise_std=0.5, source="init", period=None).apply()  # once\n'
            f"pliant.reset_optimizer(optimizer)"
        )
        how = "tried: "
    if tried is None:
        return Advice(name, f"not tried here: {untried.get(name, 'no treatment was asked for')}", line)
    effect = "helps" if tried.ratio < HELPS else "does not help within the probe"
    return Advice(name, f"{how}{effect}, {tried.interval} times the area without; {_LASTS[name]}", line, tried)
