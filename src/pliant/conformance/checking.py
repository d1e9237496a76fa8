"""The table of checks, and what runs it."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from pliant.base.choices import shortened
from pliant.conformance import networks, optimizers, rate, selection, training, weights
from pliant.conformance.adapter import UnitResetAdapter
from pliant.conformance.ours import adapter_of
from pliant.conformance.outcomes import Failed, NotApplicable
from pliant.conformance.report import Report, Result


@dataclass(frozen=True)
class Check:
    """One check. `needs`: "utility" (the least useful unit goes), "rate" (units go at a rate), "means" (they are handed over)."""

    run: Callable[[type[UnitResetAdapter]], None]
    needs: str | None = None

    @property
    def name(self) -> str:
        return self.run.__name__.replace("_", "-")

    @property
    def family(self) -> str:
        return self.run.__module__.rpartition(".")[2]

    @property
    def specification(self) -> str:
        """What must hold: the first paragraph of its docstring."""
        return " ".join((self.run.__doc__ or "").split("\n\n")[0].split())


CHECKS = (
    Check(selection.least_useful, "utility"),
    Check(selection.silent_first, "utility"),
    Check(selection.ties, "utility"),
    Check(selection.decay_rate, "utility"),
    Check(selection.bias_correction, "utility"),
    Check(selection.utility_starts_over, "utility"),
    Check(selection.maturity, "rate"),
    Check(rate.fractions, "rate"),
    Check(rate.rate_zero, "rate"),
    Check(weights.incoming),
    Check(weights.outgoing),
    Check(weights.others),
    Check(weights.hand_over, "means"),
    Check(weights.output_layer),
    Check(weights.norm),
    Check(optimizers.state),
    Check(optimizers.state_by_parameter),
    Check(optimizers.fresh_units_learn),
    Check(optimizers.hooks),
    Check(networks.no_bias),
    Check(networks.branches),
    Check(networks.convolution),
    Check(networks.tokens),
    Check(networks.smaller_batch),
    Check(training.copies),
    Check(training.saved_once),
    Check(training.seed),
    Check(training.global_random_state),
    Check(training.resume),
)


def check(adapter: Any) -> Report:
    """Run all checks on an implementation of a unit reset.

    Args:
        adapter: a class derived from `UnitResetAdapter`, or one of this library's methods: ContinualBackprop, RandomReplacement,
            ReDo, GraMa, SelfNormalizedResets.

    Random states of torch, NumPy and Python are afterwards as before. Raises `TypeError` for anything else than an adapter; what
    the implementation raises is a failed check.
    """
    kind = adapter_of(adapter)
    return Report(kind.__name__, [result_of(each, kind) for each in CHECKS])


def result_of(one: Check, kind: type[UnitResetAdapter]) -> Result:
    """Of one check."""
    lacks = _lacks(kind, one.needs)
    if lacks is not None:
        return Result(one.family, one.name, one.specification, "not applicable", reason=lacks)
    with _random_states_kept():
        try:
            one.run(kind)
        except NotApplicable as why:
            return Result(one.family, one.name, one.specification, "not applicable", reason=str(why))
        except Failed as why:
            return Result(one.family, one.name, one.specification, "failed", expected=why.expected, found=why.found)
        except Exception as error:
            found = f"{type(error).__name__}: {shortened(error, 300)}"
            return Result(one.family, one.name, one.specification, "failed", expected="no error", found=found)
    return Result(one.family, one.name, one.specification, "passed")


def _lacks(kind: type[UnitResetAdapter], needs: str | None) -> str | None:
    if needs == "utility" and kind.selection != "least useful":
        return f"units are chosen {'by chance' if kind.selection == 'random' else 'by a threshold'}"
    if needs == "rate" and kind.selection == "threshold":
        return "units are chosen by a threshold, at no rate"
    if needs == "means" and not kind.hands_over:
        return "mean contributions are not handed over"
    return None


@contextmanager
def _random_states_kept() -> Generator[None]:
    of_numpy, of_python = numpy.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        finally:
            numpy.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)
