"""Which utility, and which fresh units, serve continual backpropagation best? What Dohare et al. (2024) leave open.

    python benchmarks/inventions.py STUDY [--seeds 0-19] [--only ARM ...]  learns what is missing of a study, then its table
    python benchmarks/inventions.py STUDY --table                          the table of rows that are there
    python benchmarks/inventions.py --referee                              utilities against the true cost of a replacement

Problems (STUDIES lists the runs; equations and the compiled learner are in inventions_kernel.py)
    regression   slowly-changing regression, 20-5-1, SGD .01, a million examples one by one (pliant.experiments)
    permuted     MNIST with pixels permuted anew every 4,992 images, 784-300-150-10, SGD .05, batches of 16, 150 tasks
    relabeled    MNIST whose labels are permuted anew every 2,496 images, the same network, 200 tasks

All runs of a seed see the same stream and start from the same weights. Rows go to results/inventions.parquet after every run: a
row per run and tenth of it. MNIST lies in $PLIANT_DATA. One thread. What was found: docs/inventions.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import inventions_kernel as kernel
import numpy as np
import pandas as pd
from scipy.stats import rankdata

from pliant.data import load
from pliant.experiments import permuted_mnist, slowly_changing_regression
from pliant.lab.figures import PALETTE, panels
from pliant.lab.statistics import FEW as FEW_SEEDS
from pliant.lab.statistics import estimate, paired_difference
from pliant.streams import generator

ROOT = Path(__file__).parents[1]
ROWS, REFEREE = ROOT / "results" / "inventions.parquet", ROOT / "results" / "inventions-referee.parquet"
FIGURE = ROOT / "docs" / "figures" / "utility-referee.png"
UTILITIES = {
    "contribution": kernel.CONTRIBUTION, "matched": kernel.MATCHED, "fisher": kernel.FISHER,
    "redundancy": kernel.REDUNDANCY, "two-sided": kernel.TWO_SIDED, "random": kernel.RANDOM,
}  # fmt: skip
OBJECTIVES = {
    "first": kernel.FIRST, "future": kernel.FUTURE, "unexplained": kernel.UNEXPLAINED,
    "mirror": kernel.MIRROR, "split": kernel.SPLIT,
}  # fmt: skip
TENTHS = 10

Examples = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, targets, labels


@dataclass(frozen=True)
class Arm:
    """What a run does about plasticity."""

    rate: float = 1e-4  # of replacement; 0 is backpropagation
    utility: str = "contribution"
    objective: str = "first"
    draws: int = 1
    matched: bool = False
    rescaled: bool = False
    buffer: int = 256  # last examples, that generators and redundancy read
    weight_decay: float = 0.0
    noise_std: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A stream, a network and its optimizer."""

    stream: str
    sizes: tuple[int, ...]
    periods: int
    batch: int = 1
    step_size: float = 0.01
    adam: bool = False

    @property
    def labels(self) -> bool:
        return self.sizes[-1] > 1

    def examples(self, seed: int, number: int, held_out: bool = False) -> Examples:
        """Those of a period; or, held out, 2,000 others of it."""
        return STREAMS[self.stream](seed, number, held_out)


# -- streams ------------------------------------------------------------------------------------------------------------


def regression(seed: int, number: int, held_out: bool) -> Examples:
    stream = slowly_changing_regression.Stream(seed, "flip-one", 10_000)
    x, y = stream.examples(number)
    if held_out:
        x = stream.inputs(number)[generator(seed, "held out", number).integers(0, 32, 2000)]
        y = stream.targets(x)
    return x.astype(np.float64), y.astype(np.float64)[:, None], np.zeros(len(x), np.int64)


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    train = load("mnist").train
    return np.asarray(train.pixels).reshape(len(train.pixels), -1), np.asarray(train.labels).astype(np.int64)


def permuted(seed: int, number: int, held_out: bool) -> Examples:
    pixels, labels = digits()
    stream = permuted_mnist.Stream(seed, pixels.shape[1], len(pixels))
    order = stream.order(number, *((5000, 7000) if held_out else (0, 5000)))[: 2000 if held_out else 4992]
    x = pixels[order][:, stream.permutation(number)].astype(np.float32) / np.float32(255)
    return x, np.zeros((len(x), 1), np.float32), labels[order]


