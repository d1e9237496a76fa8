"""The methods of all experiments, a row each: what figures call and color it, which fields it reads, how it is attached.

    row = Method(name, words, color, needs, reads, make)
    owners        field -> the methods that read it, the one that needs it first; of those methods that an experiment has
    rivals        methods with a config of their own, which run where they are asked for by name

A method that acts on a PyTorch network is one row here, made in `makers`, and its name in the `method` of the experiments that
offer it, or, of a rival, in their `rivals`. What has no `make` is no more than its fields: an optimizer's weight decay, a layer,
an experiment's own way to start over. The experiments on compiled learners (`pliant.online`) take name, words, color and fields
from the rows, and give the learners keyword arguments; a rival's learner is `pliant.experiments.twin`.

The fields of a rival are in a class of configs of its own, as those of a user's method are: the shipped configs stay as they are,
and so do studies that were begun with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

from pliant.experiments import makers
from pliant.experiments.makers import Maker, StepMaker
from pliant.lab import RunConfig, check_method, check_owners

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


# The field `candidates` of method cbp, where fresh units can be compared; studies of before it go on: `added` says 0.
CANDIDATES: Any = Field(
    0, ge=0, description="draws of which the best becomes a fresh unit, 0: one, plainly; method cbp"
)


# -- the rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method, the same in every experiment that offers it.

    `needs` are the fields without which it would be another method, `reads` those that it may have besides; `color` is the one
    that it has in all figures. `fields` are those of a config of its own; such a method learns by itself, in no stack, and hangs
    on the optimizer. `stepped_by` puts its own optimizer in the place of the plain one.
    """

    name: str
    words: str
    color: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    make: Maker = makers.nothing
    fields: type[BaseModel] | None = field(default=None, kw_only=True)
    stepped_by: StepMaker = field(default=makers.plain_steps, kw_only=True)

    @property
    def is_own(self) -> bool:
        """Whether it has a config of its own."""
        return self.fields is not None

    @property
    def acts(self) -> bool:
        """Whether something hangs on the network and its optimizer, made here."""
        return self.make is not makers.nothing


_CBP_READS = (
    "maturity_threshold",
    "decay_rate",
    "utility",
    "count",
    "eligible",
    "hand_over_mean",
    "optimizer_state",
    "candidates",
)
_SNP_READS = ("weight_decay", "shrink")
OPTIONAL = ("candidates",)  # fields that the methods that read them can do without: 0 where they are not set


def _rival(
    name: str,
    words: str,
    color: str,
    fields: type[BaseModel],
    make: Maker = makers.nothing,
    stepped_by: StepMaker = makers.plain_steps,
    needs: tuple[str, ...] = (),
) -> Method:
    return Method(name, words, color, needs, make=make, fields=fields, stepped_by=stepped_by)


METHODS: dict[str, Method] = {
    row.name: row
    for row in (  # colors of Okabe and Ito (2008) and of Tol (2021), told apart by the color-blind; greys for what is no rival
        Method("bp", "backprop", "#D55E00"),
        Method("adam", "Adam", "#CC79A7"),
        Method("l2", "L2", "#E69F00", ("weight_decay",)),
        Method("snp", "shrink+perturb", "#56B4E9", ("noise_std",), _SNP_READS, makers.shrink_and_perturb),
        Method("dropout", "dropout", "#999933", ("dropout",)),
        Method("onlinenorm", "online norm", "#882255", reads=("norm_decay", "norm_backward_decay")),
        Method("layernorm", "layer norm", "#009E73"),
        Method("cbp", "cbp", "#0072B2", ("replacement_rate",), _CBP_READS, makers.continual_backprop),
        Method("redo", "ReDo", "#117733", ("tau",), ("redo_period", "optimizer_state")),
        Method("head", "head reset", "#44AA99", reads=("reset",)),
        Method("linear", "linear", "#777777"),
        Method("fresh", "fresh network", "#444444"),
        Method("full", "new network", "#444444", reads=("reset",)),  # in another experiment what `fresh` is
        Method("ppo", "standard PPO", "#D55E00"),  # what `bp` is to agents
        Method("tuned-adam", "tuned Adam", "#CC79A7", reads=("beta1", "beta2")),
        _rival("l2init", "L2 Init", "#DDCC77", makers.L2Init, makers.l2_init, needs=("l2_init",)),
        _rival(
            "random",
            "random replacement",
            "#88CCEE",
            makers.Random,
            makers.random_replacement,
            needs=("replacement_rate",),
        ),
        _rival("grama", "GraMa", "#332288", makers.GraMa, makers.grama),
        _rival("snr", "self-normalized resets", "#661100", makers.SelfNormalized, makers.self_normalized_resets),
        _rival("ccbp", "ccbp", "#77AADD", makers.Exponential, makers.partial_resets("exponential")),
        _rival("cpr", "cpr", "#EE8866", makers.Sigmoid, makers.partial_resets("sigmoid")),
        _rival("spectral", "spectral", "#BBCC33", makers.Spectral, makers.spectral),
        _rival("parseval", "Parseval", "#AAAA00", makers.Parseval, makers.parseval),
        _rival("clipping", "weight clipping", "#EE3377", makers.Clipping, makers.weight_clipping),
        _rival("swr", "selective reinit.", "#CC3311", makers.Selective, makers.selective_reinitialization),
        _rival("hare", "hare+tortoise", "#33BBEE", makers.Hare, makers.hare_and_tortoise),
        _rival("fire", "FIRE", "#DDAA33", makers.NoFields, makers.fire),
        _rival("upgd", "UPGD", "#228833", makers.UtilityPerturbed, stepped_by=makers.upgd),
        _rival("trac", "TRAC", "#004488", makers.NoFields, stepped_by=makers.trac),
    )
}
# On any network of which the units are known, a stack of them too; and on linear layers and convolutions.
UNIT_RESETS = ("random", "grama", "snr", "ccbp", "cpr")
RIVALS = (*UNIT_RESETS, "spectral", "parseval", "clipping", "swr", "upgd", "trac", "l2init")
FIELD_WORDS: dict[str, str] = {  # what figures call fields; "" where the value says it all
    "step_size": "",
    "weight_decay": "decay",
    "noise_std": "noise",
    "l2_init": "strength",
    "sigma": "σ",
    "dropout": "p",
    "replacement_rate": "rate",
    "candidates": "best of",
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
    rows, fields = rows_of(known), type(config).model_fields
    found = owners(rows)
    mine = {name: (config.method,) for name in found if is_own_field(config, name)}
    check_owners(
        config,
        {name: (*own, *also.get(name, ()), *mine.get(name, ())) for name, own in found.items()},
        {name: readers(rows, name) for name in OPTIONAL if name in fields},
    )


def is_own_field(config: RunConfig, name: str) -> bool:
    """Whether a field of the experiment is one that a run's method with a config of its own reads as its own."""
    own: Method | None = getattr(type(config), "own_method", None)
    return own is not None and own.fields is not None and name in own.fields.model_fields


def method_of(config: RunConfig, known: Collection[str]) -> Method:
    """The row of a run's method. Raises `LabError` where it is neither among the `known` nor has a config of its own."""
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
