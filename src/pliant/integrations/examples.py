"""What one forward of a network takes, out of a batch of a training loop.

(x, y)              forward(x) takes the first, forward(x, lengths) the first two, and so on
{"x": ..., ...}     the entries that forward takes, by their names
anything else       forward takes it as it is
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import called_with

Example = Callable[[Any], Any] | Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_example(example: Example) -> Example:
    """`example_inputs=` of an adapter: an example, or a function of a batch. Raises `TypeError` for another function."""
    return called_with("example_inputs", example, "batch") if is_function(example) else example


def is_function(example: Example) -> bool:
    """Whether it is a function of a batch."""
    return callable(example)


def example_for(given: Example, batch: Callable[[], Any], network: nn.Module, device: torch.device) -> Any:
    """What was given, or what the function that was given or `example_of` takes out of a batch, on `device`."""
    if given is None:
        return moved(example_of(batch(), network), device)
    return moved(given(batch()) if is_function(given) else given, device)


def moved(example: Any, device: torch.device) -> Any:
    """The same with its tensors on `device`.

    >>> moved({"x": (torch.ones(1), 3)}, torch.device("meta"))
    {'x': (tensor(..., device='meta', size=(1,)), 3)}
    """
    if isinstance(example, Mapping):
        return {name: moved(each, device) for name, each in cast(Mapping[str, Any], example).items()}
    if type(example) in (list, tuple):
        return type(example)(moved(each, device) for each in example)
    return example.to(device) if isinstance(example, Tensor) else example


def example_of(batch: Any, network: nn.Module) -> Any:
    """`example_inputs` for `network`, out of `batch`. Raises `ValueError` where the batch holds none.

    >>> example_of([1, 2], nn.Linear(3, 1)), example_of({"input": 1, "label": 2}, nn.Linear(3, 1))
    ((1,), {'input': 1})
    """
    takes = inspect.signature(network.forward).parameters.values()
    if isinstance(batch, Mapping):
        return _by_name(cast(Mapping[str, Any], batch), list(takes), type(network).__name__)
    required = [each for each in takes if each.kind in _POSITIONAL and each.default is each.empty]
    if isinstance(batch, tuple | list):
        held = tuple(cast(tuple[Any, ...], batch))
        if len(held) < len(required):
            raise ValueError(_said(type(network).__name__, f"takes {len(required)} arguments", f"holds {len(held)}"))
        return held[: max(1, len(required))]
    return (batch,)


@contextmanager
def of_first_batch(given: Example) -> Generator[None]:
    """What is raised inside on the example is told where that came from, if none was given."""
    try:
        yield
    except Exception as error:
        if given is None and "example inputs" in str(error):
            error.add_note(f"The example inputs are what forward takes of the first batch. {_OTHERWISE}")
        raise


def _by_name(batch: Mapping[str, Any], takes: list[inspect.Parameter], network: str) -> Any:
    if any(each.kind is each.VAR_KEYWORD for each in takes):
        return dict(batch)
    names = {each.name for each in takes}
    required = [each.name for each in takes if each.default is each.empty and each.kind is not each.VAR_POSITIONAL]
    missing = [name for name in required if name not in batch]
    if missing and len(required) == 1 and not names & batch.keys():
        return (batch,)  # forward(batch)
    if missing:
        raise ValueError(_said(network, f"takes '{missing[0]}'", f"holds {', '.join(map(repr, batch))}"))
    return {name: value for name, value in batch.items() if name in names}


def _said(network: str, takes: str, holds: str) -> str:
    return f"the forward of {network} {takes}, and the first batch {holds}. {_OTHERWISE}"


_OTHERWISE = "Say what it is run on with example_inputs=..., an example or a function of the batch"
