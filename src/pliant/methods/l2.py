"""L2 regularization, toward zero or toward the initial parameters.

    g <- g + λ (θ - θ*)        θ* = 0 (L2), or the parameters at construction (L2 Init);  λ is `strength`

This is the gradient of λ/2 ||θ - θ*||², added just before the optimizer reads it (coupled): toward zero and on all
parameters it is the optimizer's own `weight_decay`, to the bit, in SGD, Adam and all that treat it as part of the
gradient. A penalty λ ||θ||² without the half is twice that strength. After the step `.grad` is the loss's own again.

Source: the L2 of the released code of Dohare et al., Nature 632 (2024): coupled, biases and norms included. L2 Init: Kumar,
Marklund and Van Roy, CoLLAs 2025 (arXiv 2308.11958). Their article prints λ ||θ - θ0||², `strength` = 2 λ; their released code,
by which their λ was chosen, has λ/2, `strength` = λ, and leaves norm parameters out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pliant.base.choices import one_of
from pliant.base.saving import fill
from pliant.engine.attached import Optimizers
from pliant.engine.pull import Pull
from pliant.engine.whole_parameters import Which

Toward = Literal["zero", "initial"]

FORMAT = 1


class L2(Pull):
    """Pull parameters toward zero, or toward where they were when this was built.

    A parameter without a gradient is left alone, as by `weight_decay`. Closures and GradScalers: see `pliant.engine.pull`.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        toward: "zero", or "initial", of which a copy is kept.
        parameters: which, see `WholeParameters`; biases and norm parameters too, unless you say otherwise.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> l2 = L2(model, optimizer, strength=0.5)
    >>> (0.0 * model.weight.sum()).backward()
    >>> optimizer.step()
    >>> round(model.weight.item(), 6)                               # 1 - 0.1 * 0.5 * 1
    0.95
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        strength: float,
        toward: Toward = "zero",
        parameters: Which = None,
    ) -> None:
        super().__init__(model, optimizer, strength=strength, parameters=parameters)
        self.toward = one_of("toward", toward, get_args(Toward))
        self._targets: dict[nn.Parameter, Tensor] = {}
        if toward == "initial":
            self._targets = {place.parameter: place.parameter.detach().clone() for place in self.places}
        self._follow_steps()

    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return away_from([self._target(each) for each in parameters], parameters) if self._targets else parameters

    def _target(self, parameter: nn.Parameter) -> Tensor:
        """Where it was, on the device where it is and of its type."""
        held = self._targets[parameter] = self._targets[parameter].to(parameter)
        return held

    def restart(self) -> None:
        """Where the parameters are now is where they are pulled to, if that is where they began. After a full reset."""
        self._targets = {parameter: parameter.detach().clone() for parameter in self._targets}

    def state_dict(self) -> dict[str, Any]:
        targets = [self._targets[place.parameter].clone() for place in self.places] if self._targets else []
        return {"format": FORMAT, "toward": self.toward, "names": self.names, "targets": targets}

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, {"format": FORMAT, "toward": self.toward, "names": self.names})
        for place, held in zip(self.places if self._targets else (), state["targets"], strict=True):
            fill(self._target(place.parameter), held, place.name)


def away_from(targets: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """θ - θ* of each parameter.

    >>> away_from([torch.tensor([1.0, 1.0])], [torch.tensor([3.0, 0.5])])
    (tensor([ 2.0000, -0.5000]),)
    """
    return torch._foreach_sub(parameters, targets)  # pyright: ignore
