"""The friction between body and floor, and when it changes.

    f[n] = low (high / low)^u[n],   u[n] uniform in [0, 1),   n = floor(steps / period)

    f  sliding friction     n  number of the change; f[0] holds from the first step     steps  environment steps of the agent

A body gets its new friction when its next episode begins. Every friction is computed from the seed and `n` alone, so methods
with the same seed meet the same frictions, wherever a run was interrupted. The seed is the agent's, or the schedule's own.

Source: Dohare et al., Nature 632 (2024), slippery ant: frictions log-uniform in [0.02, 2], a change at the first end of an
episode after every 2 million steps. One departure: the released code counts the period from the last change, which comes up
to an episode late; here change n belongs to step n * period, so that all copies of one agent change together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from pliant.base.choices import shortened
from pliant.rl.environments.counts import is_count
from pliant.streams import stream_key, uniform

LARGEST = 10.0  # above it a foot never slips


@dataclass(frozen=True)
class FrictionSchedule:
    """A sequence of frictions per seed, or one for all. Raises ValueError for a friction outside (0, 10], a period below 1.

    >>> schedule = FrictionSchedule(period=100_000)
    >>> schedule.number(99_999), schedule.number(100_000)
    (0, 1)
    >>> 0.02 <= schedule.value(seed=3, number=1) <= 2.0
    True
    """

    low: float = 0.02
    high: float = 2.0
    period: int = 2_000_000  # environment steps of an agent, all its copies together
    seed: int | None = None  # of all agents' frictions; None: each has those of its own seed

    def __post_init__(self) -> None:
        check_friction(self.low)
        check_friction(self.high)
        if self.low > self.high:
            raise ValueError(f"frictions from {self.low} to {self.high}: the lowest comes first")
        if not is_count(self.period):
            raise ValueError(
                f"period={shortened(repr(self.period))}: friction changes after 1 or more whole environment steps"
            )
        if self.seed is not None and not is_count(self.seed, least=0):
            raise ValueError(f"seed={shortened(repr(self.seed))}: a whole number, 0 or more, or None")

    def __repr__(self) -> str:
        """Saved states hold this text. Without a seed it is that of versions in which a schedule had none."""
        seed = "" if self.seed is None else f", seed={self.seed!r}"
        return f"FrictionSchedule(low={self.low!r}, high={self.high!r}, period={self.period!r}{seed})"

    def number(self, steps: int) -> int:
        """How many changes were due by the time the agent had taken `steps` steps."""
        return steps // self.period

    def value(self, seed: int, number: int) -> float:
        """The friction that change `number` brings an agent of that seed."""
        u = float(uniform(stream_key(seed if self.seed is None else self.seed, "friction"), number, 1)[0])
        return self.low * (self.high / self.low) ** u


def check_friction(friction: float) -> None:
    """Raise ValueError for a friction outside (0, 10]."""
    if not isinstance(friction, Real) or isinstance(friction, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"friction={shortened(repr(friction))}: sliding friction is a number in (0, {LARGEST:g}]")
    if not (math.isfinite(friction) and 0.0 < friction <= LARGEST):
        raise ValueError(f"friction={friction}: sliding friction lies in (0, {LARGEST:g}]; that of the ant's XML is 1")
