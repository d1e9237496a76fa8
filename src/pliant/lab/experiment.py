"""What the laboratory asks of an experiment: eight names, and no base class.

    configs = experiment.runs("quick")              which runs there are
    state = experiment.start(configs, context)      some of them, learning side by side: a job
    while any run is running:
        rows = experiment.advance(state)            a few seconds of learning, as columns of numbers
    figure = experiment.figure(all rows)

Between two advances the state is stored; nothing that matters may live outside it. So a study that
is killed goes on from its last advance, and its rows are those of one that was not, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pliant.base.choices import shortened
from pliant.lab.errors import LabError, unknown

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingTypeStubs]
    from matplotlib.figure import Figure

Rows: TypeAlias = Mapping[str, NDArray[Any]]  # column -> values, 1-d, equally long; "run" indexes the job's configs


class RunConfig(BaseModel, frozen=True):
    """All that decides what one run learns. Subclasses narrow `method` and add fields, units in their descriptions.

    `renamed` are the names that fields had in the version before, and have now: studies, exports and `--set` of then are read.
    `added` are fields that came later, with the value at which a run is what it was without them: studies of before go on.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    added: ClassVar[Mapping[str, Any]] = {}

    method: str
    seed: int = Field(0, ge=0, description="names the run's random streams")

    def __hash__(self) -> int:
        return hash(_hashable(dict(self)))  # lists, sets and mappings too, which Python refuses

    @model_validator(mode="before")
    @classmethod
    def _under_names_of_today(cls, given: Any) -> Any:
        return of_today(cast(Mapping[str, Any], given), cls.renamed) if isinstance(given, Mapping) else given


