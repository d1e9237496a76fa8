"""ObGD, gradient descent whose steps are bounded so that they do not overshoot.

    z <- γ λ z + g                              eligibility trace; g alone at λ = 0
    M = α κ max(|δ|, 1) ||z||₁                  of all parameters together
    θ <- θ - α / max(1, M) · δ z

so no step is longer than ||Δθ||₁ = 1 / κ. Of a linear prediction from inputs in [-1, 1] the error δ of the very example learned
from then shrinks by at most 1 / κ of itself, and cannot change its sign.

    streaming TD(λ)      `.grad` of -v(s), or of -log π(a|s);  `step(delta=δ, reset=episode_ended)`, λ 0.8, γ 0.99
    supervised learning  `.grad` of the loss;  `step()`, which is δ = 1, without a trace (λ = 0): M = α κ ||g||₁

With `beta2` (0.999) z is divided by the root of a running mean of (δ z)², in M as in the step:

    v <- β₂ v + (1 - β₂) (δ z)²;    z / √(v / (1 - β₂ᵗ) + ε) in the place of z

Source: Elsayed, Vasan and Mahmood (2024, arXiv 2410.14606), algorithms 3 and 11, and the released code; α 1, κ 2 (actor 3). There
the claim is learning from a stream of single examples, with layer norm, sparse initialization and normalized observations, not
plasticity as such; the supervised form is ours. Departure: where groups of parameters have step sizes of their own, each adds its
α κ ||z||₁ to M, where the released code takes those of the last group.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# Torch's operations on lists of tensors have no public name.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pliant.base.arguments import flag, is_a, number, positive
from pliant.engine.attached import uncompiled
from pliant.optimizers.checked import CheckedOptimizer, Closure, value_of, with_gradients


class ObGD(CheckedOptimizer):
    """Gradient descent with a bound on overshooting, of single gradients or of eligibility traces.

    Args:
        params: parameters or groups of them, as for any optimizer of `torch.optim`; settings may differ by group.
        lr: α, the step size that the bound makes smaller.
        kappa: κ; the larger, the smaller the longest step.
        gamma: γ, the discount, in [0, 1].
        lamda: λ, the decay of traces, in [0, 1]; 0 keeps none.
        beta2: None, or β₂ in [0, 1) of the running sizes.
        eps: ε, above 0.

    The state of a parameter: `trace` where λ > 0, `exp_avg_sq` and `step` with `beta2`. Raises `TypeError` or `ValueError` for
    what does not fit.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = ObGD([weight], lr=1.0, kappa=2.0)
    >>> (3.0 * weight[0] - weight[1]).backward()
    >>> optimizer.step()  # M = 2 · (3 + 1), so the step is g / 8
    >>> weight.tolist()
    [-0.375, 0.125]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        kappa: float = 2.0,
        gamma: float = 0.99,
        lamda: float = 0.0,
        beta2: float | None = None,
        eps: float = 1e-8,
    ) -> None:
        settings = {"lr": lr, "kappa": kappa, "gamma": gamma, "lamda": lamda, "beta2": beta2, "eps": eps}
        self.check(settings)
        super().__init__(params, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        for name in ("lr", "kappa"):
            number(name, settings[name])
        positive("eps", settings["eps"])
        for name in ("gamma", "lamda"):
            number(name, settings[name], 0.0, 1.0)
        if settings["beta2"] is not None:
            number("beta2", settings["beta2"], 0.0, 1.0, below=True)

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Closure = None, *, delta: float | Tensor | None = None, reset: bool = False) -> Any:
        """One step.

        Args:
            closure: if given, finds the gradients; what it returns is returned.
            delta: δ, the error by which the gradients are multiplied, a number or a scalar tensor; None is 1.
            reset: whether the traces end here, as episodes do.
        """
        δ = _error(delta)
        flag("reset", reset)
        loss = value_of(closure)
        groups = with_gradients(self)
        directions = [self._directions(*group, δ) for group in groups]
        if groups:
            bounded = 1.0 / self._overshoot(groups, directions, δ).clamp(min=1.0)
            for (settings, parameters, _), along in zip(groups, directions, strict=True):
                scales = [(-settings["lr"] * δ * bounded).to(z) for z in along]
                torch._foreach_addcmul_(
                    parameters, along, [scale.expand_as(z) for scale, z in zip(scales, along, strict=True)]
                )
        if reset:
            for state in self.state.values():
                if "trace" in state:
                    state["trace"].zero_()
        return loss

    def _directions(
        self, settings: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], δ: float | Tensor
    ) -> list[Tensor]:
        """z, or z over its running size, of each parameter."""
        decay = settings["gamma"] * settings["lamda"]
        traces = gradients
        if decay:
            traces = [self._held(parameter, "trace") for parameter in parameters]
            torch._foreach_mul_(traces, decay)
            torch._foreach_add_(traces, gradients)
        β = settings["beta2"]
        if β is None:
            return traces
        along: list[Tensor] = []
        for parameter, z in zip(parameters, traces, strict=True):
            v = self._held(parameter, "exp_avg_sq")
            self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
            v.mul_(β).add_((z * δ).square_(), alpha=1.0 - β)
            along.append(z / (v / (1.0 - β ** self.state[parameter]["step"]) + settings["eps"]).sqrt_())
        return along

    def _held(self, parameter: Tensor, name: str) -> Tensor:
        if name not in self.state[parameter]:
            self.state[parameter][name] = torch.zeros_like(parameter)
        return self.state[parameter][name]

    def _overshoot(
        self,
        groups: list[tuple[dict[str, Any], list[Tensor], list[Tensor]]],
        directions: list[list[Tensor]],
        δ: float | Tensor,
    ) -> Tensor:
        """M, in single precision at least."""
        lengths: list[Tensor] = []
        for (settings, _, _), along in zip(groups, directions, strict=True):
            norms = torch._foreach_norm(along, 1, dtype=torch.promote_types(along[0].dtype, torch.float32))
            lengths += [settings["lr"] * settings["kappa"] * norm for norm in norms]
        size = δ.abs().clamp(min=1.0) if isinstance(δ, Tensor) else max(abs(δ), 1.0)
        return torch.stack([length.to(lengths[0]) for length in lengths]).sum() * size


def _error(delta: float | Tensor | None) -> float | Tensor:
    """δ. Raises `TypeError` or `ValueError` for what is no number."""
    if delta is None:
        return 1.0
    if isinstance(delta, Tensor):
        if delta.numel() != 1 or delta.is_complex():
            raise ValueError(f"delta must be one real number, got a tensor of shape {tuple(delta.shape)}")
        return delta.detach().reshape(())
    if is_a(delta, bool):
        raise TypeError(f"delta must be a number, got {delta}")
    return number("delta", delta, float("-inf"))
