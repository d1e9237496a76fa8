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
from typing import Any, ClassVar, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.hooks import RemovableHandle

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


class OptimizerState:
    """Forgets the optimizer state of replaced units by one policy."""

    def __init__(self, policy: Policy = "fresh") -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"unknown optimizer_state '{policy}'; known: {', '.join(get_args(Policy))}")
        self.policy: Policy = policy

    def bind(self, optimizers: Sequence[Optimizer], groups: Sequence[BoundGroup]) -> None:
        """Look every parameter up in its optimizer. Raises `ValueError` where one has none or two, or a rule is missing."""
        self._groups = list(groups)
        self._home: dict[nn.Parameter, Optimizer] = {}
        for optimizer in optimizers:
            for parameter in (p for settings in optimizer.param_groups for p in settings["params"]):
                if self._home.setdefault(parameter, optimizer) is not optimizer:
                    raise ValueError("a parameter is stepped by two of the optimizers given; each must have its own")
        for group in self._groups:
            for part in group.slices():
                self._check(group, part)
        self._young = {
            optimizer: YoungEntries.of(optimizer)
            for optimizer in {
                self._home[group.parameter(part.parameter)] for group in groups for part in group.slices()
            }
            if _counts_by_entry(self.policy, optimizer)
        }
        for optimizer, young in self._young.items():
            young.join(optimizer)

    def detach(self) -> None:
        """Leave the optimizers alone from here on."""
        for optimizer, young in self._young.items():
            young.leave(optimizer)
        self._young = {}

    def _check(self, group: BoundGroup, part: Slice) -> None:
        optimizer = self._home.get(group.parameter(part.parameter))
        if optimizer is None:
            raise ValueError(
                f"group '{group.name}': no optimizer given steps '{part.parameter}'. Pass the optimizer that was built "
                f"from this model's parameters, or leave the group out"
            )
        kind = type(optimizer)
        if self.policy != "keep" and kind not in FIRST_MOMENTS:
            known = ", ".join(each.__name__ for each in FIRST_MOMENTS)
            raise ValueError(
                f"no rule to forget the state of {kind.__name__} (known: {known}). Use one of them, "
                f"or optimizer_state='keep' to leave stale state in replaced units"
            )
        settings = _settings(optimizer, group.parameter(part.parameter))
        if self.policy == "fresh" and kind is SGD and settings["momentum"] and settings["dampening"]:
            raise ValueError(
                "optimizer_state='fresh' cannot restart SGD momentum with dampening (its first step is undampened). "
                "Use dampening=0, or optimizer_state='zero'"
            )

    def optimizer_of(self, parameter: nn.Parameter) -> Optimizer:
        return self._home[parameter]

    def forget(self, group: BoundGroup, chosen: Chosen) -> None:
        """Forget what is remembered about the chosen units' entries."""
        if self.policy == "keep":
            return
        for index, part in enumerate(group.slices()):
            parameter = group.parameter(part.parameter)
            optimizer = self._home[parameter]
            state: dict[str, Any] = optimizer.state.get(parameter, {})
            for name in FIRST_MOMENTS[type(optimizer)]:
                self._write(group, part, chosen, state.get(name), fill=False)
            for name in SECOND_MOMENTS[type(optimizer)]:
                self._write(group, part, chosen, state.get(name), fill=self.policy == "fill")
            if optimizer in self._young and state:
                self._young[optimizer].rejuvenate(optimizer, group, index, chosen)

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

    def state_dict(self) -> dict[str, Any]:
        """Steps since the reset of each unit, for every slice that has a young entry or had one."""
        return {key: held for young in self._young.values() for key, held in young.state_of(self._groups).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group in self._groups:
            for young in self._young.values():
                young.drop(group)
            for index, part in enumerate(group.slices()):
                optimizer = self._home[group.parameter(part.parameter)]
                held = state.get(f"{group.name}|{index}")
                if held is not None and optimizer in self._young:
                    self._young[optimizer].load(group, index, held)


def _counts_by_entry(policy: Policy, optimizer: Optimizer) -> bool:
    """Whether entries must be stepped by their own count: only Adam's steps depend on it."""
    return policy == "fresh" and "exp_avg" in FIRST_MOMENTS[type(optimizer)]


@dataclass(eq=False)
class _Youth:
    """The young entries of one parameter: steps since the reset of each unit that a slice belongs to, inf = never."""

    since: dict[tuple[BoundGroup, int], Tensor] = field(default_factory=dict[tuple[BoundGroup, int], Tensor])
    before: Tensor | None = None
    steps_left: int = 0  # host: steps until every entry is of age


class YoungEntries:
    """The entries of one Adam that were reset not long ago, and the hooks that redo their steps.

    One for each optimizer, shared by all methods attached to it; its hooks run before any method's own.
    """

    _of: ClassVar[WeakKeyDictionary[Optimizer, YoungEntries]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.users = 0
        self._youth: dict[nn.Parameter, _Youth] = {}
        self._handles: list[RemovableHandle] = []

    @classmethod
    def of(cls, optimizer: Optimizer) -> YoungEntries:
        """The one of this optimizer."""
        return cls._of.setdefault(optimizer, cls())

    def join(self, optimizer: Optimizer) -> None:
        """One more method relies on it."""
        self.users += 1
        if self.users == 1:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def leave(self, optimizer: Optimizer) -> None:
        """One method less. After the last, the shared counter serves all entries, whose moments are scaled to fit it."""
        self.users -= 1
        if self.users == 0:
            for parameter in self._youth:
                self._come_of_age(optimizer, parameter)
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._youth.clear()

    def rejuvenate(self, optimizer: Optimizer, group: BoundGroup, index: int, chosen: Chosen) -> None:
        """The chosen units' entries in slice number `index` of the group begin anew."""
        parameter = group.parameter(group.slices()[index].parameter)
        youth = self._youth.setdefault(parameter, _Youth())
        if (group, index) not in youth.since:
            youth.since[group, index] = torch.full_like(group.age, inf, dtype=torch.float32)
        since = youth.since[group, index]
        since[chosen.where] = torch.where(chosen.strength >= 1.0, 0.0, since[chosen.where])
        youth.steps_left = _steps_of_youth(_settings(optimizer, parameter)["betas"], parameter.dtype)

    def state_of(self, groups: Iterable[BoundGroup]) -> dict[str, Any]:
        """What there is of these groups, by group and number of slice."""
        mine = {id(group) for group in groups}
        return {
            f"{group.name}|{index}": {"since": since.clone(), "steps_left": youth.steps_left}
            for youth in self._youth.values()
            for (group, index), since in youth.since.items()
            if id(group) in mine
        }

    def load(self, group: BoundGroup, index: int, held: dict[str, Any]) -> None:
        parameter = group.parameter(group.slices()[index].parameter)
        youth = self._youth.setdefault(parameter, _Youth())
        youth.since[group, index] = held["since"].to(parameter.device, copy=True)
        youth.steps_left = max(youth.steps_left, int(held["steps_left"]))

    def drop(self, group: BoundGroup) -> None:
        """Forget what is known of a group's entries."""
        for youth in self._youth.values():
            youth.since = {key: since for key, since in youth.since.items() if key[0] is not group}

    # -- the step of young entries is redone ----------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        for parameter, youth in self._youth.items():
            youth.before = parameter.detach().clone() if youth.steps_left else None

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)  # a fused step that a GradScaler skipped
        for parameter, youth in self._youth.items():
            if youth.before is not None and parameter.grad is not None:
                stepped = torch.ones((), device=parameter.device)
                if found_inf is not None:
                    stepped = 1.0 - found_inf.to(parameter.device).reshape(())
                youth.since = {key: since.to(parameter.device) + stepped for key, since in youth.since.items()}
                self._redo(optimizer, parameter, youth, youth.before, stepped)
                youth.steps_left -= 1
            youth.before = None

    def _redo(
        self, optimizer: Optimizer, parameter: nn.Parameter, youth: _Youth, before: Tensor, stepped: Tensor
    ) -> None:
        settings, state = _settings(optimizer, parameter), optimizer.state[parameter]
        first, second = (_correction(youth, parameter, beta, state["step"]) for beta in settings["betas"])
        variance = state["max_exp_avg_sq"] if settings["amsgrad"] else state["exp_avg_sq"]
        size = settings["lr"]
        if type(optimizer) is AdamW or settings.get("decoupled_weight_decay", False):
            before = before * (1.0 - size * settings["weight_decay"])
        fresh = before - size * (state["exp_avg"] / first) / (variance.sqrt() / second.sqrt() + settings["eps"])
        target = parameter.detach()
        young = ((first < 1.0) | (second < 1.0)) & (stepped > 0)
        target.copy_(torch.where(young, fresh, target))

    @torch.no_grad()
    def _come_of_age(self, optimizer: Optimizer, parameter: nn.Parameter) -> None:
        """Scale moments so that the shared correction gives what the entry's own would: m (1 - β^step) / (1 - β^τ)."""
        youth, state = self._youth[parameter], optimizer.state.get(parameter)
        if not youth.steps_left or not state:
            return
        step = state["step"].to(parameter.device, torch.float32)
        moments = (("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq"))
        for names, beta in zip(moments, _settings(optimizer, parameter)["betas"], strict=True):
            own = _correction(youth, parameter, beta, state["step"])
            shared = weight_seen(step, float(beta), own.dtype)
            for name in names:
                if name in state:
                    moment: Tensor = state[name]
                    moment.copy_(torch.where((own < 1.0) & (own > 0.0), moment * shared / own, moment))


def _correction(youth: _Youth, parameter: nn.Parameter, beta: float, steps: Tensor) -> Tensor:
    """1 - β^τ for every entry, τ of the younger of its units, at most the optimizer's own steps; 1 where never reset."""
    correction = torch.ones_like(parameter)
    own_steps = steps.to(parameter.device, torch.float32)
    for (group, index), since in youth.since.items():
        view = group.view(group.slices()[index], correction)
        young = torch.where(since.isinf(), since, torch.minimum(since, own_steps))
        of_unit = weight_seen(young, float(beta), torch.promote_types(parameter.dtype, torch.float32))
        view.copy_(torch.minimum(view, of_unit.reshape(*of_unit.shape, *[1] * (view.dim() - 2))))
    return correction


def _settings(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The settings a parameter is stepped with now: loading a state or a schedule may have replaced them."""
    return next(each for each in optimizer.param_groups if any(p is parameter for p in each["params"]))


def _steps_of_youth(betas: tuple[float, float], dtype: torch.dtype) -> int:
    """Steps until 1 - β^τ rounds to 1 for both averages (16,628 for β2 = 0.999 in float32)."""
    slowest = max(map(float, betas))
    return 1 if slowest == 0.0 else ceil(log(torch.finfo(dtype).eps / 2) / log(slowest))
