"""Policies: actions from the actor's outputs, and their log-probabilities.

    Gaussian   a = mean + exp(log_std) x,  x normal             log π = Σ -((a - mean) / std)² / 2 - log_std - log(2π) / 2
    Softmax    a = argmax(logit + x),      x Gumbel             log π = log softmax(logits)[a]

The noise x is drawn ahead for a whole rollout, from a random stream keyed by the agent's seed and the rollout. `log_std` is a
free parameter, one per dimension of the action, the same in all states. With Gumbel noise, the argmax is a draw from the softmax.

Source: Dohare et al., Nature 632 (2024), for the Gaussian; Gumbel (1954) for the other.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HALF_LOG_2PI = 0.5 * log(2.0 * pi)


class Gaussian(nn.Module):
    """Vectors of independent normal numbers around the actor's means."""

    def __init__(self, agents: int, size: int, start: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs, self._start = size, start
        self.log_std = nn.Parameter(torch.full((agents, size), start, dtype=dtype))

    def restart(self, agent: int) -> None:
        self.log_std[agent] = self._start

    def noise(self, draws: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return draws.standard_normal((*shape, self.outputs))

    def spread(self) -> NDArray[Any]:
        """Standard deviations, (agents, 1, size): they stay as they are through a rollout."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for in the actions
            return np.exp(self.log_std.detach().numpy())[:, None]

    def likeliest(self, means: NDArray[Any]) -> NDArray[Any]:
        """(agents, n, size)."""
        return means

    def sample(self, means: NDArray[Any], noise: NDArray[Any], spread: NDArray[Any]) -> NDArray[Any]:
        """(agents, n, size), from means and noise of that shape."""
        return means + spread * noise

    def log_probability(self, means: Tensor, actions: Tensor) -> Tensor:
        """(agents, n), of actions (agents, n, size)."""
        log_std = self.log_std[:, None]
        return (-0.5 * ((actions - means) * (-log_std).exp()).square() - log_std - HALF_LOG_2PI).sum(-1)

    def entropy(self, means: Tensor) -> Tensor:
        """In nats, (agents, n): the same in all states."""
        return (self.log_std + 0.5 + HALF_LOG_2PI).sum(-1, keepdim=True).expand(means.shape[:2])


class Softmax(nn.Module):
    """One of `count` actions."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.outputs = count

    def restart(self, agent: int) -> None:
        """It has no parameters."""

    def noise(self, draws: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return draws.gumbel(size=(*shape, self.outputs))

    def spread(self) -> NDArray[Any]:
        return np.ones(1)

    def likeliest(self, logits: NDArray[Any]) -> NDArray[Any]:
        """(agents, n) integers."""
        return logits.argmax(-1)

    def sample(self, logits: NDArray[Any], noise: NDArray[Any], spread: NDArray[Any]) -> NDArray[Any]:
        """(agents, n) integers, from logits and noise (agents, n, count)."""
        return (logits + noise).argmax(-1)

    def log_probability(self, logits: Tensor, actions: Tensor) -> Tensor:
        """(agents, n), of actions (agents, n)."""
        return logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """In nats, (agents, n)."""
        log_probability = logits.log_softmax(-1)
        return -(log_probability.exp() * log_probability).sum(-1)
