"""PPO's settings, and the presets.

The tables of docs/ppo.md say what each setting is called in other libraries, and its value in each preset.

All presets but `modern` are those of Dohare et al., Nature 632 (2024), as their released code runs: Adam keeps the moments of
replaced units, a replaced unit's mean is not handed over, counts are drawn, a time limit ends an episode like a fall, actions are
not clipped before they are given to the environment, nothing is normalized but advantages. That code pads the ant's observations
to 111 with zeros; here this is an option of the environment.

`modern` is what PPO has become since (Huang et al., "The 37 implementation details of PPO", ICLR blog track, 2022): normalized
observations and rewards, bootstrapping from the last state at a time limit, clipped actions, advantages normalized in each
minibatch, gradients of at most norm 0.5. Its numbers are those of Huang et al. or of Dohare et al., but for `value_weight`: 0.5
of the squared error is Stable-Baselines3's. Huang et al.'s, and CleanRL's, is 0.5 of half the square, which would be 0.25 here.
No search was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, cast, get_args

from pliant.base.choices import did_you_mean, shortened, shown
from pliant.base.deprecation import renamed_arguments, renamed_attributes
from pliant.base.initial import INITS
from pliant.engine.optimizer_state import Policy
from pliant.engine.select import Count
from pliant.engine.utility import UTILITIES
from pliant.rl.ppo.activations import ACTIVATIONS

Method = Literal["none", "cbp", "redo"]
TimeLimit = Literal["terminal", "bootstrap"]
Normalize = Literal["none", "minibatch", "batch"]
RENAMED = {  # settings of the version before -> of this
    "normalise_advantages": "normalize_advantages",
    "normalise_observations": "normalize_observations",
    "normalise_rewards": "normalize_rewards",
}


@renamed_arguments(RENAMED)
@renamed_attributes(RENAMED)
@dataclass(frozen=True)
class Settings:
    """PPO's settings; the defaults are the standard PPO of Dohare et al. (2024).

    Raises `ValueError` for a value out of range and for a setting that would have no effect, `TypeError` for a wrong type.

    >>> Settings(hidden=(64, 64), step_size=1e-3).minibatch_size
    128
    """

    rollout_steps: int = 2048  # steps of each copy of the environment between updates
    epochs: int = 10  # per rollout
    minibatch_size: int = 128  # states of one agent; divides the states of a rollout
    hidden: tuple[int, ...] = (256, 256)  # units of the actor's layers, and of the critic's
    activation: str = "relu"
    init: str = (
        "lecun"  # distribution of all initial weights, output layers and fresh units included; biases start at 0
    )
    log_std: float = 0.0  # initial logarithm of the standard deviation of continuous actions

    discount: float = 0.99  # γ
    trace_decay: float = 0.95  # λ
    clip: float = 0.2  # of the probability ratio, ε
    value_weight: float = 1.0  # of the squared value error in the loss
    entropy_weight: float = 0.0
    normalize_advantages: Normalize = "batch"  # over the rollout, over each minibatch, or not
    advantage_epsilon: float = 0.0  # added to their standard deviation
    max_gradient_norm: float | None = None  # per agent; None does not clip
    time_limit: TimeLimit = "terminal"  # value of the last state before a time limit: 0, or the critic's ("bootstrap")

    normalize_observations: bool = False
    normalize_rewards: bool = False
    clip_actions: bool = False  # to the motors' limits, before they are given to the environment

    step_size: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0  # L2, coupled (a part of the gradient), of all parameters

    method: Method = "none"
    replacement_rate: float = 1e-4  # cbp: share of mature units per gradient step
    maturity_threshold: int = 10_000  # cbp: gradient steps
    decay_rate: float = 0.99  # cbp: of running averages
    utility: str = "contribution"  # cbp
    count: Count = "bernoulli"  # cbp
    hand_over_mean: bool = False  # cbp: add a replaced unit's mean contribution to the biases of its consumers
    tau: float = 0.1  # redo: share of the layer's mean activity
    period: int = 100  # redo: gradient steps
    optimizer_state: Policy = "keep"  # cbp, redo: what Adam keeps of replaced units

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, words = _NUMBERS.get(str(field.type), (object, ""))
            _check_type(field.name, getattr(self, field.name), kind, words)
        for name, kind, words in (("hidden", Integral, "a sequence of whole numbers"), ("betas", Real, "two numbers")):
            object.__setattr__(self, name, _row(name, getattr(self, name), kind, words))
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in ("rollout_steps", "epochs", "minibatch_size", "period"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("step_size", "clip", "adam_epsilon"):
            _check(
                self, name, getattr(self, name) > 0.0 and _fits(getattr(self, name)), "above 0, and finite in 32 bits"
            )
        not_negative = (
            "value_weight",
            "entropy_weight",
            "advantage_epsilon",
            "weight_decay",
            "maturity_threshold",
            "tau",
        )
        for name in not_negative:
            _check(
                self,
                name,
                getattr(self, name) >= 0.0 and _fits(getattr(self, name)),
                "0 or more, and finite in 32 bits",
            )
        for name in ("discount", "trace_decay", "replacement_rate"):
            _check(self, name, 0.0 <= getattr(self, name) <= 1.0, "in [0, 1]")
        _check(self, "decay_rate", 0.0 <= self.decay_rate < 1.0, "in [0, 1)")
        _check(self, "log_std", _fits(self.log_std), "finite in 32 bits")
        _check(self, "betas", len(self.betas) == 2 and all(0.0 <= beta < 1.0 for beta in self.betas), "two, in [0, 1)")
        _check(self, "hidden", bool(self.hidden) and min(self.hidden) >= 1, "at least one layer of at least 1 unit")
        norm = self.max_gradient_norm
        _check(self, "max_gradient_norm", norm is None or norm > 0.0, "above 0, or None")
        self._check_readers()

    def _check_readers(self) -> None:
        """Raise for a setting that the method does not use, unless it has its default."""
        for field in fields(self):
            readers = READ_BY.get(field.name)
            if readers and self.method not in readers and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"Settings: {field.name} = {getattr(self, field.name)!r} is read by method {' or '.join(readers)}, not "
                    f"{self.method}: leave it out, or change the method"
                )
        if self.normalize_advantages == "none" and self.advantage_epsilon:
            raise ValueError("Settings: advantage_epsilon needs normalize_advantages='batch' or 'minibatch'")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _fits(value: float) -> bool:
    """Whether it is finite in 32 bits, in which agents learn."""
    return abs(value) <= _LARGEST


_LARGEST = 3.4028234663852886e38  # of a number in 32 bits


def _check_choice(what: str, value: object, known: Sequence[str], likeness: float = 0.6) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"PPO: unknown {what} {shown(value)}{did_you_mean(value, known, likeness)}; known: {', '.join(known)}"
        )


def _check_type(name: str, value: object, kind: Any, wanted: str) -> None:
    if not _is_a(kind, value):
        raise TypeError(f"Settings: {name} must be {wanted}, got {shortened(repr(value))}")


def _is_a(kind: Any, value: object) -> bool:
    """Whether `value` is of that kind, where True and False are no numbers."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, object))


