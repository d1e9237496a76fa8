"""How long a test waits for another process. Long enough for any machine: it is what a fault costs, and gates nothing else."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds


def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
