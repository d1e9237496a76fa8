"""UPGD, utility-based perturbed gradient descent: weights that the loss needs hardly move, the others learn and are perturbed.

    U <- β U + (1 - β) (-g w)          g gradient, w weight, β `beta_utility`;  Û = U / (1 - βᵗ) of the t-th step
    a = sigmoid(Û / max Û)             the maximum is over all weights of the optimizer
    w <- (1 - α λ) w - α (g + σ ξ) (1 - a)        α `lr`, λ `weight_decay`, ξ ~ N(0, 1);  `protecting=True`
    w <- (1 - α λ) w - α (g + σ ξ (1 - a))        `protecting=False`: useful weights are learned as others are

-g w is to first order what the loss would rise by if the weight were removed. A weight of no utility has a = 1/2, so learns at
half the step size, the most useful one at 0.27 of it, harmful ones at up to all of it.

Source: Elsayed and Mahmood, ICLR 2024 (arXiv 2404.00781), with the first-order utility and global scaling. Where they differ:

    the article                      α, and Û over the largest Û                      the defaults
    the code of its experiments      α, and Û over the largest U                      `maximum="raw"`
    the optimizer of their README    2 α but for the decay, Û over the largest U      `factor=2, maximum="raw"`

With the largest U, arguments of the sigmoid are 1 / (1 - βᵗ) times larger: for the first 1 / (1 - β) steps gates are 0 or 1,
useful weights do not move. Their grid: α 0.1 to 1e-4, β 0.9 to 0.9999, σ 0.001 to 1, λ 0 to 0.1; on input-permuted MNIST α 0.01,
β 0.9999, σ 0.1, λ 0.01.

Departure: a maximum below 0 (no weight is of use) would turn all gates around, harmful weights would be protected the most. Here
Û is divided by the size of the maximum, so that the order of the weights stays.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# Torch's operations on lists of tensors have no public name.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from pliant.base.arguments import flag, integer, number
from pliant.base.choices import one_of
from pliant.engine.attached import uncompiled
from pliant.engine.normal_stream import standard_normal
from pliant.optimizers.checked import CheckedOptimizer, Closure, value_of, with_gradients
from pliant.streams import stream_key

Maximum = Literal["corrected", "raw"]


class UPGD(CheckedOptimizer):
    """Gradient descent that moves and perturbs weights the less, the more useful they are.

    Args:
        params: parameters or groups of them, as for any optimizer of `torch.optim`; all settings but these may differ by group.
        lr: α, the step size.
        weight_decay: λ, decoupled.
        beta_utility: β of the running utility, in [0, 1).
        sigma: σ, standard deviation of the noise, which is multiplied by α as the gradient is; 0 draws nothing.
        protecting: whether useful weights learn less, or are only spared the noise.
        factor: by which α is multiplied but for the decay.
        maximum: of the "corrected" utilities, Û, or of the "raw" ones, U.
        seed: of the noise; None takes `torch.initial_seed()`. The noise of a parameter is looked up by (seed, group, place in the
            group, step), so nothing need be remembered to go on exactly, and the global random state stays as it is.

    The state of a parameter is `avg_utility`, of its shape, and `step`. Raises `TypeError` or `ValueError` for what does not fit;
    under `torch.distributed` a seed must be given, so that all ranks draw alike.

    >>> weight = torch.nn.Parameter(torch.tensor([-2.0, 0.0]))
    >>> optimizer = UPGD([weight], lr=1.0, sigma=0.0)
    >>> (3.0 * weight).sum().backward()
    >>> optimizer.step()  # utilities 6 and 0: gates sigmoid(1) and 1/2
    >>> weight.data  # -2 - 3 · (1 - 0.7311), 0 - 3 / 2
    tensor([-2.8068, -1.5000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        weight_decay: float = 0.0,
        beta_utility: float = 0.999,
        sigma: float = 0.001,
        protecting: bool = True,
        factor: float = 1.0,
        maximum: Maximum = "corrected",
        seed: int | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "beta_utility": beta_utility,
            "sigma": sigma,
            "protecting": protecting,
            "factor": factor,
            "maximum": maximum,
            "seed": _seed(seed),
        }
        self.check(settings)
        super().__init__(params, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        for name in ("lr", "weight_decay", "sigma", "factor"):
            number(name, settings[name])
        number("beta_utility", settings["beta_utility"], 0.0, 1.0, below=True)
        flag("protecting", settings["protecting"])
        one_of("maximum", settings["maximum"], get_args(Maximum))
        integer("seed", settings["seed"])

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One step; `closure`, if given, finds the gradients, and what it returns is returned."""
        loss = value_of(closure)
        groups = with_gradients(self)
        if groups:
            corrected = [self._utilities(*group) for group in groups]
            largest = self._largest(groups, corrected)
            for (settings, weights, gradients), utilities in zip(groups, corrected, strict=True):
                gates = [_gate(utility, largest) for utility in utilities]
                self._move(settings, weights, gradients, gates)
        return loss

    def _utilities(self, settings: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Û of each weight, the step counted."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"step": 0, "avg_utility": torch.zeros_like(weight)}
            self.state[weight]["step"] += 1
        states, β = [self.state[weight] for weight in weights], settings["beta_utility"]
        running = [state["avg_utility"] for state in states]
        torch._foreach_mul_(running, β)
        torch._foreach_addcmul_(running, gradients, weights, value=β - 1.0)
        return [average / (1.0 - β ** state["step"]) for average, state in zip(running, states, strict=True)]

    def _largest(
        self, groups: list[tuple[dict[str, Any], list[Tensor], list[Tensor]]], corrected: list[list[Tensor]]
    ) -> Tensor:
        """The largest utility there is, on the device of the first weight."""
        compared = [
            utility if settings["maximum"] == "corrected" else self.state[weight]["avg_utility"]
            for (settings, weights, _), utilities in zip(groups, corrected, strict=True)
            for weight, utility in zip(weights, utilities, strict=True)
            if weight.numel()
        ]
        if not compared:
            return torch.ones(())
        return torch.stack([each.max().to(compared[0]) for each in compared]).max()

    def _move(
        self, settings: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], gates: list[Tensor]
    ) -> None:
        directions = gradients
        noise = self._noise(settings, weights)
        if settings["protecting"]:
            perturbed = gradients if noise is None else torch._foreach_add(gradients, noise)
            directions = torch._foreach_mul(perturbed, gates)
        elif noise is not None:
            directions = torch._foreach_add(gradients, torch._foreach_mul(noise, gates))
        if settings["weight_decay"]:
            torch._foreach_mul_(weights, 1.0 - settings["lr"] * settings["weight_decay"])
        torch._foreach_add_(weights, list(directions), alpha=-settings["factor"] * settings["lr"])

    def _noise(self, settings: dict[str, Any], weights: list[Tensor]) -> list[Tensor] | None:
        """σ ξ for each weight; None without noise."""
        if not settings["sigma"]:
            return None
        group = next(number for number, each in enumerate(self.param_groups) if each is settings)
        places = {parameter: place for place, parameter in enumerate(cast(list[Tensor], settings["params"]))}
        drawn: list[Tensor] = []
        for weight in weights:
            key = stream_key(settings["seed"], "utility noise", group, places[weight], self.state[weight]["step"])
            numbers = standard_normal([key], weight.numel(), weight.device).reshape(weight.shape)
            drawn.append(numbers.to(weight.dtype) * settings["sigma"])
        return drawn


def _gate(utility: Tensor, largest: Tensor) -> Tensor:
    """1 - a: what is left of the step of each weight."""
    size = largest.abs().clamp(min=torch.finfo(largest.dtype).tiny)
    return torch.sigmoid(-utility / size.to(utility))


def _seed(seed: int | None) -> int:
    if seed is not None:
        return seed
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"seed: torch.distributed runs {dist.get_world_size()} ranks, which are to draw alike: give a number"
        )
    return torch.initial_seed()
