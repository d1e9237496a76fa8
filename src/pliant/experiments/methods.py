"""The methods of all experiments, a row each: what figures call and color it, which fields it reads, how it is attached.

    row = Method(name, words, color, needs, reads, make)
    owners        field -> the methods that read it, the one that needs it first; of those methods that an experiment has
    attached      what a run's method is, once `make` has hung it on the network and the optimizer

A method that acts on a PyTorch network is one row here, and its name in the `method` of the experiments that offer it. What has
no `make` is no more than its fields: an optimizer's weight decay, a layer, an experiment's own way to start over. The
experiments on compiled learners (`pliant.online`) take name, words, color and fields from the rows, and give the learners
keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from pliant.lab import RunConfig, check_method, check_owners
from pliant.methods import L2, ContinualBackprop, RandomReplacement, ShrinkAndPerturb
from pliant.methods.continual_backprop import parameters_of

Utility = Literal[
    "contribution", "adaptable_contribution", "zero_contribution", "weight", "adaptation", "feature_by_input", "random"
]


class ReplacementConfig(RunConfig, frozen=True):
    """The fields of method cbp on a PyTorch network; those of Dohare et al. (2024) differ in `maturity_threshold`."""

    replacement_rate: float = Field(0.0, ge=0, le=1, description="share of mature units per step; method cbp")
    maturity_threshold: int = Field(100, ge=0, description="steps; method cbp")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages; method cbp")
    utility: Utility = Field("contribution", description="method cbp")
    eligible: Literal["mature", "all"] = Field("mature", description="of which units the rate is a share; method cbp")
    hand_over_mean: bool = Field(True, description="a replaced unit's mean goes to its consumers; method cbp")
    optimizer_state: Literal["fresh", "keep"] = Field("fresh", description="of replaced units; method cbp")


# -- how a method is attached ---------------------------------------------------------------------------------------


class Attached(Protocol):
    """A method that acts on a network as its optimizer steps."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def _no_units() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Site:
    """Where a run's method is attached.

    Args:
        network: what learns, a stack of runs where `runs` says so.
        optimizer: what steps it.
        config: of the run; of any of them, in a stack.
        seed: purpose ("fresh units", "noise") -> the seed of its random numbers, or those of the runs of a stack.
        units: gives the arguments of a reset of units (`groups` or `example_inputs`, `init`); asked only by such a method.
        runs: in the stack; None where the network is of one run.
        hooks: whether the method hangs on the optimizer; otherwise the experiment calls its `step()`.
        event: whether the experiment itself says when a method acts that changes whole parameters.
    """

    network: nn.Module
    optimizer: Optimizer
    config: Any
    seed: Callable[[str], int | Sequence[int]]
    units: Callable[[], Mapping[str, Any]] = _no_units
    runs: int | None = None
    hooks: bool = True
    event: bool = False


Maker: TypeAlias = Callable[[Site], Attached | None]


def _nothing(site: Site) -> None:
    return None


def _continual_backprop(site: Site) -> ContinualBackprop:
    settings: dict[str, Any] = {**parameters_of(site.config), **site.units()}
    return ContinualBackprop(site.network, site.optimizer, seed=site.seed("fresh units"), attach=site.hooks, **settings)


def _random_replacement(site: Site) -> RandomReplacement:
    settings: dict[str, Any] = {**parameters_of(site.config), **site.units()}
    known = {name: value for name, value in settings.items() if name not in ("utility", "eligible")}
    return RandomReplacement(site.network, site.optimizer, seed=site.seed("fresh units"), attach=site.hooks, **known)


def _l2_init(site: Site) -> L2:
    return L2(site.network, site.optimizer, strength=site.config.l2_init, toward="initial")


def _shrink_and_perturb(site: Site) -> ShrinkAndPerturb:
    return ShrinkAndPerturb(
        site.network,
        site.optimizer,
        noise_std=site.config.noise_std,
        shrink=getattr(site.config, "shrink", 1.0),  # elsewhere it is left to weight decay, as in Dohare et al. (2024)
        period=None if site.event else 1,
        seed=site.seed("noise"),
        runs=site.runs,
        attach=site.hooks,
    )


