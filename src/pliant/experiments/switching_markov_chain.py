"""Switching Markov chain: does a recurrent network go on learning when the rule of its sequence is redrawn, again and again?

Stream  symbols x[t] of a Markov chain of order k, 32 of them side by side, without end. With σ[c] a permutation of the
        symbols for each context c = (x[t-1], ..., x[t-k+1]), all drawn anew at each switch:

            x[t] = σ[c](x[t-k])  with probability q `regularity`,  else one of the other A - 1 symbols

Curve   excess: divergence of the network's prediction from the chain's own law before each update, by switch; mean and
        95% interval over seeds. 0 is the best that can be; log A - entropy is what knowing fewer than k symbols reaches
Source  ours, for the question that Dohare et al., Nature 632 (2024), leave open: recurrent networks

All methods of a seed see the same symbols and, but for "fresh", start from the same weights. Whatever the rule, all strings
of k symbols are equally frequent, so every period is equally hard, and no statistic of fewer than k + 1 symbols tells anything.
"""

# pyright: reportMissingTypeStubs=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from itertools import product
from math import log
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.diagnostics import dormant_by_activity, effective_rank, singular_values, weight_magnitude
from pliant.experiments.base import Cell, Profile, ShippedExperiment
from pliant.experiments.makers import Site
from pliant.experiments.methods import FIELD_WORDS, ReplacementConfig, check_fields, method_of, replaced
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged
from pliant.lab.figures import Part, figure_of
from pliant.streams import generator, stream_key, uniform

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Method = Literal["bp", "cbp", "l2", "snp", "fresh"]


class Config(ReplacementConfig, frozen=True):
    """One network on one chain."""

    renamed: ClassVar[Mapping[str, str]] = {"beta_1": "beta1", "beta_2": "beta2", "lanes": "sequences"}

    method: Method = Field("bp", description="fresh: a new network at each switch, the control")
    optimizer: Literal["sgd", "adam"] = "adam"
    step_size: float = Field(0.01, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1, description="optimizer adam")
    beta2: float = Field(0.999, ge=0, lt=1, description="optimizer adam")
    weight_decay: float = Field(0.0, ge=0, description="coupled, of weights and biases; method l2 or snp")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after an update; method snp")
    hidden_units: int = Field(32, gt=0, description="units of the GRU")
    symbols: int = Field(8, gt=1, description="of the chain, A")
    order: int = Field(2, gt=0, description="symbols back that the next one depends on, k")
    regularity: float = Field(0.8, gt=0, lt=1, description="probability of the symbol that the rule gives, q")
    sequences: int = Field(32, gt=0, description="chains side by side, under one rule")
    chunk: int = Field(5, gt=1, description="symbols of a sequence per update; gradients go no further back")
    period: int = Field(500, gt=0, description="updates between switches")
    steps: int = Field(100_000, gt=0, description="updates; a multiple of the period")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps % self.period:
            raise ValueError(f"steps ({self.steps}) must be a multiple of period ({self.period})")
        check_fields(self, get_args(Method))
        if self.optimizer != "adam" and (self.beta1, self.beta2) != (0.9, 0.999):
            raise ValueError(f"beta1 and beta2 are for optimizer adam, not {self.optimizer}")
        return self


# -- the stream -----------------------------------------------------------------------------------------------------


class Chain:
    """The symbols of one seed. Rules and draws are looked up by number; only the last k symbols of each sequence are remembered.

    A context is one integer, its digits in base A the last k symbols, the newest first.
    """

    def __init__(self, config: Config) -> None:
        self.seed, self.symbols, self.order = config.seed, config.symbols, config.order
        self.regularity, self.shape = config.regularity, (config.chunk, config.sequences)
        self._recent = config.symbols ** (config.order - 1)  # contexts without their oldest symbol
        first = uniform(stream_key(self.seed, "first context"), 0, config.sequences)
        self.context = (first * config.symbols**config.order).astype(np.int64)  # (sequences,)

    def rule(self, number: int) -> NDArray[np.int64]:
        """The symbol that most often follows each context in a period, (A^k,)."""
        draw = generator(self.seed, "rule", number)
        return draw.permuted(np.tile(np.arange(self.symbols), (self._recent, 1)), axis=1).reshape(-1)

    def next(self, rule: NDArray[np.int64], update: int) -> tuple[NDArray[np.int64], ...]:
        """Symbols seen, symbols to predict, and those that the rule gives, each (chunk, sequences), for one update."""
        u = uniform(stream_key(self.seed, "symbols"), update * self.shape[0] * self.shape[1], self.shape)
        other = 1 + ((u - self.regularity) / (1 - self.regularity) * (self.symbols - 1)).astype(np.int64)
        shift = np.where(u < self.regularity, 0, other)
        seen, following, given = (np.empty(self.shape, np.int64) for _ in range(3))
        for t in range(self.shape[0]):
            seen[t] = self.context // self._recent
            given[t] = rule[self.context]
            following[t] = (given[t] + shift[t]) % self.symbols
            self.context = following[t] * self._recent + self.context // self.symbols
        return seen, following, given


