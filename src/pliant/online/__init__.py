"""Learners that see one example at a time, compiled with Numba.

`OnlineClassifier` and `OnlineRegressor` are loaded when first named, and with them scikit-learn and River, where installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pliant.online.ensemble import OnlineEnsemble, Progress
from pliant.online.fresh import fresh_weights
from pliant.online.mlp import OnlineMLP

if TYPE_CHECKING:
    from pliant.online.classifier import OnlineClassifier
    from pliant.online.regressor import OnlineRegressor

__all__ = ["OnlineClassifier", "OnlineEnsemble", "OnlineMLP", "OnlineRegressor", "Progress", "fresh_weights"]

_ESTIMATORS = {"OnlineClassifier": "pliant.online.classifier", "OnlineRegressor": "pliant.online.regressor"}


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    raise AttributeError(f"module 'pliant.online' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_ESTIMATORS]