def _row(name: str, value: object, kind: type, wanted: str) -> tuple[Any, ...]:
    """`value` as a tuple, which can be hashed; a list is accepted."""
    several = isinstance(value, Iterable) and not isinstance(value, bytes | Mapping)
    held = tuple(cast(Iterable[Any], value)) if several else (None,)
    if not all(_is_a(kind, each) for each in held):
        raise TypeError(f"Settings: {name} must be {wanted}, got {shortened(repr(cast(object, value)))}")
    return held


def _check(settings: Settings, name: str, fits: bool, wanted: str) -> None:
    if not fits:
        raise ValueError(f"Settings: {name} must be {wanted}, got {shortened(repr(getattr(settings, name)))}")


_CHOICES: Mapping[str, Sequence[str]] = {
    "activation": tuple(ACTIVATIONS),
    "init": INITS,
    "normalize_advantages": get_args(Normalize),
    "time_limit": get_args(TimeLimit),
    "method": get_args(Method),
    "utility": tuple(UTILITIES),
    "count": get_args(Count),
    "optimizer_state": get_args(Policy),
}
_NUMBERS: Mapping[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "float | None": ((Real, NoneType), "a number, or None"),
    "bool": (bool, "True or False"),
}
READ_BY: Mapping[str, tuple[Method, ...]] = {
    **dict.fromkeys(("replacement_rate", "maturity_threshold", "decay_rate", "utility", "count", "hand_over_mean"), ("cbp",)),
    **dict.fromkeys(("tau", "period"), ("redo",)),
    "optimizer_state": ("cbp", "redo"),
}  # fmt: skip
ELSEWHERE: Mapping[str, str] = {  # what Stable-Baselines3, CleanRL and papers call a setting
    **dict.fromkeys(("learning_rate", "lr", "alpha"), "step_size"),
    **dict.fromkeys(("n_steps", "num_steps"), "rollout_steps"),
    **dict.fromkeys(("n_epochs", "update_epochs"), "epochs"),
    "batch_size": "minibatch_size",
    **dict.fromkeys(("net_arch", "policy_kwargs", "hidden_sizes"), "hidden"),
    **dict.fromkeys(("gae_lambda", "lam"), "trace_decay"),
    **dict.fromkeys(("clip_range", "clip_coef", "clip_eps"), "clip"),
    **dict.fromkeys(("normalize_advantage", "norm_adv"), "normalize_advantages"),
    **dict.fromkeys(("l2", "l2_weight"), "weight_decay"),
    "activation_fn": "activation",
    "log_std_init": "log_std",
    "gamma": "discount",
    "vf_coef": "value_weight",
    "ent_coef": "entropy_weight",
    "max_grad_norm": "max_gradient_norm",
    "eps": "adam_epsilon",
    "norm_obs": "normalize_observations",
    "norm_reward": "normalize_rewards",
}

