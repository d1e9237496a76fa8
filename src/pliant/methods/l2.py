"""L2 regularisation, toward zero or toward the initial parameters.

    g <- g + λ (θ - θ*)        θ* = 0 (L2), or the parameters at construction (L2 Init);  λ is `strength`

This is the gradient of λ/2 ||θ - θ*||², added just before the optimizer reads it (coupled): toward zero and on all
parameters it is the optimizer's own `weight_decay`, to the bit, in SGD, Adam and all that treat it as part of the
gradient. A penalty λ ||θ||² without the half is twice that strength. After the step `.grad` is the loss's own again.

Source: L2 of Dohare et al., Nature 632 (2024), as released: coupled, biases and norms included. L2 Init: Kumar, Marklund and
Van Roy, CoLLAs 2025 (arXiv 2308.11958), whose λ ||θ - θ0||² is `strength` = 2 λ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pliant.base.choices import one_of
from pliant.engine.whole_parameters import Place, Which, WholeParameters

Toward = Literal["zero", "initial"]

FORMAT = 1


class L2(WholeParameters):
    """Pull parameters toward zero, or toward where they were when this was built.

    A parameter without a gradient is left alone, as by `weight_decay`. With a closure, the pull is added after each call of
    it, and is not part of the loss it returns. A GradScaler needs nothing: the pull is added to the unscaled gradient,
    or scaled alike for a fused optimizer.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        toward: "zero", or "initial", of which a copy is kept.
        parameters: which, see `WholeParameters`; biases and norm parameters too, unless you say otherwise.

    Raises `ValueError` at construction for what does not fit.

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
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        strength: float,
        toward: Toward = "zero",
        parameters: Which = None,
    ) -> None:
        super().__init__(model, optimizer, parameters)
        if not 0.0 <= strength < float("inf"):
            raise ValueError(f"strength must be 0 or more, got {strength}")
        if any(isinstance(each, LBFGS) for each in self.optimizers):
            raise ValueError("LBFGS searches along the loss, so the penalty must be part of it: add it in the closure")
        self.strength, self.toward = strength, one_of("toward", toward, get_args(Toward))
        self._targets: dict[nn.Parameter, Tensor] = {}
        if toward == "initial":
            self._targets = {place.parameter: place.parameter.detach().clone() for place in self.places}
        self._pulled: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # the loss's gradient, and ours in its place
        for number, each in enumerate(self.optimizers):
            mine = [place for place in self.places if place.optimizer == number]
            self._attach(each, mine)

    def _attach(self, optimizer: Optimizer, places: list[Place]) -> None:
        """Our hook runs before those of other methods, which are to see the gradient that the optimizer will."""

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            return self._before_step(optimizer, places, args, kwargs)

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._restore(places)

        first = optimizer.register_step_pre_hook(before)
        cast(OrderedDict[int, Any], first.hooks_dict_ref()).move_to_end(first.id, last=False)
        self._handles += [first, optimizer.register_step_post_hook(after)]

    # -- one step ---------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, places: list[Place], args: Any, kwargs: Any) -> Any:
        self.check_places()
        closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._pull(optimizer, places)
            return None

        def then_pull() -> Any:
            self._restore(places)
            loss = closure()
            self._pull(optimizer, places)
            return loss

        return (args[0], then_pull, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, places: Sequence[Place]) -> None:
        """Put g + λ (θ - θ*) in the place of g."""
        if not self.strength:
            return
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)  # a GradScaler's, for fused steps
        wanted = {place.parameter for place in places if not self._is_pulled(place.parameter)}
        for settings in optimizer.param_groups:
            stepped = [parameter for parameter in settings["params"] if parameter in wanted]
            if stepped:
                sign = -1.0 if settings.get("maximize", False) else 1.0
                self._pull_alike(stepped, sign * self.strength, scale)

    def _pull_alike(self, parameters: list[nn.Parameter], strength: float, scale: Tensor | None) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if any(gradient.layout is not torch.strided for gradient in gradients):
            raise RuntimeError(
                "L2 needs dense gradients, as weight_decay does: use sparse=False, or leave that parameter out"
            )
        away: Sequence[Tensor] = parameters
        if self._targets:
            away = torch._foreach_sub(parameters, [self._target(each) for each in parameters])  # pyright: ignore
        if scale is not None:
            away = torch._foreach_mul(away, scale.to(gradients[0].device))  # pyright: ignore
        pulled = cast(list[Tensor], torch._foreach_add(gradients, away, alpha=strength))  # pyright: ignore
        for parameter, gradient, ours in zip(parameters, gradients, pulled, strict=True):
            self._pulled[parameter], parameter.grad = (gradient, ours), ours

    def _target(self, parameter: nn.Parameter) -> Tensor:
        """Where it was, on the device where it is."""
        held = self._targets[parameter]
        if held.device != parameter.device or held.dtype != parameter.dtype:
            held = self._targets[parameter] = held.to(parameter)
        return held

    def _is_pulled(self, parameter: nn.Parameter) -> bool:
        """Nothing is left to do: no gradient, or ours already (a step within a step, or one that raised and is tried again)."""
        return parameter.grad is None or parameter.grad is self._pulled.get(parameter, (None, None))[1]

    def _restore(self, places: Sequence[Place]) -> None:
        """The gradients are the loss's own again."""
        for parameter in [place.parameter for place in places if place.parameter in self._pulled]:
            own, ours = self._pulled.pop(parameter)
            if parameter.grad is ours:
                parameter.grad = own

    # -- saving -----------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Where the parameters are now is where they are pulled to, if that is where they began. After a full reset."""
        self._targets = {parameter: parameter.detach().clone() for parameter in self._targets}

    def state_dict(self) -> dict[str, Any]:
        targets = [self._targets[place.parameter].clone() for place in self.places] if self._targets else []
        return {"format": FORMAT, "toward": self.toward, "names": self.names, "targets": targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; `strength` may change. Raises `ValueError` for another target or other parameters."""
        self.check_saved(state, {"format": FORMAT, "toward": self.toward, "names": self.names})
        for place, held in zip(self.places if self._targets else (), state["targets"], strict=True):
            self._targets[place.parameter] = held.to(place.parameter, copy=True)
