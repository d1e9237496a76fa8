"""What an experiment promises, held to it before anything is committed: a study that breaks it is wrong, or never ends.

statuses()       a RunStatus for each config, in their order; who is done, or has diverged, stays so
steps_done       never falls, rises within `PATIENCE` advances, and not above steps_total while a run goes on
state_dict()     a mapping, from which `load_state_dict` brings back statuses and steps_done
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pliant.lab.experiment import RunStatus, State

PATIENCE = 100  # advances in which steps_done may stay: an experiment may count in tasks, and advance by less
_STATE = ("steps_done", "steps_total", "statuses", "state_dict", "load_state_dict")
_WORDS = ("running", "done", "diverged")


class Promises:
    """A job's state, and what it said last. Raises `ValueError` where a promise is broken.

    Args:
        state: what `start` gave.
        runs: how many configs the job has.
        stored: the statuses and steps_done that are on record, where the state was brought back from there.
    """

    def __init__(self, state: object, runs: int, stored: tuple[Sequence[RunStatus], int] | None = None) -> None:
        missing = [name for name in _STATE if not hasattr(state, name)]
        if missing:
            raise ValueError(f"start() gave a {type(state).__name__}, which lacks {', '.join(missing)}")
        self.state, self.runs = cast(State, state), runs
        self.statuses, self.steps = self._statuses(), self._steps()
        self._stays = 0  # advances since steps_done rose
        if stored is not None:
            self._check_brought_back(*stored)

    @property
    def goes_on(self) -> bool:
        """Whether a run does."""
        return any(status.word == "running" for status in self.statuses)

    def check_advance(self) -> Mapping[str, Any]:
        """Hold the state to its promises after an advance; what is to be stored of it."""
        before, (done_before, _) = self.statuses, self.steps
        self.statuses, self.steps = self._statuses(), self._steps()
        _check_ends("statuses() of an advance", before, self.statuses)
        (done, total) = self.steps
        if done < done_before:
            raise ValueError(f"steps_done fell from {done_before:,} to {done:,} in an advance")
        self._stays = self._stays + 1 if done == done_before else 0
        if self.goes_on and self._stays >= PATIENCE:
            raise ValueError(
                f"steps_done stayed at {done:,} of {total:,} in {PATIENCE} advances, and a run goes on: for ever?"
            )
        if self.goes_on and done > total:
            raise ValueError(f"steps_done is {done:,} of {total:,}, and statuses() says that a run goes on: for ever?")
        stored: Any = self.state.state_dict()
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"state_dict() gave a {type(stored).__name__}: it gives a mapping, from which a run goes on"
            )
        return cast(Mapping[str, Any], stored)

    def _check_brought_back(self, statuses: Sequence[RunStatus], done: int) -> None:
        _check_ends("statuses() after load_state_dict()", statuses, self.statuses)
        if self.steps[0] != done:
            raise ValueError(
                f"steps_done is {self.steps[0]:,} after load_state_dict(), and was {done:,} when state_dict() was stored: "
                "what the next advance depends on is not in both"
            )

    def _statuses(self) -> list[RunStatus]:
        given: Any = self.state.statuses()
        statuses: list[Any] = list(cast(Iterable[Any], given)) if isinstance(given, Iterable) else []
        if len(statuses) != self.runs or not all(isinstance(each, RunStatus) for each in statuses):
            raise ValueError(
                f"statuses() gave {given!r:.60} for {self.runs} runs: it gives one of pliant.lab's RUNNING, DONE and "
                "diverged(step) for each, in their order"
            )
        for status in cast(list[RunStatus], statuses):
            if status.word not in _WORDS or isinstance(status.step, int) != (status.word == "diverged"):
                raise ValueError(
                    f"statuses() gave {status!r}: a status is RUNNING, DONE or diverged(step) of pliant.lab"
                )
        return statuses

    def _steps(self) -> tuple[int, int]:
        steps: tuple[Any, Any] = self.state.steps_done, self.state.steps_total
        try:
            return int(steps[0]), int(steps[1])
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"steps_done and steps_total are {steps!r:.60}: they are whole numbers") from None


def _check_ends(what: str, before: Sequence[RunStatus], now: Sequence[RunStatus]) -> None:
    """Raise `ValueError` where a run that had ended goes on, or ended otherwise."""
    for run, (old, new) in enumerate(zip(before, now, strict=True)):
        if old.word != "running" and old != new:
            raise ValueError(f"{what}: run {run} was {_in_words(old)} and is {_in_words(new)}")


def _in_words(status: RunStatus) -> str:
    return status.word if status.step is None else f"{status.word} at step {status.step:,}"
