"""What makes a class an estimator of scikit-learn and a model of River, where they are installed; or stands in for it.

Importing scikit-learn takes a second, so `pliant.online` imports this when an estimator is first named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from pliant.base.choices import did_you_mean

Model = TypeVar("Model", bound=type)
Arguments = ParamSpec("Arguments")


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


def refusing_others(init: Callable[Concatenate[Any, Arguments], None]) -> Callable[Concatenate[Any, Arguments], None]:
    """An `__init__` that tells of arguments that it does not take by the name of the class, with the nearest that it does."""
    signature = inspect.signature(init)

    @wraps(init)
    def checked(self: Any, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        _, *known = signature.parameters
        unknown = next((name for name in kwargs if name not in known), None)
        name = type(self).__name__
        if unknown is not None:
            raise TypeError(
                f"{name} has no argument {unknown!r}{did_you_mean(unknown, known)}; it has {', '.join(known)}"
            )
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; {known[0]} is its only argument that needs no name") from None
        init(self, *args, **kwargs)

    return checked


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


__all__ = [
    "ClassifierMixin",
    "ColumnVectorWarning",
    "Estimator",
    "NotFittedError",
    "RegressorMixin",
    "refusing_others",
    "river_model",
]