_TUNED = Settings(betas=(0.99, 0.99))
PRESETS: Mapping[str, Settings] = {
    "ppo": Settings(),
    "ppo-tuned-adam": _TUNED,
    "ppo-l2": replace(_TUNED, weight_decay=1e-3),
    "ppo-cbp": replace(_TUNED, weight_decay=1e-4, method="cbp"),
    "ppo-redo": replace(_TUNED, weight_decay=1e-4, method="redo"),
    "modern": Settings(
        step_size=3e-4,
        value_weight=0.5,
        max_gradient_norm=0.5,
        normalize_advantages="minibatch",
        advantage_epsilon=1e-8,
        time_limit="bootstrap",
        normalize_observations=True,
        normalize_rewards=True,
        clip_actions=True,
        weight_decay=1e-4,
        method="cbp",
        count="accumulate",
        hand_over_mean=True,
        optimizer_state="fresh",
    ),
}


def preset(name: str, **changes: Any) -> Settings:
    """The preset of that name, with changes. Raises `ValueError` for an unknown name or setting, naming the nearest.

    >>> preset("ppo-cbp", replacement_rate=1e-3).betas
    (0.99, 0.99)
    """
    _check_choice("preset", name, tuple(PRESETS))
    for change in changes:
        if change in ELSEWHERE:
            raise ValueError(f"PPO: setting '{change}' is called {ELSEWHERE[change]} here (all of them: docs/ppo.md)")
        if change not in RENAMED:
            _check_choice("setting", change, tuple(field.name for field in fields(Settings)), likeness=0.65)
    return replace(PRESETS[name], **cast(Any, changes))
