"""What the experiments of this package share: profiles in one shape, figures that call and color methods alike, a user's methods.

    profile     words (what it shows and costs), cells (the settings of its runs), seeds, and what all cells have in common
    runs        every cell with every seed
    own         methods of a user's files beside the shipped ones: they run where the plain method does, at its settings
    rivals      shipped ones that do so where they are asked for by name

Shipped runs are the same whether such a method is there or not: its fields are in a config of its own.
"""

# pyright: reportMissingTypeStubs=false
# (pandas is typed in part)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, create_model

from pliant.experiments.makers import Attached, Site
from pliant.experiments.methods import FIELD_WORDS, METHODS, Method
from pliant.lab import LabError, RunConfig
from pliant.lab.curves import with_curves
from pliant.lab.figures import Style, looks
from pliant.lab.study.own_method import OwnMethod

if TYPE_CHECKING:
    import pandas

Cell: TypeAlias = Mapping[str, Any]  # the fields of a run that are not as by default, but for its seed


@dataclass(frozen=True)
class Profile:
    """Which runs there are under a name.

    Args:
        words: what it shows and what it costs.
        cells: gives the settings of its runs.
        seeds: with each of which every cell runs.
        common: what all cells have, unless they say otherwise.
        seeds_first: all seeds of a cell before the next cell, or all cells of a seed before the next seed. The order of runs is
            part of a profile: it numbers the jobs of a study, and is that of the names in a figure.
    """

    words: str
    cells: Callable[[], Iterable[Cell]]
    seeds: Sequence[int]
    common: Cell = field(default_factory=dict[str, Any])
    seeds_first: bool = False

    def settings(self) -> list[dict[str, Any]]:
        """Of each run, in order."""
        cells = list(self.cells())
        pairs = (
            [(cell, seed) for cell in cells for seed in self.seeds]
            if self.seeds_first
            else [(cell, seed) for seed in self.seeds for cell in cells]
        )
        return [{**self.common, **cell, "seed": seed} for cell, seed in pairs]


class ShippedExperiment:
    """What the laboratory asks of an experiment, as far as all of this package answer alike."""

    Config: ClassVar[type[RunConfig]]
    columns: ClassVar[Mapping[str, str]]
    methods: Sequence[str]  # those that its learners know
    plans: ClassVar[Mapping[str, Profile]]
    shares: ClassVar[Sequence[str]] = ()
    plain: ClassVar[str] = "bp"  # the method that does nothing against loss of plasticity
    rivals: ClassVar[tuple[str, ...]] = ()  # of `METHODS`; they are among `methods` too
    own: tuple[Method, ...] = ()
    joined_configs: Mapping[str, type[RunConfig]] = {}

    @property
    def profiles(self) -> Mapping[str, str]:
        return {name: plan.words for name, plan in self.plans.items()}

    def runs(self, profile: str) -> list[Any]:
        """Those of the profile; and of each method of a user's own as many as of the plain one, at the same settings."""
        every: list[dict[str, Any]] = self.plans[profile].settings()
        own = [run for name in self.joined_configs for run in self.runs_of(profile, name)]
        return [*(self.Config(**each) for each in every), *own]

    @property
    def own_configs(self) -> Mapping[str, type[RunConfig]]:
        """Method -> the class of its configs, of those that have one of their own."""
        return {**{name: _kind_of(self.Config, METHODS[name]) for name in self.rivals}, **self.joined_configs}

    def runs_of(self, profile: str, method: str) -> list[RunConfig]:
        """A run of such a method for each of the plain one, at its settings."""
        kind = self.own_configs[method]
        plain = [each for each in self.plans[profile].settings() if each["method"] == self.plain]
        return [kind.model_validate({**each, "method": method}) for each in plain]

    # -- in figures -------------------------------------------------------------------------------------------------

    words: ClassVar[Mapping[str, str]] = {}  # method -> what figures call it here, where its row says less
    field_words: ClassVar[Mapping[str, str]] = FIELD_WORDS

    @property
    def colors(self) -> Mapping[str, str]:
        """Method -> its color, of those that there are here."""
        return {row.name: row.color for row in (*METHODS.values(), *self.own) if row.name in self.methods}

    def name_of(self, method: str) -> str:
        """What figures call a method."""
        rows = {**METHODS, **{row.name: row for row in self.own}}
        return self.words.get(method, rows[method].words if method in rows else method)

    def curves(self, rows: pandas.DataFrame, panel: Sequence[str] = (), always: Sequence[str] = ()) -> Any:
        """The rows of a panel, or of a figure, with the name of each one's curve; fields of `panel` set none apart."""
        table: Any = rows
        names = {method: self.name_of(method) for method in map(str, table["method"].unique())}
        return with_curves(rows, self.columns, names, self.field_words, panel, always)

    def bounds(self, percent: Sequence[str] = ()) -> dict[str, tuple[float, float]]:
        """Column -> where the bands of a share end; `percent` are drawn as such."""
        return {name: (0, 100) if name in percent else (0, 1) for name in self.shares}

    def look(self, curves: pandas.DataFrame) -> dict[str, Style]:
        """How each curve is drawn: in the color of its method."""
        return looks(curves, {row.name: row.color for row in (*METHODS.values(), *self.own)})

    def with_methods(self, methods: Sequence[OwnMethod]) -> Self:
        """The experiment with these of a user's own too. Raises `LabError` where a name is taken."""
        joined = copy(self)
        for method in methods:
            kind = config_of(self, method)
            joined.own = (*joined.own, row_of_own(method))
            joined.joined_configs = {**joined.joined_configs, method.name: kind}
            joined.methods = (*joined.methods, method.name)
        return joined


