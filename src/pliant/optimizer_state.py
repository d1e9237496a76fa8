"""What each torch optimizer remembers about a weight, and how to forget it.

A replaced unit must not be moved by the momentum of its predecessor. Policies:

    fresh   the touched entries go on exactly as in an optimizer built at the moment of the reset
    fill    first moments 0; second moments the mean over the parameter's other entries
    zero    all moments 0, the step counter that entries share goes on (small second moments under a large
            counter: up to 6.6 step sizes at once, with Adam's defaults)
    keep    nothing is touched (to replicate codes that did so)

Adam counts steps per parameter, not per entry, so "fresh" redoes the step of young entries from their own moments,
with τ steps since their reset:

    p = p_before (1 - α λ, if decay is decoupled) - α [m / (1 - β1^τ)] / (sqrt(v / (1 - β2^τ)) + ε)

An entry lies between two units and is as young as the younger one. It is young until both corrections are
1 to rounding; the parameter's shared counter serves it from then on. With AMSGrad v is the entry's own maximum.

Source: Kingma and Ba, ICLR 2015, algorithm 1, entry by entry. Scaling the shared step instead errs by 36% at gradients
of 1e-8, where fresh units begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pliant.replacement import blend
from pliant.units.bound import BoundGroup, Chosen
from pliant.units.map import Slice
from pliant.utility import weight_seen

Policy = Literal["fresh", "fill", "zero", "keep"]

FIRST_MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("exp_avg",),
    AdamW: ("exp_avg",),
}
SECOND_MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: (),
    Adam: ("exp_avg_sq", "max_exp_avg_sq"),
    AdamW: ("exp_avg_sq", "max_exp_avg_sq"),
}


@dataclass(eq=False)
class _Youth:
    """The young entries of one parameter: steps since the reset of each unit that a slice belongs to, inf = never."""

    parts: list[tuple[BoundGroup, Slice]] = field(default_factory=list[tuple[BoundGroup, Slice]])
    since: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # index in `parts` -> (runs, units)
    before: Tensor | None = None
    steps_left: int = 0  # host: steps until every entry is of age


class OptimizerState:
    """Forgets the optimizer state of replaced units by one policy."""

    def __init__(self, policy: Policy = "fresh") -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"unknown optimizer_state '{policy}'; known: {', '.join(get_args(Policy))}")
        self.policy = policy

    def bind(self, optimizers: Sequence[Optimizer], groups: Iterable[BoundGroup]) -> None:
        """Look every parameter up in its optimizer. Raises `ValueError` where one has none, or a rule is missing."""
        self._home = {
            id(p): (each, settings) for each in optimizers for settings in each.param_groups for p in settings["params"]
        }
        self._youth: dict[nn.Parameter, _Youth] = {}
        for group in groups:
            for part in group.slices():
                parameter = group.parameter(part.parameter)
                if id(parameter) not in self._home:
                    raise ValueError(
                        f"group '{group.name}': no optimizer given steps '{part.parameter}'. Pass the optimizer that was built "
                        f"from this model's parameters, or leave the group out"
                    )
                self._check(*self._home[id(parameter)])
                self._youth.setdefault(parameter, _Youth()).parts.append((group, part))

    def _check(self, optimizer: Optimizer, settings: dict[str, Any]) -> None:
        kind = type(optimizer)
        if self.policy != "keep" and kind not in FIRST_MOMENTS:
            known = ", ".join(each.__name__ for each in FIRST_MOMENTS)
            raise ValueError(
                f"no rule to forget the state of {kind.__name__} (known: {known}). Use one of them, "
                f"or optimizer_state='keep' to leave stale state in replaced units"
            )
        if self.policy == "fresh" and kind is SGD and settings["momentum"] and settings["dampening"]:
            raise ValueError(
                "optimizer_state='fresh' cannot restart SGD momentum with dampening (its first step is undampened). "
                "Use dampening=0, or optimizer_state='zero'"
            )

    def optimizer_of(self, parameter: nn.Parameter) -> Optimizer:
        return self._home[id(parameter)][0]

    # -- forgetting ---------------------------------------------------------------------------------------------

    def forget(self, group: BoundGroup, chosen: Chosen) -> None:
        """Forget what is remembered about the chosen units' entries."""
        if self.policy == "keep":
            return
        for part in group.slices():
            parameter = group.parameter(part.parameter)
            optimizer, settings = self._home[id(parameter)]
            state: dict[str, Any] = optimizer.state.get(parameter, {})
            for name in FIRST_MOMENTS[type(optimizer)]:
                self._write(group, part, chosen, state.get(name), fill=False)
            for name in SECOND_MOMENTS[type(optimizer)]:
                self._write(group, part, chosen, state.get(name), fill=self.policy == "fill")
            if self.policy == "fresh" and "exp_avg" in state:
                self._rejuvenate(group, part, chosen, parameter, settings)

    def _write(self, group: BoundGroup, part: Slice, chosen: Chosen, memory: Tensor | None, *, fill: bool) -> None:
        if memory is None:
            return
        view = group.view(part, memory)
        view[chosen.where] = blend(view[chosen.where], 0.0, chosen.strength)
        if fill:
            others = torch.ones_like(view)
            others[chosen.where] = 0.0
            axes = tuple(range(1, view.dim()))
            mean = (view * others).sum(axes) / others.sum(axes).clamp(min=1.0)
            held = view[chosen.where]
            view[chosen.where] = held + (chosen.strength * mean[chosen.runs]).reshape(-1, *[1] * (held.dim() - 1))

    def _rejuvenate(
        self, group: BoundGroup, part: Slice, chosen: Chosen, parameter: nn.Parameter, settings: dict[str, Any]
    ) -> None:
        youth = self._youth[parameter]
        index = youth.parts.index((group, part))
        since = youth.since.setdefault(index, torch.full_like(group.age, inf, dtype=torch.float32))
        since[chosen.where] = torch.where(chosen.strength >= 1.0, 0.0, since[chosen.where])
        youth.steps_left = _steps_of_youth(settings["betas"], parameter.dtype)

    # -- Adam, fresh: the step of young entries is redone ---------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """Keep what the step of young entries starts from."""
        for parameter, youth in self._young(optimizer):
            youth.before = parameter.detach().clone()

    def after_step(self, optimizer: Optimizer) -> None:
        """Redo the step of young entries with their own count of steps."""
        for parameter, youth in self._young(optimizer):
            if parameter.grad is not None and youth.before is not None:
                for since in youth.since.values():
                    since.add_(1.0)
                self._redo(parameter, youth, youth.before)
                youth.steps_left -= 1
            youth.before = None

    def _young(self, optimizer: Optimizer) -> list[tuple[nn.Parameter, _Youth]]:
        return [
            (parameter, youth)
            for parameter, youth in self._youth.items()
            if youth.steps_left and self.optimizer_of(parameter) is optimizer
        ]

    def _redo(self, parameter: nn.Parameter, youth: _Youth, before: Tensor) -> None:
        optimizer, settings = self._home[id(parameter)]
        state: dict[str, Any] = optimizer.state[parameter]
        first, second = (self._correction(youth, parameter, beta) for beta in settings["betas"])
        variance = state["max_exp_avg_sq"] if settings["amsgrad"] else state["exp_avg_sq"]
        size = settings["lr"]
        if type(optimizer) is AdamW or settings.get("decoupled_weight_decay", False):
            before = before * (1.0 - size * settings["weight_decay"])
        fresh = before - size * (state["exp_avg"] / first) / (variance.sqrt() / second.sqrt() + settings["eps"])
        target = parameter.detach()
        target.copy_(torch.where((first < 1.0) | (second < 1.0), fresh, target))

    def _correction(self, youth: _Youth, parameter: nn.Parameter, beta: float) -> Tensor:
        """1 - β^τ for every entry, τ of the younger of its units; 1 where neither was ever reset."""
        correction = torch.ones_like(parameter)
        for index, since in youth.since.items():
            group, part = youth.parts[index]
            view = group.view(part, correction)
            of_unit = weight_seen(since, float(beta), torch.promote_types(parameter.dtype, torch.float32))
            view.copy_(torch.minimum(view, of_unit.reshape(*of_unit.shape, *[1] * (view.dim() - 2))))
        return correction

    # -- memory ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Steps since the reset of each unit, for every slice that has a young entry or had one."""
        return {
            f"{group.name}|{part.parameter}": {"since": youth.since[index].clone(), "steps_left": youth.steps_left}
            for youth in self._youth.values()
            for index, (group, part) in enumerate(youth.parts)
            if index in youth.since
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for youth in self._youth.values():
            youth.since, youth.steps_left, youth.before = {}, 0, None
            for index, (group, part) in enumerate(youth.parts):
                held = state.get(f"{group.name}|{part.parameter}")
                if held is not None:
                    youth.since[index] = held["since"].to(group.age.device, copy=True)
                    youth.steps_left = int(held["steps_left"])

    def to(self, device: torch.device) -> None:
        for youth in self._youth.values():
            youth.since = {index: since.to(device) for index, since in youth.since.items()}


def _steps_of_youth(betas: tuple[float, float], dtype: torch.dtype) -> int:
    """Steps until 1 - β^τ rounds to 1 for both averages (16,636 for β2 = 0.999 in float32)."""
    slowest = max(map(float, betas))
    return 1 if slowest == 0.0 else ceil(log(torch.finfo(dtype).eps / 2) / log(slowest))
