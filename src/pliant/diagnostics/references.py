"""The network that a diagnosis is read beside: as a rule a fresh copy, as the model's modules draw themselves.

A number alone says little: a rank of 60 is low in one layer and full in another, and what a fresh network of the same shape has
on the same inputs tells which. The copy is drawn by `pliant.engine.fresh_copy`; what code outside of the modules does to a new
network (a scale of its own, `model.apply(init)`) is known to whoever wrote it: give a function that builds one.

Batch norms that use running statistics would have those of no data in a fresh network: in the copy they are those of the
examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from pliant.base.arguments import called_with, is_a, shown
from pliant.base.choices import shortened
from pliant.base.process import other_random_states, random_state
from pliant.diagnostics.checkpoints import State, with_state
from pliant.engine.fresh_copy import FreshCopy
from pliant.units.models import arguments, checked, unwrapped

Reference = nn.Module | Callable[[], nn.Module] | State | Literal["fresh", False] | None

SEED = 0  # of the fresh copy


class Found(NamedTuple):
    """The reference, and what to call it; without one, why there is none, if one was hoped for."""

    network: nn.Module | None
    name: str
    note: str


def reference_of(model: nn.Module, reference: Reference, examples: Sequence[Any]) -> Found:
    """What to diagnose beside `model`. Raises `TypeError` or `ValueError` where something else was given."""
    if reference is None or reference is False:
        return Found(None, "", "")
    if is_a(reference, str) and reference == "fresh":
        return _fresh(model, examples)
    if is_a(reference, nn.Module):
        return Found(
            unwrapped(checked(cast(nn.Module, reference), "reference")), "reference", "reference: the model given"
        )
    if is_a(reference, (str, PathLike, Mapping)):
        return Found(with_state(model, cast(State, reference), "reference"), "reference", "reference: the state given")
    if not callable(reference):
        raise TypeError(
            f"reference must be 'fresh', a model, a function that builds one, a saved state or None, got {shown(reference)}"
        )
    if not isinstance(reference, type):
        called_with("reference", reference)
    with random_state(SEED), other_random_states():
        try:
            built = cast(Callable[[], Any], reference)()
        except Exception as error:
            error.add_note("diagnose: this is of reference=..., which is called without arguments to build a network")
            raise
    if not is_a(built, nn.Module):
        raise TypeError(f"reference() must build a model, it returned {shown(built)}")
    return Found(
        _like(model, unwrapped(checked(built, "reference()")), examples), "fresh", "fresh: as reference() built it"
    )


def _fresh(model: nn.Module, examples: Sequence[Any]) -> Found:
    devices = {each.device for each in model.parameters()}
    if len(devices) > 1:
        return Found(None, "", "no fresh network beside it: the model lies on several devices; give reference=...")
    try:
        drawn = FreshCopy(model).draw(SEED)
    except Exception as error:  # resets are anybody's code
        return Found(None, "", none_because(error))
    note = (
        "fresh: a new network beside it, drawn by the modules' own resets; another initialization: reference=a function"
    )
    return Found(_like(model, drawn, examples), "fresh", note)


def none_because(error: Exception) -> str:
    """The remark of a diagnosis that stands alone, although a fresh network was looked for."""
    return f"no fresh network beside it, give reference=a function that builds one: {shortened(error, 160)}"


def _like(model: nn.Module, new: nn.Module, examples: Sequence[Any]) -> nn.Module:
    """A new network where the model is, in its precision and its modes; its batch norms have seen the examples."""
    ours, theirs = (next(iter(each.parameters()), None) for each in (model, new))
    if ours is not None and theirs is not None:
        new.to(ours.device, ours.dtype if ours.dtype != theirs.dtype else None)
    modes = {name: module.training for name, module in _modules(unwrapped(model))}
    for name, module in _modules(new):
        module.training = modes.get(name, model.training)
    _calibrate(new, examples)
    return new


def _modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast(Iterable[tuple[str, nn.Module]], model.named_modules())


@torch.no_grad()
def _calibrate(new: nn.Module, examples: Sequence[Any]) -> None:
    """Running statistics of batch norms that are used, of these examples."""
    norms = [
        each
        for each in new.modules()
        if isinstance(each, _BatchNorm) and not each.training and each.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # the plain mean over batches
    try:
        with random_state(SEED), other_random_states():
            for example in examples:
                args, kwargs = arguments(example)
                new(*args, **kwargs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.training, norm.momentum = False, momentum
