"""The laboratory: what every experiment shares, and none of any experiment.

An experiment is a class with the eight names of `Experiment`. The laboratory runs it over methods
and seeds, stores its rows, goes on after any kill as if nothing had happened, and draws its figure.
"""

from pliant.lab.errors import LabError
from pliant.lab.experiment import (
    DONE,
    RUNNING,
    Context,
    Experiment,
    Rows,
    RunConfig,
    RunStatus,
    State,
    check_method,
    check_owners,
    diverged,
    shared_config,
)

__all__ = [
    "DONE",
    "RUNNING",
    "Context",
    "Experiment",
    "LabError",
    "Rows",
    "RunConfig",
    "RunStatus",
    "State",
    "check_method",
    "check_owners",
    "diverged",
    "shared_config",
]
