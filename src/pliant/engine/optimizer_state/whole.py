"""Forgets what optimizers remember of whole parameters, or of the entries of a parameter under a mask, as `rules` says.

    fresh   goes on as a newly built optimizer would, counts of steps included
    zero    averages and sizes 0, the count goes on
    counts  the count 0, averages and sizes go on: of Adam and its kin, which correct these by it
    keep    nothing is touched

State is written in place, so that a captured CUDA graph goes on with what it was captured with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from pliant.base.choices import one_of
from pliant.engine.attached import Optimizers, each_of
from pliant.engine.optimizer_state.rules import Rule, check_keys, layers, rule_of, settings_of
from pliant.engine.optimizer_state.young import YoungEntries

Policy = Literal["fresh", "zero", "keep"]
PolicyOrCounts = Literal["fresh", "zero", "counts", "keep"]

_FIRST_COUNTS = {"step": 0.0, "mu_product": 1.0, "mu": 1.0, "RMS": 0.0, "scale": 0.0}  # the others start at a setting
_COUNTS_OF_GROUP = ("k", "weight_sum", "lr_max")  # schedule-free's, one for all parameters of a group
_CORRECTED = Adam, AdamW, Adamax, NAdam, RAdam  # averages, by a count of steps
_OTHERWISE = "Use optimizer_state='keep', and build a new optimizer"


class WholeState:
    """What optimizers remember of some parameters, known to be forgettable."""

    def __init__(
        self, optimizer: Optimizers | None, parameters: Sequence[nn.Parameter], policy: PolicyOrCounts
    ) -> None:
        one_of("optimizer_state", policy, get_args(PolicyOrCounts))
        given = () if optimizer is None else each_of(optimizer)
        optimizers = [layer for each in given for layer in layers(each)]
        self.policy, self.parameters = policy, set(parameters)
        self.held = [
            (each, settings, [p for p in settings["params"] if p in self.parameters])
            for each in optimizers
            for settings in each.param_groups
        ]
        if optimizers and not any(mine for _, _, mine in self.held):
            raise ValueError("the optimizer given steps none of these parameters; pass the one that does, or none")
        if policy != "keep":
            for each, settings, mine in self.held:
                self._check(each, settings, mine)
        for each in given if policy == "counts" else ():
            if not any(isinstance(layer, _CORRECTED) for layer in layers(each)):
                raise ValueError(
                    f"optimizer_state='counts': {type(each).__name__} corrects no averages by a count of steps, as Adam, AdamW, "
                    f"Adamax, NAdam and RAdam do: use 'fresh'"
                )

    def _check(self, optimizer: Optimizer, settings: dict[str, Any], mine: Sequence[nn.Parameter]) -> None:
        rule = rule_of(optimizer, _OTHERWISE) if mine else Rule()
        for parameter in mine:
            check_keys(optimizer, rule, parameter, _OTHERWISE)
        if mine and not settings.get("train_mode", True) and any(p in optimizer.state for p in mine):
            raise ValueError(
                f"{type(optimizer).__name__} is in eval mode, where parameters hold averages: call optimizer.train() first"
            )
        if self.policy == "fresh" and "weight_sum" in settings and 0 < len(mine) < len(settings["params"]):
            raise ValueError(
                f"{type(optimizer).__name__} counts steps for all parameters of a group, of which only some start over. Give "
                f"them a group of their own, or use optimizer_state='zero'"
            )

    def forget(self) -> None:
        """Forget it. The parameters have their new values."""
        for optimizer, settings, mine in self.held if self.policy != "keep" else ():
            if not mine or (self.policy == "counts" and not isinstance(optimizer, _CORRECTED)):
                continue
            rule = rule_of(optimizer, _OTHERWISE)
            for parameter in mine:
                if parameter in optimizer.state:
                    self._forget(rule, settings, parameter, optimizer.state[parameter])
            if self.policy == "fresh":
                settings.update({key: optimizer.defaults[key] for key in _COUNTS_OF_GROUP if key in settings})
            if self.policy != "zero":
                _look_at_counts_again(optimizer, rule)
            stepped = {p for each in optimizer.param_groups for p in each["params"]}
            if self.policy == "fresh" and rule.restarts and stepped <= self.parameters:
                getattr(optimizer, rule.restarts)()

    def _forget(self, rule: Rule, settings: dict[str, Any], parameter: nn.Parameter, state: dict[str, Any]) -> None:
        undampened = self.policy == "fresh" and settings.get("momentum") and settings.get("dampening")
        for key, held in state.items():
            if key in rule.shared:
                if self.policy != "zero":
                    state[key] = _filled(held, _FIRST_COUNTS.get(key, settings["lr"]))
            elif self.policy == "counts":
                continue
            elif key == "momentum_buffer" and undampened:
                state[key] = None  # its first step is undampened only without a buffer
            elif key in rule.value:
                held.copy_(parameter)
            else:
                start = settings[rule.start[key]] if rule.start and key in rule.start else 0.0
                state[key] = _filled(held, start)


def _filled(held: Any, value: Any) -> Any:
    """`value` in the place of what is held, in its own memory if it has any."""
    if held is None:
        return None
    return held.copy_(torch.as_tensor(value)) if isinstance(held, Tensor) else type(held)(value)


def _look_at_counts_again(optimizer: Optimizer, rule: Rule) -> None:
    """Entries that count their own steps are compared with their parameter's count, which has changed."""
    if rule.counted is not None:
        young = YoungEntries.of(optimizer, rule.counted)
        young.join(optimizer, ())
        young.leave(optimizer)


@torch.no_grad()
def forget_entries(
    optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor, policy: Literal["fill", "zero", "keep"] = "fill"
) -> None:
    """Forget what `optimizer` remembers of the entries of `parameter` where `mask`, of its shape, is True.

    Their new values are in place. Averages become 0; sizes of gradients 0, or with "fill" the mean over the other entries (a
    small size under a count of steps that goes on makes large first steps); copies of the parameter its new value. What all
    entries share goes on, and so does state of another shape (Adafactor's sums over rows and columns).

    Raises `ValueError` where no rule says how.

    >>> weight = nn.Parameter(torch.ones(3))
    >>> optimizer = torch.optim.Adam([weight])
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> forget_entries(optimizer, weight, torch.tensor([True, False, False]), policy="zero")
    >>> optimizer.state[weight]["exp_avg"].tolist() == [0.0, *optimizer.state[weight]["exp_avg"][1:].tolist()]
    True
    """
    if one_of("policy", policy, ("fill", "zero", "keep")) == "keep":
        return
    for layer in layers(optimizer):
        _forget_entries(layer, parameter, mask, policy)


def _forget_entries(
    optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor, policy: Literal["fill", "zero", "keep"]
) -> None:
    rule, state = rule_of(optimizer, _OTHERWISE), optimizer.state.get(parameter, {})
    check_keys(optimizer, rule, parameter, _OTHERWISE)
    for key, held in state.items():
        if not isinstance(held, Tensor) or key in rule.shared or held.shape != parameter.shape:
            continue
        if key in rule.value:
            fresh = parameter.detach()
        elif rule.start is not None and key in rule.start:
            fresh = torch.full_like(held, settings_of(optimizer, parameter)[rule.start[key]])
        elif policy == "fill" and key in (*rule.size, *rule.peak):
            others = (~mask).sum().clamp(min=1)
            fresh = (torch.where(mask, 0.0, held).sum() / others).expand_as(held)
        else:
            fresh = torch.zeros_like(held)
        held.copy_(torch.where(mask, fresh, held))