def _hashable(value: Any) -> Hashable:
    """Equal for equal values."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(each)) for key, each in cast(Mapping[Any, Any], value).items())
    if isinstance(value, list | tuple):
        return tuple(_hashable(each) for each in cast(Sequence[Any], value))
    if isinstance(value, set | frozenset):
        return frozenset(_hashable(each) for each in cast(Collection[Any], value))
    return value if isinstance(value, Hashable) else 0


def as_settings(config: RunConfig) -> dict[str, Any]:
    """The config as it reads in study.json."""
    text = config.model_dump(mode="json")
    return {name: in_order(value, text[name]) for name, value in config.model_dump().items()}


def in_order(value: Any, text: Any) -> Any:
    """`value` in JSON, which pydantic made `text`: a set in an order that is the same in every process."""
    if isinstance(value, set | frozenset):
        inner = [in_order(each, in_json) for each, in_json in zip(cast(Collection[Any], value), text, strict=True)]
        return sorted(inner, key=canonical)
    if isinstance(value, Mapping):
        pairs = zip(cast(Mapping[Any, Any], value).values(), text.items(), strict=True)
        return {name: in_order(each, in_json) for each, (name, in_json) in pairs}
    if isinstance(value, list | tuple):
        return [in_order(each, in_json) for each, in_json in zip(cast(Sequence[Any], value), text, strict=True)]
    return text


def canonical(content: Any) -> str:
    """JSON that is equal for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def of_today(settings: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Settings under the names that fields have now. Raises `ValueError` where one is given under both names.

    >>> of_today({"method": "ppo", "beta_1": 0.9}, {"beta_1": "beta1"})
    {'method': 'ppo', 'beta1': 0.9}
    """
    twice = [f"{old} and {renamed[old]}" for old in settings if old in renamed and renamed[old] in settings]
    if twice:
        raise ValueError(
            f"{twice[0]} are one field, which is called {twice[0].rpartition(' ')[2]} now: leave the other out"
        )
    return {renamed.get(name, name): value for name, value in settings.items()}


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def check_owners(
    config: RunConfig, owners: Mapping[str, Sequence[str]], readers: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """Raise `ValueError` where a field is set that the run's method does not read, or the one that makes the method is not.

    `owners`: field -> the methods that read it, the one that cannot do without it first; `readers`: the same, of fields that all
    of them can do without. A field that is 0 is not set.
    """
    for name, methods in {**owners, **readers}.items():
        if name not in type(config).model_fields:
            raise unknown("field", name, type(config).model_fields)
        if not methods:
            raise LabError(f"owners of {name} are none: name the methods that read it")
        used = getattr(config, name) > 0
        if used and config.method not in methods:
            named = " or ".join(methods)
            raise ValueError(f"{name} is for method {named}, not {config.method}: add --methods {methods[0]}")
        if not used and name in owners and config.method == methods[0]:
            raise ValueError(f"method {config.method} needs {name} > 0: add --set {name}=...")


def check_method(method: str, known: Collection[str], override: str = "start, which makes the learners") -> None:
    """Raise `LabError` where a method is not among the `known`, those that the caller can tell apart.

    To be called by what turns a method into a learner: a subclass of an experiment may name another, which would learn as
    none of them does. `override`: what such a subclass has to override.
    """
    if method not in known:
        raise LabError(
            f"method '{method}' is none of those known here ({', '.join(known)}): for one of your own override {override}, "
            "and list it in `methods` of the experiment"
        )


def shared_config(configs: Sequence[ConfigT]) -> ConfigT:
    """The first, which all are but for the seed. Raises `LabError` where they differ: their `stack_key` is too coarse."""
    if not configs:
        raise LabError("no configs: a job has at least one run")
    first = configs[0]
    for other in configs:
        own, shared = other.model_dump(exclude={"seed"}), first.model_dump(exclude={"seed"})
        differ = [name for name, value in own.items() if value != shared[name]]
        if differ:
            raise LabError(
                f"runs that differ in {', '.join(differ)} share a job, and would all learn as the first: see stack_key"
            )
    return first


class RunStatus(NamedTuple):
    """Whether a run goes on. A diverged one is a result: it says at which step, and its siblings go on."""

    word: Literal["running", "done", "diverged"]
    step: int | None = None  # of divergence


RUNNING = RunStatus("running")
DONE = RunStatus("done")


def diverged(step: int) -> RunStatus:
    """The status of a run whose numbers ceased to be finite at `step`."""
    try:
        whole = int(step)
    except (TypeError, ValueError, OverflowError):
        whole = -1
    if whole < 0:
        raise LabError(
            f"diverged({shortened(repr(step))}): the step at which a run diverged is a whole number from 0 on"
        )
    return RunStatus("diverged", whole)


@dataclass(frozen=True)
class Context:
    """Where a job runs."""

    device: str = "cpu"
    data: Path | None = None  # folder of data sets: $PLIANT_DATA where that is set
    threads: int = 1


class State(Protocol):
    """Runs in mid-learning."""

    @property
    def steps_done(self) -> int: ...

    @property
    def steps_total(self) -> int: ...

    def statuses(self) -> Sequence[RunStatus]:
        """One per config, in their order."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """All of it: nested mappings of arrays, tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from there; called on a state fresh from `start`."""
        ...


StateT = TypeVar("StateT", bound=State)


class Experiment(Protocol[ConfigT, StateT]):
    """A problem, the methods that face it, and the figure that compares them.

    It may also have

        data_sets(config)            names of the data sets that a run needs
        check_data(config, found)    raises `ValueError` where these, by name, do not serve: before anything runs
        methods                      the methods that `start` knows; another one, of a subclass, is refused before anything runs
        devices                      the kinds of device that it runs on, where these are not all
        weights                      column -> the column that counts what it is a mean of, such as a return's episodes, by which
                                     the report weighs rows
        shares                       the columns that are shares of a whole, from 0 to 1: intervals of their means end there
        colors                       method -> its color in figures of several methods, such as "#0072B2"
        length                       the field of `Config` that says when a run ends, and nothing else: by it runs can be made
                                     longer, for which their last states are kept
        note(configs)                lines to be said before these runs start, such as what they cost
        with_methods(methods)        the experiment that methods of a user's own have joined (`pliant.lab.study.own_method`)
        own_configs                  the name of such a method -> the class of its configs, a subclass of `Config`
        runs_of(profile, method)     runs of a method of `own_configs` that a profile has none of, for --methods that name it
        watch(state, run)            yields the scenes of a film (`pliant.lab.film.Scene`) of what a run's agent does
    """

    @property
    def Config(self) -> type[ConfigT]: ...

    @property
    def columns(self) -> Mapping[str, str]:
        """Column -> its meaning and unit. Rows have these columns, no other and no fewer.

        The first says where in a run a row stands (step, task), the second is what the figure is about.
        """
        ...

    @property
    def profiles(self) -> Mapping[str, str]:
        """Profile -> one line: what it shows and what it costs."""
        ...

    def runs(self, profile: str) -> Sequence[ConfigT]:
        """The runs of a profile, before --methods, --seeds and --set."""
        ...

    def stack_key(self, config: ConfigT, device: str) -> Hashable:
        """Runs of equal keys may share a job."""
        ...

    def start(self, configs: Sequence[ConfigT], context: Context) -> StateT: ...

    def advance(self, state: StateT) -> Rows:
        """Learn for at most about ten seconds."""
        ...

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """The published figure, from rows joined with their configs, of a study that may be unfinished."""
        ...


AnyExperiment: TypeAlias = Experiment[Any, Any]


def own_configs(experiment: AnyExperiment) -> Mapping[str, type[RunConfig]]:
    """The classes of configs of the methods that have one of their own, such as a user's that have joined the experiment."""
    return getattr(experiment, "own_configs", {})


def config_kind(experiment: AnyExperiment, method: str) -> type[RunConfig]:
    """The class of the configs of a method."""
    return own_configs(experiment).get(method, experiment.Config)


def checked_rows(rows: Rows, columns: Mapping[str, str], runs: int) -> dict[str, NDArray[Any]]:
    """The rows as arrays, "run" first. Raises ValueError where they are not what the experiment documents."""
    if not isinstance(rows, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"advance() gave a {type(rows).__name__}: it gives rows, a mapping of columns")
    table = {name: np.asarray(rows[name]) for name in ("run", *columns) if name in rows}
    missing, excess = [n for n in ("run", *columns) if n not in rows], [n for n in rows if n not in table]
    if missing or excess:
        raise ValueError(f"rows lack the columns {missing} and have {excess}, which `columns` does not document")
    for name, values in table.items():
        if values.ndim != 1 or len(values) != len(table["run"]) or values.dtype.kind not in "biufU":
            shapes = f"{values.dtype}{list(values.shape)} beside run {list(table['run'].shape)}"
            raise ValueError(f"column '{name}' is {shapes}: columns are 1-d, equally long, of numbers or text")
    index = table["run"]
    if len(index) and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= runs):
        raise ValueError(f"column 'run' indexes the {runs} configs of the job: integers from 0 to {runs - 1}")
    return table
