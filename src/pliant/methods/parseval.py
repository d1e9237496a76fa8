"""Parseval regularization: the rows of each weight matrix are pulled toward orthogonality, all of one length.

    g <- g + λ ∂R/∂W        R = ||W Wᵀ - s I||²  (of Wᵀ W where W has more rows than columns);    ∂R/∂W = 4 (W Wᵀ - s I) W

    W  (outputs, all else), for a filter     λ  `strength`     s  `scale`, the square of the gain: 2 for ReLU, 1 for tanh

Source: Chung et al., NeurIPS 2024 (arXiv 2412.07224): every layer but the last, from an orthogonal initialization; λ 1e-3
(MetaWorld, gridworld) and 1e-4 (CARL). The released code takes the mean of (W Wᵀ - s I)² over its entries, times (64 / width)²:
its λ, divided by the number of entries (width² in a square layer), is ours. Departure: the rows of a tall matrix cannot be
orthogonal, so its columns are pulled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pliant.base.arguments import number
from pliant.engine.attached import Optimizers
from pliant.engine.pull import Pull
from pliant.engine.whole_parameters import Which

FORMAT = 1


class Parseval(Pull):
    """Pull weight matrices toward a multiple of orthogonal ones.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        parameters: which matrices and filters, see `WholeParameters`: those of hidden layers, since the source leaves the last
            layer free.
        scale: s.

    Raises `ValueError` for what does not fit, such as a bias among the parameters.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> parseval = Parseval(model, optimizer, strength=0.25, parameters="0.weight", scale=1.0)
    >>> (0.0 * model[0].weight.sum()).backward()
    >>> optimizer.step()
    >>> model[0].weight.detach()  # 2 - 0.1 · 0.25 · 4 (4 - 1) 2
    tensor([[1.4000, 0.0000],
            [0.0000, 1.0000]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        strength: float,
        parameters: Which,
        scale: float = 2.0,
    ) -> None:
        super().__init__(model, optimizer, strength=strength, parameters=parameters)
        self.scale = number("scale", scale)
        vector = next((place for place in self.places if place.parameter.dim() < 2), None)
        if vector is not None:
            raise ValueError(
                f"parameters: '{vector.name}' is no matrix (shape {tuple(vector.parameter.shape)}); name the weights of hidden "
                f"layers, such as parameters='*.weight' or a list of names"
            )
        self._follow_steps()

    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return [apart_from_orthogonal(each.flatten(1), self.scale).view_as(each) for each in parameters]

    def state_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "parseval", "scale": self.scale, "names": self.names}

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, {"format": FORMAT, "method": "parseval", "scale": self.scale, "names": self.names})


def apart_from_orthogonal(w: Tensor, scale: float) -> Tensor:
    """∂R/∂W, of the shorter side's products.

    >>> import torch
    >>> apart_from_orthogonal(torch.tensor([[1.0], [2.0]]), scale=1.0)  # Wᵀ W - 1 = 4
    tensor([[16.],
            [32.]])
    """
    wide = w if w.shape[0] <= w.shape[1] else w.T
    gradient = 4.0 * (wide @ wide.T @ wide - scale * wide)
    return gradient if wide is w else gradient.T