def entropy(symbols: int, regularity: float) -> float:
    """Of the next symbol given the past, in nats: the cross-entropy that no prediction can get below.

    >>> round(entropy(8, 0.8), 4)
    0.8896
    """
    return -regularity * log(regularity) - (1 - regularity) * log((1 - regularity) / (symbols - 1))


def excess(log_probs: Tensor, given: Tensor, regularity: float) -> Tensor:
    """Divergence of predictions `log_probs` (n, A) from the chain's law, mean in nats; `given` (n,) is what the rule gives.

    sum_x p(x) log(p(x) / q(x)),  p(given) = `regularity`,  p(x) alike for all others
    """
    symbols = log_probs.shape[-1]
    each = (1 - regularity) / (symbols - 1)
    of_given = log_probs.gather(1, given.unsqueeze(1)).mean()
    cross = each * log_probs.sum(1).mean() + (regularity - each) * of_given
    return -cross - entropy(symbols, regularity)


# -- the network ----------------------------------------------------------------------------------------------------


class Predictor(nn.Module):
    """A GRU and a linear layer. What they return are logits alone: a unit that reached an output could never be replaced."""

    def __init__(self, symbols: int, hidden_units: int) -> None:
        super().__init__()
        self.core = nn.GRU(symbols, hidden_units)
        self.head = nn.Linear(hidden_units, symbols)
        self.hidden = torch.empty(0)  # of the last call, (chunk, sequences, units)

    def forward(self, one_hot: Tensor, before: Tensor | None = None) -> Tensor:
        """Logits of the next symbols, (chunk, sequences, A), from symbols of the same shape and the hidden state before them."""
        hidden, _ = self.core(one_hot, before)
        self.hidden = hidden.detach()
        return self.head(hidden)


@torch.no_grad()
def gates(core: nn.GRU, one_hot: Tensor, hidden: Tensor) -> Tensor:
    """Reset and update gates of the states that follow `hidden`, (n, 2 units), from inputs (n, A) and states (n, units)."""
    weight_ih, weight_hh, bias_ih, bias_hh = core.parameters()
    return torch.sigmoid(one_hot @ weight_ih.T + bias_ih + hidden @ weight_hh.T + bias_hh)[:, : 2 * core.hidden_size]


# -- the learner ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "switch": "periods learned, this one included",
    "excess": "divergence of the prediction from the chain's law before each update, nats a symbol, mean of the period",
    "step": "updates at the end of the period",
    "excess_early": "the same, first tenth of the period",
    "excess_late": "the same, last tenth of the period",
    "weight_magnitude": "mean |weight| of all weight matrices at the end of the period, biases not counted",
    "saturated": "mean share of hidden units with |h| > 0.99 in the period's last chunk",
    "gates_saturated": "mean share of reset and update gates below 0.01 or above 0.99 in the period's last chunk",
    "dormant": "share of hidden units whose mean |h| is at most 0.025 of the layer's, in the period's last chunk",
    "effective_rank": "of the hidden states of the period's last chunk (sequences x chunk states, at most `hidden_units`)",
    "replaced": "hidden units replaced so far",
}
MEASURED = [name for name in COLUMNS if name not in ("switch", "step", "replaced")]
UPDATES_PER_ADVANCE = 2_000  # at most


