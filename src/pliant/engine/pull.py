"""Methods that pull parameters: they add to the gradient just before the optimizer reads it.

    g <- g + λ d(θ)        λ is `strength`, d the `direction` of the method

After the step `.grad` is the loss's own again. This is coupled, as the optimizers' own `weight_decay` is: Adam scales it. With
a closure the pull is added after each call of it, and is not part of the loss that the closure returns. A GradScaler needs
nothing: the pull is added to the unscaled gradient, or scaled alike for a fused optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pliant.base.arguments import number
from pliant.engine.attached import Optimizers, after_step, before_step, each_of, when_gradients_are_there
from pliant.engine.taken_steps import Outcome, will_be_taken
from pliant.engine.whole_parameters import Which, WholeParameters

_RESTORES: set[int] = set()  # hooks that put the loss's gradients back


class Pull(WholeParameters, ABC):
    """Adds `strength` times a direction to the gradient of each parameter that has one.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        parameters: which, see `WholeParameters`.

    Raises `ValueError` at construction for what does not fit.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers, *, strength: float, parameters: Which = None) -> None:
        super().__init__(model, each_of(optimizer), parameters)
        if any(isinstance(each, LBFGS) for each in self.optimizers):
            raise ValueError("LBFGS searches along the loss, so the penalty must be part of it: add it in the closure")
        self.strength = number("strength", strength)
        self._pulled: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # the loss's gradient, and ours in its place

    @abstractmethod
    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """d(θ) of each of these parameters, of its shape; new tensors, or the parameters themselves."""

    def settle(self, taken: Outcome) -> None:
        """A step has ended for which `direction` was asked, once or (by a closure) several times; whether it was taken."""

    def _follow_steps(self) -> None:
        """Our hook runs before those of other methods, which are to see the gradient that the optimizer will, and after the step
        again, since what they see then is the loss's own. Of pulls, the last to pull is the first to restore.

        The pull is part of the step: it is recorded in a CUDA graph and replayed with it.
        """
        numbers = {each: number for number, each in enumerate(self.optimizers)}
        self._stepped_by = {
            each: [place for place in self.places if place.optimizer == number] for each, number in numbers.items()
        }
        with self._or_nothing_left():
            self._look_for_lent()
            for each in self.optimizers:
                first = before_step(each, self._pull_before_step)
                self._handles.append(first)
                cast(OrderedDict[int, Any], first.hooks_dict_ref()).move_to_end(first.id, last=False)
                last = after_step(each, self._restore_after_step)
                self._handles.append(last)
                _RESTORES.add(last.id)
                hooks = cast(OrderedDict[int, Any], last.hooks_dict_ref())
                for own in reversed([own for own in hooks if own in _RESTORES]):
                    hooks.move_to_end(own, last=False)

    # -- one step -----------------------------------------------------------------------------------------------------

    def _pull_before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self.check_places(self._stepped_by[optimizer])
        return when_gradients_are_there(args, kwargs, lambda: self._pull(optimizer), lambda: self._restore(optimizer))

    def _restore_after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        pulled = any(place.parameter in self._pulled for place in self._stepped_by[optimizer])
        self._restore(optimizer)
        if pulled:
            self.settle(will_be_taken(optimizer))

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer) -> None:
        """Put g + λ d in the place of g."""
        if optimizer in self._lent:
            self._check_lent(optimizer)
        if not self.strength:
            return
        wanted = {place.parameter for place in self._stepped_by[optimizer] if not self._is_pulled(place.parameter)}
        for settings in optimizer.param_groups:
            stepped = [parameter for parameter in settings["params"] if parameter in wanted]
            if stepped:
                sign = -1.0 if settings.get("maximize", False) else 1.0
                scale: Tensor | None = getattr(optimizer, "grad_scale", None)  # a GradScaler's, for fused steps
                self._pull_alike(stepped, sign * self.strength, scale)

    def _pull_alike(self, parameters: list[nn.Parameter], strength: float, scale: Tensor | None) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if any(gradient.layout is not torch.strided for gradient in gradients):
            raise RuntimeError(
                f"{type(self).__name__} needs dense gradients, as weight_decay does: use sparse=False, or leave that parameter "
                "out"
            )
        added = self.direction(parameters)
        if scale is not None:
            added = torch._foreach_mul(added, scale.to(gradients[0].device))  # pyright: ignore
        pulled = cast(list[Tensor], torch._foreach_add(gradients, added, alpha=strength))  # pyright: ignore
        for parameter, gradient, ours in zip(parameters, gradients, pulled, strict=True):
            self._pulled[parameter], parameter.grad = (gradient, ours), ours

    def _is_pulled(self, parameter: nn.Parameter) -> bool:
        """Nothing is left to do: no gradient, or ours already (a step within a step, or one that raised and is tried again)."""
        return parameter.grad is None or parameter.grad is self._pulled.get(parameter, (None, None))[1]

    def _restore(self, optimizer: Optimizer) -> None:
        """The gradients are the loss's own again."""
        for parameter in (place.parameter for place in self._stepped_by[optimizer]):
            if parameter not in self._pulled:
                continue
            own, ours = self._pulled.pop(parameter)
            if parameter.grad is ours:
                parameter.grad = own
