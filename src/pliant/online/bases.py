"""What makes a class an estimator of scikit-learn and a model of River, where they are installed; or stands in for it.

Importing scikit-learn takes a second, so `pliant.online` imports this when an estimator is first named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, TypeVar

Model = TypeVar("Model", bound=type)


class Parameters:
    """`get_params` and `set_params` of scikit-learn, for estimators without nested ones."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the estimator, by name; `deep` is for compatibility: none of them is an estimator."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments. Raises `ValueError` for an unknown one."""
        known = list(self.get_params())
        for name in params:
            if name not in known:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {known}.")
        for name, value in params.items():
            setattr(self, name, value)
        return self


class NotFitted(ValueError, AttributeError):
    """A prediction was asked of an estimator that has learned nothing."""


class Nothing:
    """In place of a class of a library that is not installed."""


if TYPE_CHECKING:  # what scikit-learn adds is its own to describe
    ClassifierMixin = RegressorMixin = Nothing
    Estimator, NotFittedError, ColumnVectorWarning = Parameters, NotFitted, UserWarning
else:
    try:
        from sklearn.base import BaseEstimator as Estimator
        from sklearn.base import ClassifierMixin, RegressorMixin
        from sklearn.exceptions import DataConversionWarning as ColumnVectorWarning
        from sklearn.exceptions import NotFittedError
    except ImportError:
        Estimator, NotFittedError, ColumnVectorWarning = Parameters, NotFitted, UserWarning
        ClassifierMixin, RegressorMixin = (type(name, (Nothing,), {}) for name in ("ClassifierMixin", "RegressorMixin"))


def river_model(name: str) -> Callable[[Model], Model]:
    """Makes a class a model of River: an instance of its `river.base` class of this name, with that class's methods.

    It does not inherit from it: River's classes have a method `_more_tags`, and scikit-learn 1.6 and later refuses an estimator
    with a base class that has one.
    """

    def register(model: Model) -> Model:
        try:
            river = getattr(import_module("river.base"), name)
        except ImportError:
            return model
        river.register(model)
        bases: list[type] = list(river.__mro__[:-1])
        for base in bases:
            for method, value in vars(base).items():
                wanted = method in ("__or__", "__ror__") or not method.startswith(("__", "_abc", "_more_tags"))
                if wanted and not hasattr(model, method):
                    setattr(model, method, value)
        return model

    return register


__all__ = ["ClassifierMixin", "ColumnVectorWarning", "Estimator", "NotFittedError", "RegressorMixin", "river_model"]