# -- the rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method, the same in every experiment that offers it.

    `needs` are the fields without which it would be another method, `reads` those that it may have besides; `color` is the one
    that it has in all figures.
    """

    name: str
    words: str
    color: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    make: Maker = _nothing
    is_own: bool = field(default=False, kw_only=True)  # of a user's file

    @property
    def acts(self) -> bool:
        """Whether something hangs on the network and its optimizer, made here."""
        return self.make is not _nothing


_CBP_READS = (
    "maturity_threshold",
    "decay_rate",
    "utility",
    "count",
    "eligible",
    "hand_over_mean",
    "optimizer_state",
)
_SNP_READS = ("weight_decay", "shrink")

METHODS: dict[str, Method] = {
    row.name: row
    for row in (  # colors of Okabe and Ito (2008) and of Tol (2021), told apart by the color-blind; greys for what is no rival
        Method("bp", "backprop", "#D55E00"),
        Method("adam", "Adam", "#CC79A7"),
        Method("l2", "L2", "#E69F00", ("weight_decay",)),
        Method("l2init", "L2 Init", "#DDCC77", ("l2_init",), make=_l2_init),
        Method("snp", "shrink+perturb", "#56B4E9", ("noise_std",), _SNP_READS, _shrink_and_perturb),
        Method("dropout", "dropout", "#999933", ("dropout",)),
        Method("onlinenorm", "online norm", "#882255", reads=("norm_decay", "norm_backward_decay")),
        Method("layernorm", "layer norm", "#009E73"),
        Method("cbp", "cbp", "#0072B2", ("replacement_rate",), _CBP_READS, _continual_backprop),
        Method("random", "random replacement", "#88CCEE", ("replacement_rate",), _CBP_READS, _random_replacement),
        Method("upgd", "UPGD", "#AA4499", reads=("sigma", "beta_utility")),
        Method("redo", "ReDo", "#117733", ("tau",), ("redo_period", "optimizer_state")),
        Method("head", "head reset", "#44AA99", reads=("reset",)),
        Method("linear", "linear", "#777777"),
        Method("fresh", "fresh network", "#444444"),
        Method("full", "new network", "#444444", reads=("reset",)),  # in another experiment what `fresh` is
        Method("ppo", "standard PPO", "#D55E00"),  # what `bp` is to agents
        Method("tuned-adam", "tuned Adam", "#CC79A7", reads=("beta1", "beta2")),
    )
}
FIELD_WORDS: dict[str, str] = {  # what figures call fields; "" where the value says it all
    "step_size": "",
    "weight_decay": "decay",
    "noise_std": "noise",
    "l2_init": "strength",
    "sigma": "σ",
    "dropout": "p",
    "replacement_rate": "rate",
    "tau": "tau",
    "beta1": "β₁",
    "beta2": "β₂",
}


def rows_of(names: Iterable[str]) -> list[Method]:
    """The rows of these methods; of names that no row has (a subclass's) there is none."""
    return [METHODS[name] for name in names if name in METHODS]


def readers(rows: Sequence[Method], name: str) -> tuple[str, ...]:
    """The methods that read a field, those that need it first.

    >>> readers(rows_of(["snp", "l2"]), "weight_decay")
    ('l2', 'snp')
    """
    needing = [row.name for row in rows if name in row.needs]
    return (*needing, *(row.name for row in rows if name in row.reads and row.name not in needing))


def owners(rows: Sequence[Method]) -> dict[str, tuple[str, ...]]:
    """Field -> the methods that read it, of the fields that make a method one.

    >>> owners(rows_of(["bp", "l2", "snp"]))
    {'weight_decay': ('l2', 'snp'), 'noise_std': ('snp',)}
    """
    return {name: readers(rows, name) for row in rows for name in row.needs}


def check_fields(config: RunConfig, known: Collection[str], **also: tuple[str, ...]) -> None:
    """Raise `ValueError` where a run sets a field that is another method's, or not the one that makes its own.

    `known` are the experiment's methods; `also`: field -> methods that read it in this experiment beside those of the rows.
    """
    check_owners(config, {name: (*own, *also.get(name, ())) for name, own in owners(rows_of(known)).items()})


def method_of(config: RunConfig, known: Collection[str]) -> Method:
    """The row of a run's method. Raises `LabError` where it is neither among the `known` nor a user's own."""
    own: Method | None = getattr(type(config), "own_method", None)
    if own is not None and own.name == config.method:
        return own
    check_method(config.method, known)
    return METHODS[config.method]


def replaced(method: object, runs: int = 1) -> list[int]:
    """Units that a method has replaced so far, of each run; 0 where it resets no units."""
    stats: Callable[[], Mapping[str, Mapping[str, Any]]] | None = getattr(method, "stats", None)
    groups = [] if stats is None else [group["replaced"] for group in stats().values() if "replaced" in group]
    return [sum(int(count) for count in of_run) for of_run in zip(*groups, strict=True)] if groups else [0] * runs
