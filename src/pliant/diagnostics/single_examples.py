"""Examples given one by one: a dataset, or a list of rows. They are put into batches as a DataLoader would.

A list is one of batches, as a rule: `[(a, b), ...]` are arguments of forwards. It is one of single examples where

    mappings   hold no tensor with an axis, or a label that is one number (rows of Hugging Face)
    tuples     are no arguments of the forward, and end in one number: `[(x, 3), ...]`
    tensors    come with as many targets: a tensor of them, or a list of numbers
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data
from torch.utils.data import DataLoader, Dataset

from pliant.base.arguments import is_a
from pliant.base.choices import shortened
from pliant.units.models import tensors_in, unwrapped

LABELS = ("labels", "label")  # of a mapping, in the words of Hugging Face


def loader_of(model: nn.Module, x: Any, y: Any, count: int) -> DataLoader[Any] | None:
    """A loader of batches of `count` of the examples in `x` and `y`; None where these are batches already.

    Raises `ValueError` for targets beside a dataset. The loader raises it for examples that make no batch.
    """
    if _is_dataset(x):
        if y is not None:
            raise ValueError("y is in the examples (x, y) of a dataset: leave it out")
        rows = x
    elif isinstance(x, list) and x and _is_single(model, cast(list[Any], x), y):
        rows = cast(Any, x if y is None else list(zip(cast(list[Any], x), y, strict=True)))
    else:
        return None
    return DataLoader(rows, batch_size=count, collate_fn=_collated_for(model))


def _is_dataset(x: Any) -> bool:
    if is_a(x, (Tensor, list, tuple, Mapping, str, nn.Module)) or hasattr(x, "shape") or hasattr(x, "batch_size"):
        return False
    return is_a(x, Dataset) or (hasattr(x, "__getitem__") and hasattr(x, "__len__"))


def _is_single(model: nn.Module, x: list[Any], y: Any) -> bool:
    first = x[0]
    if isinstance(first, Tensor) and y is not None and len(x) > 1:
        numbers = isinstance(y, list) and all(map(_is_number, cast(list[Any], y)))
        several = y.dim() > 0 if isinstance(y, Tensor) else numbers
        return several and len(cast(Sequence[Any], y)) == len(x)
    if y is not None:
        return False
    if isinstance(first, Mapping):
        row = cast(Mapping[str, Any], first)
        return not any(each.dim() for each in tensors_in(row)) or any(_is_number(row.get(name)) for name in LABELS)
    if isinstance(first, tuple | list) and first:
        row = cast(Sequence[Any], first)
        return _is_number(row[-1]) and not takes(model, row)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or (isinstance(value, Tensor | np.ndarray) and not value.ndim)


def takes(model: nn.Module, arguments: Sequence[Any]) -> bool:
    """Whether these can be the arguments of the forward; True where it does not say."""
    try:
        inspect.signature(unwrapped(model).forward).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def names_taken(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those that the forward takes as keywords."""
    parameters = inspect.signature(unwrapped(model).forward).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return list(names)
    return [name for name in names if name in parameters]


def _collated_for(model: nn.Module) -> Callable[[list[Any]], Any]:
    def collated(rows: list[Any]) -> Any:
        try:
            return cast(Any, data).default_collate([_tensors(model, row) for row in rows])
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"x holds single examples that make no batch ({shortened(error, 120)}): give a DataLoader whose collate_fn makes "
                f"one of them, by padding for instance"
            ) from None

    return collated


def _tensors(model: nn.Module, row: Any) -> Any:
    """The row, with tensors for numbers; of a mapping what the forward takes, "labels" for "label", and no text."""
    if isinstance(row, Mapping):
        of_row = dict(cast(Mapping[str, Any], row))
        if "label" in of_row and not names_taken(model, ["label"]) and names_taken(model, ["labels"]):
            of_row["labels"] = of_row.pop("label")
        taken = names_taken(model, list(of_row)) or list(of_row)
        return {name: torch.as_tensor(of_row[name]) for name in taken if not is_a(of_row[name], str)}
    if isinstance(row, tuple | list):
        return tuple(torch.as_tensor(each) for each in cast(Sequence[Any], row))
    return torch.as_tensor(row)