def row_of_own(method: OwnMethod) -> Method:
    """A user's method as a row."""
    return Method(method.name, method.words, method.color, make=partial(_made, method), fields=method.fields)


def config_of(experiment: ShippedExperiment, method: OwnMethod) -> type[RunConfig]:
    """The experiment's `Config` with the method's own fields, for the method alone. Raises `LabError` where a name is taken."""
    if method.name in METHODS or method.name in experiment.methods:
        raise LabError(f"a method '{method.name}' is there already: give yours another name")
    taken = [
        name for name in method.fields.model_fields if name in {*experiment.Config.model_fields, *experiment.columns}
    ]
    if taken:
        raise LabError(
            f"method '{method.name}': the experiment has a field or a column {taken[0]} already: read it as config.{taken[0]}, "
            "or give yours another name"
        )
    return _kind_of(experiment.Config, row_of_own(method))


@lru_cache(maxsize=256)
def _kind_of(config: type[RunConfig], row: Method) -> type[RunConfig]:
    """The experiment's `Config` with the method's own fields, for the method alone; those that both have are the method's."""
    make: Any = create_model
    fields: type[BaseModel] = row.fields or BaseModel
    both: dict[str, Any] = {
        name: (field.annotation, field) for name, field in fields.model_fields.items() if name in config.model_fields
    }
    kind = make("Config", __base__=(config, fields), method=(Literal[row.name], row.name), **both)
    kind.own_method = row
    return kind


def _made(method: OwnMethod, site: Site) -> Attached | None:
    """What a user's method has hung on the optimizer. Raises `LabError` where a run could not go on from it."""
    seed = site.seed("own method")
    made = method.make(site.network, site.optimizer, site.config, seed if isinstance(seed, int) else seed[0])
    missing = [] if made is None else [name for name in ("state_dict", "load_state_dict") if not hasattr(made, name)]
    if missing:
        raise LabError(
            f"make() of method '{method.name}' gave a {type(made).__name__}, which lacks {', '.join(missing)}: a run that is "
            "stopped goes on from them"
        )
    return made


def is_own(config: RunConfig) -> bool:
    """Whether the run's method has a config of its own: such a run learns by itself, in no stack."""
    return getattr(type(config), "own_method", None) is not None
