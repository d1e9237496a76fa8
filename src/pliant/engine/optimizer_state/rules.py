"""What each optimizer remembers about a weight, by kind: one table for all who forget it. Add a line for one of your own.

    average   of gradients, or of steps: 0
    size      of gradients: 0, or filled
    peak      largest size so far: like size
    value     a copy of the parameter: its new value
    start     what the optimizer starts it at, from the setting named
    shared    by all entries of the parameter: goes on where only some entries are forgotten

`units` forgets what belongs to replaced units, `whole` what belongs to whole parameters or to the entries under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from pliant.engine.attached import wrapped
from pliant.engine.optimizer_state.young import Averages

Policy = Literal["fresh", "fill", "zero", "keep"]


@dataclass(frozen=True)
class Rule:
    """State keys of an optimizer by kind; `start` maps a key to the setting that it starts from."""

    average: tuple[str, ...] = ()
    size: tuple[str, ...] = ()
    peak: tuple[str, ...] = ()
    value: tuple[str, ...] = ()
    shared: tuple[str, ...] = ("step",)
    start: Mapping[str, str] | None = None
    counted: Averages | None = None  # what "fresh" counts by entry
    lacks: Mapping[str, int] | None = None  # the axis of the parameter that a key's state does without
    fills: bool = False  # "fresh" cannot be exact
    restarts: str = ""  # a method of the optimizer, called where all of its parameters start over
    note: str = ""

    @property
    def keys(self) -> set[str]:
        return {*self.average, *self.size, *self.peak, *self.value, *self.shared, *(self.start or {})}


_ADAM = Averages("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_FREE = Averages(None, "exp_avg_sq", count="k", decay_in_gradient=False)
_X = "the average x starts at a unit's new value and goes on with the weights that all entries share"
_WHOLE = "experimental: every entry of a matrix takes part in every other's step"
_LIKE_ADAM = Rule(("exp_avg",), ("exp_avg_sq",), ("max_exp_avg_sq",), fills=True)

RULES: dict[str, Rule] = {  # package.class
    "torch.SGD": Rule(average=("momentum_buffer",)),
    "torch.Adam": Rule(("exp_avg",), ("exp_avg_sq",), ("max_exp_avg_sq",), counted=_ADAM),
    "torch.AdamW": Rule(("exp_avg",), ("exp_avg_sq",), ("max_exp_avg_sq",), counted=replace(_ADAM, decay_in_gradient=False)),
    "torch.Adamax": Rule(("exp_avg",), ("exp_inf",), counted=Averages("exp_avg", None, decay_in_gradient=True)),
    "torch.NAdam": Rule(("exp_avg",), ("exp_avg_sq",), shared=("step", "mu_product"), fills=True),
    "torch.RAdam": Rule(("exp_avg",), ("exp_avg_sq",), fills=True),
    "torch.RMSprop": Rule(("momentum_buffer", "grad_avg"), ("square_avg",), note="a fresh unit's first step is up to "
                          "1 / sqrt(1 - alpha) step sizes, as RMSprop's own; optimizer_state='fill' avoids it"),
    "torch.Adadelta": Rule(("acc_delta",), ("square_avg",)),
    "torch.Adagrad": Rule(start={"sum": "initial_accumulator_value"}, note="the decay of the step size by lr_decay goes on"),
    "torch.Rprop": Rule(("prev",), start={"step_size": "lr"}),
    "torch.ASGD": Rule(value=("ax",), shared=("step", "eta", "mu"), note="the decay of the step size goes on"),
    "torch.Adafactor": Rule(size=("row_var", "col_var", "variance"), fills=True),
    "transformers.Adafactor": Rule(("exp_avg",), ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"), shared=("step", "RMS"),
                                   lacks={"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}, fills=True),
    "torch.Muon": Rule(("momentum_buffer",), note=_WHOLE),
    "pliant.UPGD": Rule(("avg_utility",), note="the utility of a fresh weight grows from 0 as that of an old one would, and is "
                        "compared with the largest of all"),
    "pliant.ObGD": Rule(("trace",), ("exp_avg_sq",), fills=True, note="the bound of a step is of all parameters together"),
    "pliant.TRAC": Rule(("displacement",), value=("start",), shared=("scale",), restarts="restart", note="how far to follow the "
                        "inner optimizer is learned of all parameters together"),
    "schedulefree.SGDScheduleFree": Rule(value=("z",), note=_X),
    "schedulefree.AdamWScheduleFree": Rule(size=("exp_avg_sq",), value=("z",), counted=_FREE, note=_X),
    "schedulefree.RAdamScheduleFree": Rule(size=("exp_avg_sq",), value=("z",), fills=True, note=_X),
    "timm.AdaBelief": Rule(("exp_avg",), ("exp_avg_var",), ("max_exp_avg_var",), fills=True),
    "timm.AdamP": _LIKE_ADAM,
    "timm.AdamWLegacy": _LIKE_ADAM,
    "timm.Adan": Rule(("exp_avg", "exp_avg_diff", "neg_pre_grad"), ("exp_avg_sq",), shared=(), fills=True,
                      note="a fresh unit's first gradient counts as the first difference too"),
    "timm.Adopt": _LIKE_ADAM,
    "timm.Kron": Rule(("momentum_buffer",), shared=("step", "update_counter", "Q"), note=_WHOLE),
    "timm.Lamb": replace(_LIKE_ADAM, shared=(), note="the trust ratio is of the whole parameter"),
    "timm.LaProp": replace(_LIKE_ADAM, shared=("step", "exp_avg_lr_1", "exp_avg_lr_2")),
    "timm.Lars": Rule(("momentum_buffer",), shared=(), note="the trust ratio is of the whole parameter"),
    "timm.Lion": Rule(("exp_avg",), shared=()),
    "timm.MADGRAD": Rule(("s",), ("grad_sum_sq",), value=("x0",), fills=True),
    "timm.Mars": Rule(("exp_avg", "last_grad"), ("exp_avg_sq",), fills=True),
    "timm.Muon": Rule(("momentum_buffer", "exp_avg"), ("exp_avg_sq",), shared=("step", "use_muon"), fills=True, note=_WHOLE),
    "timm.NAdamLegacy": replace(_LIKE_ADAM, shared=("step", "m_schedule")),
    "timm.NAdamW": _LIKE_ADAM,
    "timm.NvNovoGrad": Rule(("exp_avg",), shared=("step", "exp_avg_sq")),
    "timm.RAdamLegacy": _LIKE_ADAM,
    "timm.RMSpropTF": Rule(("momentum_buffer", "grad_avg"), ("square_avg",), fills=True),
    "timm.SGDP": Rule(("momentum",), shared=()),
    "timm.SGDW": Rule(("momentum_buffer",), shared=()),
}  # fmt: skip


def rule_of(optimizer: Optimizer, otherwise: str) -> Rule:
    """The optimizer's rule: its class's, or that of a class that it takes its step from. Raises `ValueError` where there is
    none, which says what to do `otherwise`."""
    kind = type(optimizer)
    known = next((each for each in kind.__mro__ if _name(each) in RULES), None)
    if known is None:
        names = ", ".join(dict.fromkeys(each.partition(".")[2] for each in RULES))
        raise ValueError(
            f"no rule to forget the state of {kind.__name__}{_inside(optimizer)} (known: {names}). {otherwise}"
        )
    for method in ("step", "_init_group"):  # what decides which state there is
        if _plain(kind, method) is not _plain(known, method):
            raise ValueError(
                f"no rule to forget the state of {kind.__name__}, a {known.__name__} with a {method}() of its own, which may "
                f"store something else: give a plain {known.__name__}, and do outside of it what {method}() adds. {otherwise}"
            )
    return RULES[_name(known)]


def _name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _plain(kind: type, method: str) -> object:
    """A method of a class without what PyTorch wraps it in."""
    found = getattr(kind, method, None)
    return None if found is None else unwrap(found)


def _inside(optimizer: Optimizer) -> str:
    """Of an optimizer that steps another one."""
    found = wrapped(optimizer)
    return "" if found is None else f", which holds another one, {type(found[1]).__name__}: give its .{found[0]}"


def check_keys(optimizer: Optimizer, rule: Rule, parameter: nn.Parameter, otherwise: str, of: str = "") -> None:
    """Raise `ValueError` if the optimizer keeps something for the parameter of which the rule says nothing."""
    unknown = sorted(set(optimizer.state.get(parameter, {})) - rule.keys)
    if unknown:
        raise ValueError(
            f"{type(optimizer).__name__} keeps {', '.join(map(repr, unknown))}{of}, and no rule says how to forget it. "
            f"{otherwise}"
        )


def layers(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """The optimizer, and those inside of it, which remember something about the same parameters too."""
    found = wrapped(optimizer)
    return (optimizer,) if found is None else (optimizer, *layers(found[1]))


def settings_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The settings a parameter is stepped with now: loading a state or a schedule may have replaced them."""
    return next(each for each in optimizer.param_groups if any(p is parameter for p in each["params"]))
