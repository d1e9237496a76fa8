"""Losses that are given to an event: scalars that the model computed, with their graph."""

from __future__ import annotations

from torch import Tensor

from pliant.base.arguments import is_a, shown


def checked_loss(loss: Tensor, name: str) -> Tensor:
    """`loss`, if it is one finite number with a graph. Raises `TypeError` or `ValueError` otherwise.

    >>> import torch
    >>> checked_loss(torch.tensor(2.0), "loss")
    Traceback (most recent call last):
    ValueError: loss has shape () and no graph: give a scalar that the model computed with gradients
    """
    if not is_a(loss, Tensor):
        raise TypeError(f"{name} is {shown(loss)}: give a scalar that the model computed with gradients")
    if loss.numel() != 1 or not loss.requires_grad:
        graph = "a graph" if loss.requires_grad else "no graph"
        raise ValueError(
            f"{name} has shape {tuple(loss.shape)} and {graph}: give a scalar that the model computed with gradients"
        )
    if not bool(loss.isfinite()):
        raise ValueError(f"{name} is {loss.item()}: nothing was changed")
    return loss
