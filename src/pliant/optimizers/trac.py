"""TRAC: how far to follow an optimizer away from where it started is learned as it goes.

    Δ <- Δ + u                     u the step of the optimizer, Δ how far it has gone
    h = <g, Δ>                     before the step;  below 0 where going on would lower the loss
    v_j <- β_j² v_j + h²,   σ_j <- β_j σ_j - h                    a tuner for each β_j of `betas`
    S = Σ_j s / erfi(1/√2) · erfi(σ_j / (√(2 v_j) + ε))           s `scale`; below 0 it counts as 0
    θ <- θ₀ + S Δ

S starts near 0, so that parameters hardly move, and grows exponentially while steps agree; once they lead astray, it falls, and
parameters return toward θ₀. Nothing of its own is to be tuned.

Source: Muppidi, Zhang and Yang, NeurIPS 2024 (arXiv 2405.16642), and the released code, whose optimizer steps from θ, as here,
and whose PyTorch version takes 0 for a negative S (that for JAX does not). Departures: Δ is kept, where the released code finds
it as (θ - θ₀) / (S + ε), which loses what a parameter's rounding loses (S begins at 1e-8), and all of it at S = 0; σ starts at 0,
as in the article, not at 1e-8. What others do to a parameter between steps (shrinking it, loading a checkpoint) moves its θ₀ as
well, and is not scaled by S; entries of units that are reset start over, from their new values.

TRAC is an optimizer around another one, not a method attached to it, so that the order of things does not depend on who was
built first: what hangs on the inner optimizer acts on its step u, what hangs on TRAC sees the parameters that come of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial, pi, prod, sqrt
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from pliant.base.arguments import is_a, listed, number, positive, shown
from pliant.engine.attached import uncompiled
from pliant.optimizers.checked import Closure, value_of, with_gradients

BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


class TRAC(Optimizer):
    """Scales how far `base_optimizer` goes from where its parameters started, by what that has done to the loss.

    Args:
        base_optimizer: whose steps are scaled; its step size and other settings stay as they are. A schedule of the step size is
            given TRAC, which has the same groups of parameters.
        betas: β_j in [0, 1], one or more.
        scale: s, above 0.
        eps: ε, above 0.

    The state of a parameter: `start`, θ₀; `displacement`, Δ; `scale`, the S it was last set by. The tuners' is
    `state["tuners"]`; what the inner optimizer remembers is in `base_optimizer.state`, and `state_dict()` holds all. Raises
    `TypeError` or `ValueError` for what does not fit.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), scale=1.0, betas=(0.0,))
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     weight.sum().backward()  # 1st step: Δ = -0.1, S = 0; 2nd: h = -0.1, so S = erfi(1/√2) / erfi(1/√2), Δ = -0.2
    ...     optimizer.step()
    >>> weight.data
    tensor([0.8000])
    """

    base_optimizer: Optimizer

    def __init__(
        self, base_optimizer: Optimizer, *, betas: Sequence[float] = BETAS, scale: float = 1e-8, eps: float = 1e-8
    ) -> None:
        self.betas = _betas(betas)
        self.scale, self.eps = positive("scale", scale), positive("eps", eps)
        _check(base_optimizer)
        super().__init__(base_optimizer.param_groups, base_optimizer.defaults)
        self.base_optimizer, self.param_groups = base_optimizer, base_optimizer.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "base_optimizer" in vars(self):  # and so are its groups ours
            self.base_optimizer.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One step of the inner optimizer, scaled; `closure`, if given, finds the gradients, and what it returns is returned."""
        loss = value_of(closure)
        groups = with_gradients(self)
        parameters = [parameter for _, stepped, _ in groups for parameter in stepped]
        for parameter in parameters:
            self._follow(parameter)
        h = self._slope(groups)
        before = [parameter.clone() for parameter in parameters]
        self.base_optimizer.step()
        if h is not None:
            scale = self._tune(h)
            for parameter, old in zip(parameters, before, strict=True):
                state = self.state[parameter]
                state["displacement"].add_(parameter - old)
                state["scale"] = scale.to(parameter)
                parameter.copy_(_placed(state))
        return loss

    def restart(self) -> None:
        """The tuners start over."""
        self._tuners().clear()

    def _tuners(self) -> dict[str, Tensor]:
        """What the tuners remember: torch saves state that has a name as it is."""
        return self.state[cast(Any, "tuners")]

    def _follow(self, parameter: Tensor) -> None:
        """Where a parameter is not where it was put, its start has moved as far."""
        state = self.state[parameter]
        if state:
            state["start"].add_(parameter - _placed(state))
        else:
            state["start"], state["displacement"] = parameter.clone(), torch.zeros_like(parameter)
            state["scale"] = parameter.new_zeros(())

    def _slope(self, groups: Sequence[tuple[dict[str, Any], list[Tensor], list[Tensor]]]) -> Tensor | None:
        """h, in double precision; None where no parameter has a gradient."""
        parts: list[Tensor] = []
        for settings, parameters, gradients in groups:
            sign = -1.0 if settings.get("maximize", False) else 1.0
            for parameter, g in zip(parameters, gradients, strict=True):
                wide = torch.promote_types(parameter.dtype, torch.float32)
                parts.append(sign * (g.to(wide) * self.state[parameter]["displacement"].to(wide)).sum())
        if not parts:
            return None
        device = "cpu" if parts[0].device.type == "mps" else parts[0].device  # which has no double precision
        return torch.stack([part.to(device, torch.float64) for part in parts]).sum()

    def _tune(self, h: Tensor) -> Tensor:
        """S, when the tuners have heard of h."""
        β = torch.tensor(self.betas, dtype=h.dtype, device=h.device)
        held = self._tuners()
        v, σ = (held[name].to(h) if held else torch.zeros_like(β) for name in ("variance", "sigma"))
        v, σ = β.square() * v + h.square(), β * σ - h
        held.update(variance=v, sigma=σ)
        unit = erfi(torch.tensor(sqrt(0.5), dtype=h.dtype, device=h.device))
        return (self.scale / unit * erfi(σ / ((2.0 * v).sqrt() + self.eps))).sum().clamp(min=0.0)

    # -- saving and copying -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "base_optimizer": self.base_optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "base_optimizer" not in state_dict:
            raise ValueError("this state of TRAC lacks 'base_optimizer': load what state_dict() gave")
        self.base_optimizer.load_state_dict(state_dict["base_optimizer"])
        super().load_state_dict({name: held for name, held in state_dict.items() if name != "base_optimizer"})
        self.param_groups = self.base_optimizer.param_groups
        self.state[cast(Any, "tuners")] = dict(self._tuners())  # what is loaded is not written to

    def __getstate__(self) -> dict[str, Any]:
        mine = {name: vars(self)[name] for name in ("base_optimizer", "betas", "scale", "eps")}
        return {**super().__getstate__(), **mine}


