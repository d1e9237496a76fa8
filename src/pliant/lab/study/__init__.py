"""What is to run: a study's plan and folder, settings, where an experiment is found, what runs are called."""

from pliant.base.deprecation import renamed

_BEFORE = (
    "Job",
    "Plan",
    "Study",
    "begun",
    "longer",
    "new_plan",
    "open_study",
    "with_data",
    "with_runs",
)  # this was a module
__getattr__ = renamed(__name__, {name: f"{__name__}.study.{name}" for name in _BEFORE})