class Learner:
    """A run: a network on its chain."""

    def __init__(self, config: Config) -> None:
        self._row = method_of(config, get_args(Method))
        self.config, self.chain = config, Chain(config)
        self.steps_done, self.steps_total = 0, config.steps
        self.diverged_at: int | None = None
        self.excess = np.full(config.period, np.nan)  # of the updates of this period
        self._one_hot = torch.eye(config.symbols)
        self._start_network(0)

    def _start_network(self, number: int) -> None:
        self.network = fresh_network(self.config, number)
        self.carried = torch.zeros(1, self.config.sequences, self.config.hidden_units)
        self.optimizer = self._row.stepped_by(_optimizer(self.config, self.network), self.config)
        symbols = torch.zeros(2, 2, self.config.symbols)
        self.method = self._row.make(
            Site(
                self.network,
                self.optimizer,
                self.config,
                seed=lambda purpose: self.config.seed,
                units=lambda: {"example_inputs": symbols},
            )
        )

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at is not None:
            return [diverged(self.diverged_at)]
        return [DONE if self.steps_done >= self.steps_total else RUNNING]

    def state_dict(self) -> dict[str, Any]:
        state = {
            "steps_done": self.steps_done,
            "diverged_at": self.diverged_at,
            "excess": self.excess,
            "context": self.chain.context,
            "carried": self.carried,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if self.method else None,
        }
        return deepcopy(state)  # torch's own hand out what they go on writing to

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps_done = count_in(state, "steps_done")
        self.diverged_at = None if state["diverged_at"] is None else count_in(state, "diverged_at")
        self.excess = entry(state, "excess", self.excess)
        self.chain.context = entry(state, "context", self.chain.context)
        self.carried = entry(state, "carried", self.carried)
        for part, name in ((self.network, "network"), (self.optimizer, "optimizer"), (self.method, "method")):
            load_part(part, state, name)

    def learn(self, most: int) -> bool:
        """Go on to the end of the period, or for `most` updates; whether the period ended, or the run did."""
        number, done = divmod(self.steps_done, self.config.period)
        if self.config.method == "fresh" and number and not done:
            self._start_network(number)
        rule = self.chain.rule(number)
        last = min(done + most, self.config.period)
        for place in range(done, last):
            self.excess[place] = self._update(rule)
            if not np.isfinite(self.excess[place]):
                self.diverged_at = self.steps_done - 1  # counted from 0, as everywhere
                self.excess[:] = np.nan
                return True
        return last == self.config.period

    def _update(self, rule: NDArray[np.int64]) -> float:
        """Predict a chunk, then learn from it; the excess of the prediction."""
        self.seen, following, given = (torch.from_numpy(each) for each in self.chain.next(rule, self.steps_done))
        logits = self.network(self._one_hot[self.seen], self.carried)
        self.carried = self.network.hidden[-1:]
        log_probs = logits.flatten(0, 1).log_softmax(-1)
        self.optimizer.zero_grad()
        nn.functional.nll_loss(log_probs, following.flatten()).backward()
        self.optimizer.step()
        self.steps_done += 1
        return float(excess(log_probs.detach(), given.flatten(), self.config.regularity))

    def measures(self) -> dict[str, float]:
        """The columns of a period that has ended; NaN where the run diverged in it."""
        if self.diverged_at is not None:
            return dict.fromkeys(MEASURED, float("nan"))
        tenth = max(self.config.period // 10, 1)
        hidden = self.network.hidden
        states = hidden.flatten(0, 1)
        gate = gates(self.network.core, self._one_hot[self.seen[1:]].flatten(0, 1), hidden[:-1].flatten(0, 1))
        return {
            "excess": self.excess.mean(),
            "excess_early": self.excess[:tenth].mean(),
            "excess_late": self.excess[-tenth:].mean(),
            "weight_magnitude": float(weight_magnitude(*_matrices(self.network))),
            "saturated": _share(states.abs() > 0.99),
            "gates_saturated": _share((gate < 0.01) | (gate > 0.99)),
            "dormant": _share(dormant_by_activity(states)),
            "effective_rank": float(effective_rank(singular_values(states))),
        }

    def replaced(self) -> int:
        return replaced(self.method)[0]


def fresh_network(config: Config, number: int) -> Predictor:
    """Network `number` of the seed, as torch initializes it; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_key(config.seed, "weights", number))
        return Predictor(config.symbols, config.hidden_units)


def _optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.step_size, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), **settings)
    return torch.optim.Adam(network.parameters(), betas=(config.beta1, config.beta2), **settings)


def _matrices(network: nn.Module) -> list[Tensor]:
    return [p.detach() for p in network.parameters() if p.dim() > 1]


def _share(true: Tensor) -> float:
    return float(true.double().mean())


# -- the experiment --------------------------------------------------------------------------------------------------


class SwitchingMarkovChain(ShippedExperiment):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("saturated", "gates_saturated", "dormant")
    rivals = (
        "random",
        "grama",
        "ccbp",
        "cpr",
        "spectral",
        "clipping",
        "swr",
        "upgd",
        "trac",
    )  # no unit of a GRU is silent
    methods = (*get_args(Method), *rivals)
    field_words = {**FIELD_WORDS, "utility": ""}  # noqa: RUF012
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config  # each run is a job: nothing is shared, and cores fill evenly

    def start(self, configs: Sequence[Config], context: Context) -> Learner:
        (config,) = configs
        return Learner(config)

    def advance(self, state: Learner) -> dict[str, NDArray[Any]]:
        ended = state.learn(UPDATES_PER_ADVANCE)
        periods = -(-state.steps_done // state.config.period)
        row = {"run": 0, "switch": periods, "step": state.steps_done, **state.measures(), "replaced": state.replaced()}
        return {name: np.array([value])[: int(ended)] for name, value in row.items()}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """A row of panels for each optimizer: excess over and late in each period, flat units, effective rank."""
        table: Any = rows
        parts: list[Part] = []
        for optimizer, cell in table.groupby("optimizer", sort=False):
            cell = self.curves(cell, panel=["optimizer"])
            parts.append(Part(cell, [("switch", y) for y in LABELS], f"GRU, {optimizer}", BINS))
        return figure_of(parts, self.look, LABELS, named=list(LABELS)[-1:], bounds=self.bounds())


BINS = 30
LABELS = {
    "excess": "excess, nats per symbol",
    "excess_late": "excess, last tenth of a period",
    "saturated": "share of units with |h| > 0.99",
    "effective_rank": "effective rank of hidden states",
}


def _quick() -> list[Cell]:
    return [{"method": "bp"}, _CBP, {"method": "fresh"}]


def _small() -> list[Cell]:
    """The chosen setting of each method; for backprop also that of the others, Adam 0.01."""
    return [
        {"method": "bp"},
        {"method": "bp", "optimizer": "sgd", "step_size": 3.0},
        {"method": "l2", "weight_decay": 1e-4},
        {"method": "snp", "weight_decay": 1e-4, "noise_std": 1e-4},
        _CBP,
        {**_CBP, "utility": "contribution"},
        {**_CBP, "utility": "random"},
        {"method": "fresh", "step_size": 0.02},
    ]


def _tuning() -> list[Cell]:
    """Nine settings of each method, cbp with another utility counted as another: three learners and three strengths of its own.

    Those that have nothing of their own get more step sizes.
    """
    strengths: list[Cell] = [{"method": "l2", "weight_decay": decay} for decay in (1e-5, 1e-4, 1e-3)]
    strengths += [{"method": "snp", "weight_decay": 1e-4, "noise_std": noise} for noise in (1e-4, 1e-3, 1e-2)]
    for utility, rate in product(("contribution", "adaptable_contribution", "random"), (1e-4, 1e-3, 1e-2)):
        strengths.append({"method": "cbp", "utility": utility, "replacement_rate": rate})
    learners = [("adam", 0.01), ("adam", 0.003), ("sgd", 1.0)]
    more = [("adam", 0.001), ("adam", 0.002), ("adam", 0.005), ("adam", 0.02), ("sgd", 0.3), ("sgd", 3.0)]
    plain = [({"method": method}, learners + more) for method in ("bp", "fresh")]
    return [
        {"optimizer": optimizer, "step_size": size, **own}
        for own, at in [*plain, *((own, learners) for own in strengths)]
        for optimizer, size in at
    ]


_CBP: Cell = {"method": "cbp", "utility": "adaptable_contribution", "replacement_rate": 1e-4}

SwitchingMarkovChain.plans = {
    "quick": Profile(
        "40 switches, 2 seeds: backprop, continual backprop, a fresh network; about a minute on two cores",
        _quick,
        range(2),
        {"steps": 20_000},
    ),
    "small": Profile(
        "80 switches, 3 seeds, all methods, two controls of continual backprop; 21 core-minutes",
        _small,
        range(3),
        {"steps": 40_000},
    ),
    "tuning": Profile(
        "30 switches, seed 1000: nine settings of each method; about an hour on one core",
        _tuning,
        range(1000, 1001),
        {"steps": 15_000},
    ),
}