def relabeled(seed: int, number: int, held_out: bool) -> Examples:
    pixels, labels = digits()
    drawn = generator(seed, "images", number).permutation(len(pixels))
    order = drawn[2496:4496] if held_out else drawn[:2496]
    names = generator(seed, "labels", number).permutation(10)
    return (
        pixels[order].astype(np.float32) / np.float32(255),
        np.zeros((len(order), 1), np.float32),
        names[labels[order]],
    )


STREAMS = {"regression": regression, "permuted": permuted, "relabeled": relabeled}


# -- runs ---------------------------------------------------------------------------------------------------------------


class Run:
    """One learner on the stream of its seed."""

    def __init__(self, problem: Problem, arm: Arm, seed: int) -> None:
        self.problem, self.seed = problem, seed
        dtype = np.float32 if problem.labels else np.float64
        self.state = kernel.start(problem.sizes, problem.batch, arm.buffer, seed, problem.adam, dtype)
        self.gradients = tuple(np.zeros_like(W) for W in self.state.weights)
        self.rules = kernel.Rules(
            step_size=problem.step_size, adam=problem.adam, labels=problem.labels, weight_decay=arm.weight_decay,
            noise_std=arm.noise_std, replacement_rate=arm.rate, utility=UTILITIES[arm.utility],
            objective=OBJECTIVES[arm.objective], draws=arm.draws, matched=arm.matched, rescaled=arm.rescaled,
        )  # fmt: skip

    def periods(self) -> Iterator[float]:
        """Learns period after period: the accuracy of each, or its mean squared error, before each update."""
        for number in range(self.problem.periods):
            x, y, labels = self.problem.examples(self.seed, number)
            losses = np.zeros(len(x) // self.problem.batch)
            hits = kernel.learn(self.state, self.rules, self.gradients, x, y, labels, losses)
            yield hits / len(x) if self.problem.labels else float(losses.mean())


def rows_of(name: str, problem: Problem, arm: Arm, seed: int) -> pd.DataFrame:
    """A row for each tenth of a run."""
    began, run = time.process_time(), Run(problem, arm, seed)
    values = np.array(list(run.periods())).reshape(TENTHS, -1).mean(axis=1)
    told = {"study": name, **asdict(arm), "seed": seed, "replaced": int(run.state.replaced.sum())}
    return pd.DataFrame(
        {**told, "tenth": np.arange(1, TENTHS + 1), "value": values, "seconds": time.process_time() - began}
    )


# -- what is run --------------------------------------------------------------------------------------------------------

CBP, BACKPROP = Arm(), Arm(rate=0.0)
BEST = Arm(objective="future", draws=32)
BOTH = replace(BEST, matched=True)
NEW_UTILITIES = [name for name in UTILITIES if name != "contribution"]
UTILITY_ARMS = {f"{name} utility": Arm(utility=name) for name in NEW_UTILITIES}
GENERATOR_ARMS = {
    "bias-matched": Arm(matched=True),
    "bias-matched, rescaled": Arm(matched=True, rescaled=True),
    "best of 32": BEST,
    "best of 32, bias-matched": BOTH,
    "best of 32, bias-matched, rescaled": replace(BOTH, rescaled=True),
    "least explained of 32": Arm(objective="unexplained", draws=32),
    "mirror": Arm(objective="mirror"),
    "split": Arm(objective="split"),
}
PAIR_ARMS = {f"{name} utility, best of 32, bias-matched": replace(BOTH, utility=name) for name in NEW_UTILITIES}
SINGLE = {"backpropagation": BACKPROP, "CBP": CBP, **UTILITY_ARMS, **GENERATOR_ARMS}
RARE = SINGLE | PAIR_ARMS
SIZE_ARMS = {
    f"best of {draws} over {buffer}, bias-matched": replace(BOTH, draws=draws, buffer=buffer)
    for draws in (8, 32, 128) for buffer in (64, 256) if (draws, buffer) != (32, 256)
} | {"fisher utility, best of 128 over 256, bias-matched": replace(BOTH, draws=128, utility="fisher")}  # fmt: skip
BOTH_WORDS = "best of 32, bias-matched"
RANDOM_BOTH = f"random utility, {BOTH_WORDS}"
FEW = (
    "CBP",
    "fisher utility",
    "random utility",
    "bias-matched",
    BOTH_WORDS,
    f"fisher utility, {BOTH_WORDS}",
    RANDOM_BOTH,
)


def decayed(*decays: float) -> dict[str, Arm]:
    """L2, without replacement and with."""
    alone = {f"L2 {decay:g}": Arm(rate=0.0, weight_decay=decay) for decay in decays}
    best = f"L2 {decays[0]:g}"
    return alone | {f"CBP, {best}": Arm(weight_decay=decays[0]),
                    f"best of 32, bias-matched, {best}": replace(BOTH, weight_decay=decays[0])}  # fmt: skip


def few() -> dict[str, Arm]:
    return {words: RARE[words] for words in ("backpropagation", *FEW)}


def often(*words: str) -> dict[str, Arm]:
    return {f"{each}, rate 1e-3": replace(RARE[each], rate=1e-3) for each in words}


SHRUNK = {"shrink and perturb 3e-3, 3e-3": Arm(rate=0.0, weight_decay=3e-3, noise_std=3e-3)}
DEEP = (784, 300, 150, 10)
REGRESSION = Problem("regression", (20, 5, 1), 100)
PERMUTED = Problem("permuted", DEEP, 150, batch=16, step_size=0.05)
ADAM = replace(PERMUTED, sizes=(784, 100, 100, 10), adam=True, step_size=0.001)
STUDIES: dict[str, tuple[Problem, dict[str, Arm]]] = {
    "regression": (
        REGRESSION,
        RARE | often(*FEW, "matched utility", "best of 32") | SIZE_ARMS | decayed(1e-3, 3e-3) | SHRUNK,
    ),
    "regression, 20 units": (replace(REGRESSION, sizes=(20, 20, 1)), few()),
    "regression, Adam": (replace(REGRESSION, adam=True, step_size=0.001), few()),
    "permuted": (PERMUTED, few() | decayed(1e-3) | SINGLE | often("CBP", "random utility", BOTH_WORDS, RANDOM_BOTH)),
    "permuted, width 100, Adam": (ADAM, few()),
    "relabeled": (Problem("relabeled", DEEP, 200, batch=16, step_size=0.05), few()),
}


def seeds_of(words: str) -> range:
    first, _, last = words.partition("-")
    return range(int(first), int(last or first) + 1)


def learn_study(name: str, seeds: range, only: Sequence[str]) -> None:
    """Runs what `ROWS` lacks of a study, seed after seed, and writes the rows after every run."""
    problem, arms = STUDIES[name]
    for seed in seeds:
        for words, arm in arms.items():
            if (only and words not in only) or len(runs_of(stored(), name, arm, seed)):
                continue
            rows = pd.concat([stored(), rows_of(name, problem, arm, seed)], ignore_index=True)
            save(rows, ROWS)
            print(
                f"{name}  seed {seed}  {words}  {rows['value'].iloc[-1]:.4f}  {rows['seconds'].iloc[-1]:.1f} s",
                flush=True,
            )


def save(rows: pd.DataFrame, file: Path) -> None:
    """A run that is killed leaves the file as it was."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    rows.to_parquet(unfinished)
    unfinished.replace(file)


def stored() -> pd.DataFrame:
    columns = ["study", *asdict(CBP), "seed", "replaced", "tenth", "value", "seconds"]
    return pd.read_parquet(ROWS) if ROWS.exists() else pd.DataFrame(columns=columns)


def runs_of(rows: pd.DataFrame, name: str, arm: Arm, seed: int | None = None) -> pd.DataFrame:
    wanted = rows["study"] == name
    for field, value in {**asdict(arm), **({} if seed is None else {"seed": seed})}.items():
        wanted &= rows[field] == value
    return rows[wanted]


def table(name: str) -> None:
    """Each arm's mean over the last half (MNIST: the last fifth), and its paired difference to CBP at the same rate.

    It is called better or worse from five seeds on, where the interval excludes zero.
    """
    problem, arms = STUDIES[name]
    first, factor, places, unit = (9, 100, 2, "accuracy") if problem.labels else (6, 1, 3, "squared error")
    rows = stored()
    found = {
        words: runs_of(rows[rows["tenth"] >= first], name, arm).groupby("seed")["value"].mean() * factor
        for words, arm in arms.items()
    }
    print(f"| {name} | seeds | {unit} | less CBP | 95% interval | |\n|---|---|---|---|---|---|")
    for words, own in found.items():
        base = found["CBP, rate 1e-3" if words.endswith("rate 1e-3") else "CBP"]
        seeds = own.index.intersection(base.index)
        if len(seeds) < 2:
            continue
        gap, mean = paired_difference(own[seeds], base[seeds]), f"{own[seeds].mean():.{places}f}"
        low, high = gap.interval()
        clear = (
            "" if low <= 0 <= high or len(seeds) < FEW_SEEDS else ("worse" if (low > 0) != problem.labels else "better")
        )
        error, ends = (
            f"{gap.mean:+.{places}f} ± {gap.standard_error:.{places}f}",
            f"{low:+.{places}f} to {high:+.{places}f}",
        )
        print(f"| {words} | {len(seeds)} | {mean} | {error} | {ends} | {clear} |")


# -- the referee --------------------------------------------------------------------------------------------------------

YOUNG = 1000  # steps
NETWORKS = {  # trained by CBP: seeds, and how many periods at the end whose last state is examined
    "regression": (REGRESSION, 20, 10),
    "permuted": (replace(PERMUTED, periods=50), 2, 2),
    "permuted, width 100, Adam": (replace(ADAM, periods=50), 2, 2),
}


def true_costs(state: kernel.State, examples: Examples, layer: int, means: np.ndarray) -> np.ndarray:
    """How much the mean loss on the examples grows when a unit of a hidden layer is fixed to its mean; for each, (units,)."""
    x, targets, labels = examples
    layers = list(zip(state.weights, state.biases, strict=True))

    def loss(z: np.ndarray, after: int) -> float:
        for W, bias in layers[after:]:
            z = np.maximum(z, 0) @ W.astype(np.float64) + bias
        if z.shape[1] == 1:
            return float(((z - targets) ** 2).mean())
        z = z - z.max(axis=1, keepdims=True)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]).mean())

    h = x.astype(np.float64)
    for W, bias in layers[: layer + 1]:
        h = np.maximum(h @ W.astype(np.float64) + bias, 0)
    V, bias = layers[layer + 1]
    z = h @ V.astype(np.float64) + bias
    return np.array([loss(z + np.outer(m - h[:, i], V[i]), layer + 2) for i, m in enumerate(means)]) - loss(
        z, layer + 2
    )


def examined(words: str, seed: int) -> pd.DataFrame:
    """A row for each unit of each state that is examined of a network: its age, true cost, and every utility."""
    problem, _, states = NETWORKS[words]
    run, found = Run(problem, CBP, seed), []
    for number, _ in enumerate(run.periods()):
        if number < problem.periods - states:
            continue
        others = problem.examples(seed, number, held_out=True)
        for layer, age in enumerate(run.state.age):
            means = run.state.mean[layer] / (1 - kernel.DECAYS[0] ** age)
            told = {"network": words, "seed": seed, "period": number, "layer": layer + 1, "age": age}
            told |= {name: kernel.usefulness(run.state, layer, kind) for name, kind in UTILITIES.items()}
            found.append(pd.DataFrame({**told, "cost": true_costs(run.state, others, layer, means)}))
    return pd.concat(found, ignore_index=True)


def judge() -> None:
    """Examines the networks that `REFEREE` lacks, and writes the rows after each."""
    for words, (_, seeds, _) in NETWORKS.items():
        for seed in range(seeds):
            rows = pd.read_parquet(REFEREE) if REFEREE.exists() else None
            if rows is None or not ((rows["network"] == words) & (rows["seed"] == seed)).any():
                save(pd.concat([rows, examined(words, seed)], ignore_index=True), REFEREE)
                print(f"{words}  seed {seed}", flush=True)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where all of one are equal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation with the true cost by network, layer and age: mean over seeds and its standard error."""
    found = []
    for (network, layer), own in rows.groupby(["network", "layer"], sort=False):
        for age, part in (("all", own), ("young", own[own["age"] <= YOUNG]), ("old", own[own["age"] > YOUNG])):
            for name in UTILITIES:
                each = [rank_correlation(one[name], one["cost"]) for _, one in part.groupby("seed") if len(one) > 2]
                mean = estimate([r for r in each if np.isfinite(r)])
                told = {"network": network, "layer": layer, "age": age, "units": len(part), "utility": name}
                found.append({**told, "correlation": float(mean.mean), "error": float(mean.standard_error)})
    return pd.DataFrame(found)


def prices(rows: pd.DataFrame) -> pd.DataFrame:
    """True cost of the tenth of a layer's mature units that is least useful, over that of its mean unit; over seeds."""
    mature, found = rows[rows["age"] > kernel.Rules().maturity_threshold], []
    for (network, layer), own in mature.groupby(["network", "layer"], sort=False):
        for name in UTILITIES:
            shares = []
            for _, one in own.groupby("seed"):
                states = [state for _, state in one.groupby("period")]
                least = [state.nsmallest(-(-len(state) // 10), name)["cost"].mean() for state in states]
                shares.append(np.mean(least) / np.mean([state["cost"].mean() for state in states]))
            mean = estimate(shares)
            told = {"network": network, "layer": layer, "utility": name}
            found.append({**told, "share": float(mean.mean), "error": float(mean.standard_error)})
    return pd.DataFrame(found)


def draw(table: pd.DataFrame) -> None:
    """A panel for each layer: a row for each utility, young units and old ones."""
    groups = list(table.groupby(["network", "layer"], sort=False))
    figure, axes = panels(1, len(groups), size=(2.6, 2.8))
    for panel, ((network, layer), own) in zip(axes[0], groups, strict=True):
        for color, shift, age in zip(PALETTE, (0.12, -0.12), ("old", "young"), strict=False):
            part = own[own["age"] == age]
            place = np.arange(len(part))[::-1] + shift
            panel.errorbar(
                part["correlation"], place, xerr=part["error"], fmt="o", color=color, markersize=4, label=age
            )
        panel.set_yticks(np.arange(len(UTILITIES))[::-1], list(UTILITIES) if panel is axes[0][0] else [])
        panel.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.set_xlim(-0.5, 1)
        panel.set_title(f"{network}\nlayer {layer}", loc="left", fontsize=8)
        panel.set_xlabel("rank correlation", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, dpi=150)


def report_referee() -> None:
    judge()
    rows = pd.read_parquet(REFEREE)
    found = verdicts(rows)
    draw(found)
    print(f"| network | layer | age | units | {' | '.join(UTILITIES)} |\n|{'---|' * (4 + len(UTILITIES))}")
    for (network, layer, age, units), own in found.groupby(["network", "layer", "age", "units"], sort=False):
        cells = [f"{one.correlation:.2f} ± {one.error:.2f}" for one in own.itertuples()]
        print(f"| {network} | {layer} | {age} | {units} | {' | '.join(cells)} |")
    print(f"\n| network | layer | {' | '.join(UTILITIES)} |\n|{'---|' * (2 + len(UTILITIES))}")
    for (network, layer), own in prices(rows).groupby(["network", "layer"], sort=False):
        cells = [f"{one.share:.2f} ± {one.error:.2f}" for one in own.itertuples()]
        print(f"| {network} | {layer} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=list(STUDIES), metavar="STUDY")
    parser.add_argument("--seeds", default="0-19", type=seeds_of)
    parser.add_argument("--only", nargs="+", default=(), metavar="ARM", help="names of arms, as the table has them")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--referee", action="store_true")
    given = parser.parse_args()
    if given.referee:
        return report_referee()
    if given.study is None:
        parser.error(f"name a study: {', '.join(map(repr, STUDIES))}; or say --referee")
    if not given.table:
        learn_study(given.study, given.seeds, given.only)
    return table(given.study)


if __name__ == "__main__":
    main()