def _placed(state: dict[str, Any]) -> Tensor:
    """θ, as it was set."""
    return state["start"] + state["scale"] * state["displacement"]


def _betas(betas: object) -> tuple[float, ...]:
    found = listed(betas)
    if not found:
        raise TypeError(f"betas must be a list of one or more numbers, got {shown(betas)}")
    return tuple(number("betas", β, 0.0, 1.0) for β in found)


def _check(optimizer: Optimizer) -> None:
    """Raise `TypeError` or `ValueError` for what is no optimizer whose steps can be scaled."""
    if not is_a(optimizer, Optimizer):
        raise TypeError(
            f"base_optimizer must be an optimizer, such as torch.optim.Adam(params), got {shown(optimizer)}"
        )
    name = type(optimizer).__name__
    if any(parameter.is_complex() for settings in optimizer.param_groups for parameter in settings["params"]):
        raise ValueError("base_optimizer: TRAC steps no complex parameters, give those another optimizer")
    if is_a(optimizer, LBFGS):
        raise ValueError(
            "base_optimizer: LBFGS searches along the loss, so its steps cannot be scaled, give another one"
        )
    if callable(getattr(optimizer, "train", None)):
        raise ValueError(f"base_optimizer: {name} keeps parameters at two places (train and eval), give another one")


# -- erfi ---------------------------------------------------------------------------------------------------------------

_NEAR = 6.0  # up to here by the series at 0, beyond by that at infinity
_SERIES = [2.0 / sqrt(pi) / factorial(n) / (2 * n + 1) for n in range(120)]
_TAIL = [prod(range(1, 2 * k, 2)) / 2.0**k / sqrt(pi) for k in range(31)]


def erfi(x: Tensor) -> Tensor:
    """The imaginary error function 2/√π ∫ exp(t²) dt from 0 to x; infinite beyond ±26.7, where it exceeds double precision.

        Σ_n 2/√π x^(2n+1) / (n! (2n + 1))                    |x| <= 6: all terms have one sign, so none cancels
        exp(x²) / (√π x) Σ_k (2k - 1)!! / (2 x²)^k           beyond: the smallest terms are below rounding

    x float64, of any shape. To 1e-13 of its value.

    >>> erfi(torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([0.0000, 1.6504], dtype=torch.float64)
    """
    n, k = (torch.arange(len(terms), dtype=x.dtype, device=x.device) for terms in (_SERIES, _TAIL))
    series, tail = (torch.tensor(terms, dtype=x.dtype, device=x.device) for terms in (_SERIES, _TAIL))
    small, large = x.clamp(-_NEAR, _NEAR), x.abs().clamp(_NEAR, 27.0)  # of which it is infinite
    near = small * (small.square().unsqueeze(-1).pow(n) * series).sum(-1)
    half = (large.square() / 2.0).exp()
    far = half * ((large.square().unsqueeze(-1).pow(-k) * tail).sum(-1) / large) * half
    return torch.where(x.abs() <= _NEAR, near, far.copysign(x))
