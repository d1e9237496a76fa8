"""Spectral regularization: the largest singular value of each layer is pulled toward 1.

    g <- g + λ ∂R/∂θ        R = sum over matrices of (σ^k - c)²  +  over biases ||b||^p  +  over scales of norms ||γ - 1||²

    σ  largest singular value; of (outputs, all else) for a filter      k  `power`     c  `target`     p  `bias_power`
    λ  `strength`                                                       b  shifts of norms too, and all else that is no matrix

so that ∂R/∂W = 2 k (σ^k - c) σ^(k-1) u vᵀ, with the singular vectors u and v, and ∂R/∂b = p ||b||^(p-2) b. One power iteration in
each step keeps u; it begins at the exact one. A step that a GradScaler leaves out moves it by nothing.

Source: Lewandowski et al., ICLR 2025 (arXiv 2406.06811): k = 2, c = 1. The power of ||b|| there, 2k (here) or k, could not be
confirmed; another published code (lop-jax) has c = 2, which pulls σ toward the root of 2, and p = 2, strengths 1e-2 to 1e-4. The
gates of a recurrent layer are one matrix, as are queries, keys and values that share a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import number, positive
from pliant.base.saving import fill
from pliant.engine.attached import Optimizers
from pliant.engine.pull import Pull
from pliant.engine.taken_steps import Outcome
from pliant.engine.whole_parameters import Which
from pliant.units.models import is_norm

FORMAT = 1


class Spectral(Pull):
    """Pull the largest singular value of every matrix toward 1, biases toward 0, and norms toward (1, 0).

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        power, target: k, above 0, and c.
        bias_power: p, 2 or more.
        parameters: which, see `WholeParameters`; None takes all.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.diag(torch.tensor([2.0, 1.5])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> spectral = Spectral(model, optimizer, strength=0.05)
    >>> (0.0 * model.weight.sum()).backward()
    >>> optimizer.step()
    >>> model.weight.detach()  # 2 - 0.1 · 0.05 · 2 · 2 (2² - 1) 2
    tensor([[1.8800, 0.0000],
            [0.0000, 1.5000]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        strength: float,
        power: float = 2.0,
        target: float = 1.0,
        bias_power: float = 4.0,
        parameters: Which = None,
    ) -> None:
        super().__init__(model, optimizer, strength=strength, parameters=parameters)
        self.power, self.target = positive("power", power), number("target", target)
        self.bias_power = number("bias_power", bias_power, 2.0)
        self._scales = {place.parameter for place in self.places if place.leaf == "weight" and is_norm(place.home)}
        self._left: dict[nn.Parameter, Tensor] = {}  # u of each matrix
        self._next: dict[nn.Parameter, Tensor] = {}  # u after the step that is being made
        self.restart()
        self._follow_steps()

    @torch.no_grad()
    def restart(self) -> None:
        """Find the singular vectors of the matrices as they are now. After a full reset."""
        matrices = {p.parameter: _matrix(p.parameter) for p in self.places if p.parameter.dim() > 1}
        self._left = {each: _largest_left(matrix) for each, matrix in matrices.items()}

    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return [self._of_matrix(each) if each.dim() > 1 else self._of_vector(each) for each in parameters]

    def _of_matrix(self, parameter: nn.Parameter) -> Tensor:
        k, u = self.power, self._vector(parameter)
        σ, self._next[parameter], v = power_iteration(_matrix(parameter), u)
        pull = 2.0 * k * (σ**k - self.target) * σ ** (k - 1.0) * torch.outer(self._next[parameter], v)
        return pull.view_as(parameter).to(parameter.dtype)

    def _of_vector(self, parameter: nn.Parameter) -> Tensor:
        if parameter in self._scales:
            return 2.0 * (parameter - 1.0)
        return self.bias_power * parameter.square().sum() ** (self.bias_power / 2.0 - 1.0) * parameter

    def settle(self, taken: Outcome) -> None:
        for parameter, u in self._next.items():
            kept = self._vector(parameter)
            kept.copy_(torch.where(taken.to(u.device), u, kept) if isinstance(taken, Tensor) else u if taken else kept)
        self._next.clear()

    def _vector(self, parameter: nn.Parameter) -> Tensor:
        """u, on the device where the parameter is."""
        held = self._left[parameter] = self._left[parameter].to(parameter.device)
        return held

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "spectral", "names": self.names}

    def state_dict(self) -> dict[str, Any]:
        none = torch.zeros(0)
        vectors = [self._left.get(place.parameter, none).clone() for place in self.places]
        return {**self._settings(), "targets": vectors}

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, self._settings())
        for place, held in zip(self.places, state["targets"], strict=True):
            if place.parameter in self._left:
                fill(self._vector(place.parameter), held, place.name)
            else:
                fill(torch.zeros(0), held, place.name)


def power_iteration(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """σ, u and v, each one step nearer to the largest singular value and its vectors; u as it was where the matrix is 0.

    >>> σ, u, v = power_iteration(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0.6, 0.8]))
    >>> σ, v  # of (1.8, 0.8), as long as 1.9698; then (2.7415, 0.4061)
    (tensor(2.7714), tensor([0.9138, 0.4061]))
    """
    v = nn.functional.normalize(matrix.T @ u, dim=0)
    product = matrix @ v
    σ = product.square().sum().sqrt()
    return σ, torch.where(σ > 0, product / σ, u), v


def _matrix(parameter: Tensor) -> Tensor:
    """(outputs, all else), in single precision at least."""
    matrix = parameter.detach().flatten(1)
    return matrix if matrix.dtype.itemsize >= 4 else matrix.float()


def _largest_left(matrix: Tensor) -> Tensor:
    """u of the largest singular value."""
    left, _, _ = cast(tuple[Tensor, Tensor, Tensor], torch.linalg.svd(matrix, full_matrices=False))
    return left[:, 0].clone()
